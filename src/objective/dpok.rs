//! DPOK (Fan et al. 2023, arXiv 2305.16381): policy gradient with a value network and a divergence from the reference.
//!
//! ```text
//! ρ    = clip(exp(λ(t)·(log p_θ(x' | x) − log p_old(x' | x))), 1 − ε, 1 + ε)
//! loss = −w_r·(r − V(x, c, t))·ρ + w_kl·mean (ε_θ − ε_ref)²
//! ```
//!
//! r is the image's reward as it is, V what a small network expects of it at the step. The reference of the published method
//! is the initial model; here it may move.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::steps::{against_reference, check_clip, check_weight, clip, log_ratio, sampled};
use super::{Baseline, Experience, Likelihoods, Losses, Needs, Objective, promised, require_positive};
use crate::Result;
use crate::onnx::{Graph, ValueId};

/// Keys of the `dpok` objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dpok {
    /// w_r: weight of the policy gradient; 10 is published for one prompt, 1000 for many. Positive.
    pub reward_weight: f64,
    /// w_kl: weight of the divergence from the reference; 0.01 is published for one prompt, 0.1 for many.
    pub kl_weight: f64,
    /// ε: ratios of probabilities are clipped to 1 ± ε.
    pub clip: f64,
}

impl Default for Dpok {
    fn default() -> Self {
        Self {
            reward_weight: 1000.0,
            kl_weight: 0.1,
            clip: 1e-4,
        }
    }
}

impl Objective for Dpok {
    fn needs(&self) -> Needs {
        Needs {
            reference: true,
            gap: true,
            experience: Experience::Trajectories(Baseline::Value),
            ..Needs::default()
        }
    }

    fn check(&self) -> Result<()> {
        require_positive(self.reward_weight, "reward_weight", "10 to 1000 is published")?;
        check_weight(self.kl_weight, "kl_weight", "0.01 to 0.1 is published")?;
        check_clip(self.clip, "1e-4 is the published one")
    }

    fn build(&self, graph: &mut Graph, l: &Likelihoods, _means: &[ValueId]) -> Result<Losses> {
        let sampled = sampled(l);
        let r = log_ratio(graph, l, l.e_w, sampled.errors)?;
        let ratio = graph.unary("Exp", r)?;
        let ratio = clip(graph, ratio, 1.0 - self.clip, 1.0 + self.clip)?;
        let gain = graph.mul(sampled.advantage, ratio)?;
        let cost = graph.scale(gain, -self.reward_weight)?;
        let gap = promised(l.gap, "distances from the reference");
        let divergence = graph.scale(gap.square, self.kl_weight)?;
        Ok(Losses {
            loss: graph.add(cost, divergence)?,
            reward_signal: Some(against_reference(graph, l)?),
        })
    }
}
