//! Diffusion-DPO on pairs that the policy makes as it learns: several images of a prompt, ranked by a reward model.
//!
//! ```text
//! m    = (e_w(ref) − e_w(θ)) − (e_l(ref) − e_l(θ))      on generated images, noised as those of a data set
//! u    = ½·β·λ(t)·m
//! loss = −log σ(u)
//! ```

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Dpo, Experience, Likelihoods, Losses, Needs, Objective, Safeguard};
use crate::Result;
use crate::onnx::{Graph, ValueId};

/// Keys of the `online_dpo` objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OnlineDpo {
    /// Strength of the margin, as for `dpo`. Positive.
    pub beta: f64,
    /// Guard of the preferred sample.
    pub safeguard: Option<Safeguard>,
}

impl Default for OnlineDpo {
    fn default() -> Self {
        Self {
            beta: 2000.0,
            safeguard: None,
        }
    }
}

impl OnlineDpo {
    fn dpo(&self) -> Dpo {
        Dpo {
            beta: self.beta,
            safeguard: self.safeguard,
            ..Dpo::default()
        }
    }
}

impl Objective for OnlineDpo {
    fn needs(&self) -> Needs {
        Needs {
            experience: Experience::Images,
            ..Needs::PAIRS_AND_REFERENCE
        }
    }

    fn check(&self) -> Result<()> {
        self.dpo().check()
    }

    fn beta(&self) -> Option<f64> {
        Some(self.beta)
    }

    fn beta_effective(&self) -> Option<f64> {
        self.dpo().beta_effective()
    }

    fn is_logistic(&self) -> bool {
        true
    }

    fn safeguard(&self) -> Option<Safeguard> {
        self.safeguard
    }

    fn build(&self, graph: &mut Graph, l: &Likelihoods, means: &[ValueId]) -> Result<Losses> {
        self.dpo().build(graph, l, means)
    }
}
