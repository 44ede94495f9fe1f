//! SmPO, smoothed preference optimisation (Lu et al. 2025): the logit is scaled by how clear a scorer finds the preference.
//!
//! ```text
//! p    = σ( (score_w − score_l) / range )
//! u    = ½·β·γ·(2p − 1)·λ(t)·m
//! loss = −log σ(u)
//! ```
//!
//! `range` is that of the scores over the data set (the published code writes PickScore's: 0.28201571 − 0.11543527), γ = 10.
//! A pair whose label contradicts the scores counts the other way round, as published. The published method also replaces
//! the noised sample by an inverted one; that step is optional there and not part of this objective.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::paired::{log_loss, reward};
use super::{Likelihoods, Losses, Needs, Objective, Safeguard, promised, require_positive};
use crate::Result;
use crate::onnx::{Graph, ValueId};

/// Keys of the `smpo` objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Smpo {
    /// Strength of the margin in Diffusion-DPO's convention; published: 2000 for SD1.5, 5000 for SDXL. Positive.
    pub beta: f64,
    /// Factor of 2p − 1. Positive.
    pub gamma: f64,
    /// Largest minus smallest score; `null` measures it on the training pairs. Positive.
    pub score_range: Option<f64>,
    /// Guard of the preferred sample.
    pub safeguard: Option<Safeguard>,
}

impl Default for Smpo {
    fn default() -> Self {
        Self {
            beta: 2000.0,
            gamma: 10.0,
            score_range: None,
            safeguard: None,
        }
    }
}

impl Objective for Smpo {
    fn needs(&self) -> Needs {
        Needs {
            scores: true,
            winner: true,
            ..Needs::PAIRS_AND_REFERENCE
        }
    }

    fn check(&self) -> Result<()> {
        require_positive(self.beta, "beta", "2000 to 5000 is usual for diffusion models")?;
        require_positive(self.gamma, "gamma", "10 is the published one")?;
        if let Some(range) = self.score_range {
            require_positive(range, "score_range", "null measures it on the training pairs")?;
        }
        self.safeguard.map_or(Ok(()), |guard| guard.check())
    }

    fn beta(&self) -> Option<f64> {
        Some(self.beta)
    }

    fn beta_effective(&self) -> Option<f64> {
        Some(0.5 * self.beta * self.gamma)
    }

    fn is_logistic(&self) -> bool {
        true
    }

    fn safeguard(&self) -> Option<Safeguard> {
        self.safeguard
    }

    fn build(&self, graph: &mut Graph, l: &Likelihoods, _means: &[ValueId]) -> Result<Losses> {
        let range = promised(self.score_range, "the range of the training scores");
        let gap = promised(l.score_gap, "scores");
        // 2·σ(x) − 1 = tanh(x/2)
        let clear = graph.scale(gap, 0.5 / range)?;
        let clear = graph.unary("Tanh", clear)?;
        let u = reward(graph, l, 0.5 * self.beta * self.gamma)?;
        let u = graph.mul(u, clear)?;
        Ok(Losses {
            loss: log_loss(graph, u)?,
            reward_signal: Some(u),
        })
    }
}
