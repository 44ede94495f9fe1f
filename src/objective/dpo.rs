//! Diffusion-DPO (Wallace et al. 2024, arXiv 2311.12908).
//!
//! ```text
//! m    = (e_w(ref) − e_w(θ)) − (e_l(ref) − e_l(θ))      margin
//! u    = ½·β·λ(t)·m                                      logit
//! loss = −y·log σ(u) − (1 − y)·log σ(−u)                 y = label·(1 − s) + (1 − label)·s
//! ```
//!
//! β is in the convention of the original code (2000–5000, errors averaged over C,H,W). `s` is label smoothing: as it
//! stands it hedges (conservative DPO); `robust` removes the bias that wrong labels bring instead (Chowdhury et al. 2024,
//! arXiv 2403.00409), `loss = (−(1 − s)·log σ(u) + s·log σ(−u)) / (1 − 2s)`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::paired::reward;
use super::{Likelihoods, Losses, Needs, Objective, Safeguard, require, require_positive};
use crate::Result;
use crate::onnx::{Graph, ValueId};

/// Keys of the `dpo` objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dpo {
    /// Strength of the margin, in the original code's convention (2000 to 5000, errors averaged over pixels
    /// and channels); the logit's coefficient is half of it. Positive.
    pub beta: f64,
    /// Assumed share of wrong labels, from 0 to below 0.5.
    pub label_smoothing: f64,
    /// Correct for the assumed wrong labels instead of hedging against them.
    pub robust: bool,
    /// Guard of the preferred sample.
    pub safeguard: Option<Safeguard>,
}

impl Default for Dpo {
    fn default() -> Self {
        Self {
            beta: 2000.0,
            label_smoothing: 0.0,
            robust: false,
            safeguard: None,
        }
    }
}

impl Objective for Dpo {
    fn needs(&self) -> Needs {
        Needs::PAIRS_AND_REFERENCE
    }

    fn check(&self) -> Result<()> {
        require_positive(self.beta, "beta", "2000 to 5000 is usual for diffusion models")?;
        require(
            (0.0..0.5).contains(&self.label_smoothing),
            "objective.label_smoothing",
            format!("is {}", self.label_smoothing),
            "Give a number from 0 to below 0.5: at 0.5 the labels would say nothing.",
        )?;
        self.safeguard.map_or(Ok(()), |guard| guard.check())
    }

    fn beta(&self) -> Option<f64> {
        Some(self.beta)
    }

    fn beta_effective(&self) -> Option<f64> {
        Some(0.5 * self.beta)
    }

    fn is_logistic(&self) -> bool {
        true
    }

    fn safeguard(&self) -> Option<Safeguard> {
        self.safeguard
    }

    fn build(&self, graph: &mut Graph, l: &Likelihoods, _means: &[ValueId]) -> Result<Losses> {
        let logit = reward(graph, l, 0.5 * self.beta)?;
        // −log σ(u) = softplus(−u), and softplus(u) = softplus(−u) + u: one transcendental for both sides. With weights
        // a + b = 1 of the two sides the loss is softplus(−u) + b·u.
        let minus = graph.neg(logit)?;
        let right = graph.unary("Softplus", minus)?;
        let s = self.label_smoothing;
        // Weight of the wrong order: for a sure label s, or −s/(1 − 2s) in the robust form.
        let (unsure, sure) = match self.robust {
            false => (1.0 - s, s),
            true => ((1.0 - s) / (1.0 - 2.0 * s), -s / (1.0 - 2.0 * s)),
        };
        let one = graph.scalar_like(l.label, 1.0);
        let doubt = graph.sub(one, l.label)?;
        let doubt = graph.scale(doubt, unsure - sure)?;
        let doubt = graph.offset(doubt, sure)?;
        let wrong = graph.mul(doubt, logit)?;
        let loss = graph.add(right, wrong)?;
        Ok(Losses {
            loss,
            reward_signal: Some(logit),
        })
    }
}
