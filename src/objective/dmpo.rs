//! DMPO, divergence minimisation (as in the code of Diffusion-SDPO): the preference that the model's rewards imply is
//! drawn to the one that labels with a share α of errors have, by the reverse divergence.
//!
//! ```text
//! u    = ½·β·λ(t)·m,   p = σ(u),   q = 1 − α
//! loss = KL( Bernoulli(p) ‖ Bernoulli(q) ) = p·log(p/q) + (1 − p)·log((1 − p)/(1 − q))
//! ```

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::paired::{both_orders, reward};
use super::{Likelihoods, Losses, Needs, Objective, Safeguard, require, require_positive};
use crate::Result;
use crate::onnx::{Graph, ValueId};

/// Keys of the `dmpo` objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dmpo {
    /// Strength of the margin in Diffusion-DPO's convention; published: 2000 for SD1.5, 6000 for SDXL. Positive.
    pub beta: f64,
    /// Assumed share of wrong labels, above 0 and below 0.5.
    pub alpha: f64,
    /// Guard of the preferred sample.
    pub safeguard: Option<Safeguard>,
}

impl Default for Dmpo {
    fn default() -> Self {
        Self {
            beta: 2000.0,
            alpha: 0.01,
            safeguard: None,
        }
    }
}

impl Objective for Dmpo {
    fn needs(&self) -> Needs {
        Needs::PAIRS_AND_REFERENCE
    }

    fn check(&self) -> Result<()> {
        require_positive(self.beta, "beta", "2000 to 6000 is usual for diffusion models")?;
        require(
            self.alpha > 0.0 && self.alpha < 0.5,
            "objective.alpha",
            format!("is {}", self.alpha),
            "Give a number above 0 and below 0.5; 0.01 is the published one.",
        )?;
        self.safeguard.map_or(Ok(()), |guard| guard.check())
    }

    fn beta(&self) -> Option<f64> {
        Some(self.beta)
    }

    fn beta_effective(&self) -> Option<f64> {
        Some(0.5 * self.beta)
    }

    fn safeguard(&self) -> Option<Safeguard> {
        self.safeguard
    }

    fn build(&self, graph: &mut Graph, l: &Likelihoods, _means: &[ValueId]) -> Result<Losses> {
        let u = reward(graph, l, 0.5 * self.beta)?;
        let (log_q, log_rest) = ((1.0 - self.alpha).ln(), self.alpha.ln());
        let loss = both_orders(graph, l, u, |graph, u| {
            // With log p = −softplus(−u) = log(1 − p) + u the divergence is
            // p·(u − log q + log(1 − q)) − softplus(u) − log(1 − q).
            let p = graph.unary("Sigmoid", u)?;
            let odds = graph.offset(u, log_rest - log_q)?;
            let first = graph.mul(p, odds)?;
            let softplus = graph.unary("Softplus", u)?;
            let both = graph.sub(first, softplus)?;
            graph.offset(both, -log_rest)
        })?;
        Ok(Losses {
            loss,
            reward_signal: Some(u),
        })
    }
}
