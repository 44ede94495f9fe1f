//! D3PO (Yang et al. 2024, arXiv 2311.13231): DPO on the steps of two images of one prompt.
//!
//! ```text
//! r    = λ(t)·(log p_θ(x' | x) − log p_ref(x' | x))        of a step of each image, both at one timestep
//! ln ρ = clip(r, ln(1 − ε), ln(1 + ε))
//! loss = −log σ(β·(ln ρ_w − ln ρ_l))
//! ```
//!
//! Log-probabilities are means over C,H,W as in the published code, which is why its loss stays close to ln 2.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::steps::{check_clip, clipped_preference};
use super::{Experience, Likelihoods, Losses, Needs, Objective, require_positive};
use crate::Result;
use crate::onnx::{Graph, ValueId};

/// Keys of the `d3po` objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct D3po {
    /// Strength of the log-ratios. Positive.
    pub beta: f64,
    /// ε: ratios of probabilities are clipped to 1 ± ε.
    pub clip: f64,
}

impl Default for D3po {
    fn default() -> Self {
        Self { beta: 0.1, clip: 0.1 }
    }
}

impl Objective for D3po {
    fn needs(&self) -> Needs {
        Needs {
            winner: true,
            experience: Experience::TrajectoryPairs,
            ..Needs::PAIRS_AND_REFERENCE
        }
    }

    fn check(&self) -> Result<()> {
        require_positive(self.beta, "beta", "0.1 is the published one")?;
        check_clip(self.clip, "0.1 is the published one")
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
