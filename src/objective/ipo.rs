//! IPO (Azar et al. 2023, arXiv 2310.12036) on denoising errors.
//!
//! ```text
//! loss = (m·λ(t) − 1/(2β))²            as published
//!      = (β·m·λ(t) − ½)²               with `normalize`: the same times β², so that AdamW's ε and clipping keep their scale
//! ```
//!
//! The margin is pulled to 1/(2β) and no further. β is in diffusers' convention (2500 there, where the reward has no ½).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::paired::{both_orders, reward};
use super::{Likelihoods, Losses, Needs, Objective, Safeguard, require_positive};
use crate::Result;
use crate::onnx::{Graph, ValueId};

/// Keys of the `ipo` objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ipo {
    /// The margin's aim is 1/(2·beta). Positive.
    pub beta: f64,
    /// Multiply the loss by beta², which changes neither its minimum nor its direction.
    pub normalize: bool,
    /// Guard of the preferred sample.
    pub safeguard: Option<Safeguard>,
}

impl Default for Ipo {
    fn default() -> Self {
        Self {
            beta: 2500.0,
            normalize: true,
            safeguard: None,
        }
    }
}

impl Objective for Ipo {
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
            let miss = graph.offset(u, -0.5)?;
            graph.mul(miss, miss)
        })?;
        let loss = match self.normalize {
            true => loss,
            false => graph.scale(loss, self.beta.powi(-2))?,
        };
        Ok(Losses {
            loss,
            reward_signal: Some(u),
        })
    }
}
