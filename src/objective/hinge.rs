//! The hinge loss of SLiC (Zhao et al. 2023, arXiv 2305.10425) on denoising errors: `loss = max(0, 1 − β·λ(t)·m)`.
//!
//! Pairs whose reward difference has reached 1 give no gradient. β is in diffusers' convention (2500, without the ½).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::paired::{both_orders, reward};
use super::{Likelihoods, Losses, Needs, Objective, Safeguard, require_positive};
use crate::Result;
use crate::onnx::{Graph, ValueId};

/// Keys of the `hinge` objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Hinge {
    /// Margins of 1/beta are enough. Positive.
    pub beta: f64,
    /// Guard of the preferred sample.
    pub safeguard: Option<Safeguard>,
}

impl Default for Hinge {
    fn default() -> Self {
        Self {
            beta: 2500.0,
            safeguard: None,
        }
    }
}

impl Objective for Hinge {
    fn needs(&self) -> Needs {
        Needs::PAIRS_AND_REFERENCE
    }

    fn check(&self) -> Result<()> {
        require_positive(self.beta, "beta", "2500 is diffusers' default")?;
        self.safeguard.map_or(Ok(()), |guard| guard.check())
    }

    fn beta(&self) -> Option<f64> {
        Some(self.beta)
    }

    fn beta_effective(&self) -> Option<f64> {
        Some(self.beta)
    }

    fn safeguard(&self) -> Option<Safeguard> {
        self.safeguard
    }

    fn build(&self, graph: &mut Graph, l: &Likelihoods, _means: &[ValueId]) -> Result<Losses> {
        let u = reward(graph, l, self.beta)?;
        let loss = both_orders(graph, l, u, |graph, u| {
            let one = graph.scalar_like(u, 1.0);
            let missing = graph.sub(one, u)?;
            graph.unary("Relu", missing)
        })?;
        Ok(Losses {
            loss,
            reward_signal: Some(u),
        })
    }
}
