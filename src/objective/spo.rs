//! SPO-style step pairs (Liang et al. 2024, arXiv 2406.04314): from one noisy image several steps are tried, and the best is
//! preferred to the worst.
//!
//! ```text
//! ln ρ = clip(λ(t)·(log p_θ(x' | x) − log p_ref(x' | x)), ln(1 − ε), ln(1 + ε))     of the best and the worst x'
//! loss = −log σ(β·(ln ρ_w − ln ρ_l))
//! ```
//!
//! The published method ranks noisy images with a preference model trained on them. Here a step is ranked by the reward of
//! the clean image that the policy expects after it, which any reward model can give.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::steps::{check_clip, clipped_preference};
use super::{Candidates, Experience, Likelihoods, Losses, Needs, Objective, require, require_positive};
use crate::Result;
use crate::onnx::{Graph, ValueId};

/// Keys of the `spo` objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Spo {
    /// Strength of the log-ratios. Positive.
    pub beta: f64,
    /// ε: ratios of probabilities are clipped to 1 ± ε.
    pub clip: f64,
    /// Steps that are tried from each noisy image, at least 2.
    pub candidates: usize,
    /// Steps of a trajectory, from the noisiest on, that are taken without trying: nothing shows yet.
    pub skip: usize,
}

impl Default for Spo {
    fn default() -> Self {
        Self {
            beta: 10.0,
            clip: 0.1,
            candidates: 4,
            skip: 4,
        }
    }
}

impl Objective for Spo {
    fn needs(&self) -> Needs {
        Needs {
            winner: true,
            experience: Experience::Candidates(Candidates {
                number: self.candidates,
                skip: self.skip,
            }),
            ..Needs::PAIRS_AND_REFERENCE
        }
    }

    fn check(&self) -> Result<()> {
        require_positive(self.beta, "beta", "10 is the published one")?;
        check_clip(self.clip, "0.1 is the published one")?;
        require(
            self.candidates >= 2,
            "objective.candidates",
            format!("is {}", self.candidates),
            "Give at least 2; 4 is the published one.",
        )
    }

    fn beta(&self) -> Option<f64> {
        Some(self.beta)
    }

    fn build(&self, graph: &mut Graph, l: &Likelihoods, _means: &[ValueId]) -> Result<Losses> {
        let (loss, ratios) = clipped_preference(graph, l, self.beta, self.clip)?;
        Ok(Losses {
            loss,
            reward_signal: Some(ratios),
        })
    }
}
