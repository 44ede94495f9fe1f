//! The `objective:` section: what is optimised. The keys of each method, with its published defaults, are the fields of its
//! struct in [`crate::objective`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::objective::{
    D3po, Ddpo, Dmpo, Dpo, Dpok, Dspo, Hinge, Ipo, Kto, LinearDpo, Mapo, Objective, OnlineDpo, Sft, Smpo, Spo,
};

/// What is optimised. Another `kind` starts from that method's own defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ObjectiveConfig {
    /// Diffusion-DPO: prefer the preferred image more than the reference does (Wallace et al. 2024).
    Dpo(Dpo),
    /// Supervised fine-tuning on the preferred images; no reference takes part.
    Sft(Sft),
    /// IPO: draw the margin to a set size (Azar et al. 2023).
    Ipo(Ipo),
    /// Hinge loss: push margins up to a set size (SLiC, Zhao et al. 2023).
    Hinge(Hinge),
    /// Diffusion-KTO: desirable and undesirable images, each by itself (Li et al. 2024).
    Kto(Kto),
    /// MaPO: denoising error and margin without a reference (Hong et al. 2024).
    Mapo(Mapo),
    /// DSPO: match the score of the preferred distribution (Zhu et al. 2025).
    Dspo(Dspo),
    /// DMPO: reverse divergence to the labels' distribution.
    Dmpo(Dmpo),
    /// Linear-DPO: the sigmoid of DPO's gradient replaced by a clipped line (2026).
    LinearDpo(LinearDpo),
    /// SmPO: DPO with the logit scaled by how clear a scorer finds the preference (Lu et al. 2025).
    Smpo(Smpo),
    /// Diffusion-DPO on pairs that the policy makes as it learns.
    OnlineDpo(OnlineDpo),
    /// DDPO: policy gradient on denoising steps (Black et al. 2023).
    Ddpo(Ddpo),
    /// D3PO: DPO on the steps of two images of a prompt (Yang et al. 2024).
    D3po(D3po),
    /// DPOK: policy gradient with a value network and a divergence from the reference (Fan et al. 2023).
    Dpok(Dpok),
    /// SPO: the best of several steps from one noisy image preferred to the worst (Liang et al. 2024).
    Spo(Spo),
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self::Dpo(Dpo::default())
    }
}

impl ObjectiveConfig {
    /// The method's name in the file.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dpo(_) => "dpo",
            Self::Sft(_) => "sft",
            Self::Ipo(_) => "ipo",
            Self::Hinge(_) => "hinge",
            Self::Kto(_) => "kto",
            Self::Mapo(_) => "mapo",
            Self::Dspo(_) => "dspo",
            Self::Dmpo(_) => "dmpo",
            Self::LinearDpo(_) => "linear_dpo",
            Self::Smpo(_) => "smpo",
            Self::OnlineDpo(_) => "online_dpo",
            Self::Ddpo(_) => "ddpo",
            Self::D3po(_) => "d3po",
            Self::Dpok(_) => "dpok",
            Self::Spo(_) => "spo",
        }
    }

    /// The method itself, on its own.
    pub fn into_objective(self) -> Box<dyn Objective> {
        match self {
            Self::Dpo(method) => Box::new(method),
            Self::Sft(method) => Box::new(method),
            Self::Ipo(method) => Box::new(method),
            Self::Hinge(method) => Box::new(method),
            Self::Kto(method) => Box::new(method),
            Self::Mapo(method) => Box::new(method),
            Self::Dspo(method) => Box::new(method),
            Self::Dmpo(method) => Box::new(method),
            Self::LinearDpo(method) => Box::new(method),
            Self::Smpo(method) => Box::new(method),
            Self::OnlineDpo(method) => Box::new(method),
            Self::Ddpo(method) => Box::new(method),
            Self::D3po(method) => Box::new(method),
            Self::Dpok(method) => Box::new(method),
            Self::Spo(method) => Box::new(method),
        }
    }

    /// The method itself.
    pub fn objective(&self) -> &dyn Objective {
        match self {
            Self::Dpo(method) => method,
            Self::Sft(method) => method,
            Self::Ipo(method) => method,
            Self::Hinge(method) => method,
            Self::Kto(method) => method,
            Self::Mapo(method) => method,
            Self::Dspo(method) => method,
            Self::Dmpo(method) => method,
            Self::LinearDpo(method) => method,
            Self::Smpo(method) => method,
            Self::OnlineDpo(method) => method,
            Self::Ddpo(method) => method,
            Self::D3po(method) => method,
            Self::Dpok(method) => method,
            Self::Spo(method) => method,
        }
    }
}
