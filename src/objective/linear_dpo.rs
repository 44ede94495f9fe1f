//! Linear-DPO (arXiv 2605.21123): DPO's gradient with the sigmoid replaced by a clipped line.
//!
//! ```text
//! k    = clip(½ − 0.2·β·λ(t)·m, η, 1 − η)               no gradient flows through k
//! loss = k·(e_w(θ) − e_l(θ))
//! ```
//!
//! Published with a reference that follows the policy at every step (`reference: {update: ema, every: 1}`, decays of 0.95
//! to 0.995).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::paired::reward;
use super::{Likelihoods, Losses, Needs, Objective, Safeguard, promised, require, require_positive};
use crate::Result;
use crate::onnx::{Attrs, Graph, ValueId};

/// Keys of the `linear_dpo` objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LinearDpo {
    /// Slope of the line; published: 100 for SD1.5, 500 for SDXL. Positive.
    pub beta: f64,
    /// Least share of the gradient that every pair keeps, from 0 to 0.5; published: 0.001 for SD1.5, 0 for SDXL.
    pub eta: f64,
    /// Guard of the preferred sample.
    pub safeguard: Option<Safeguard>,
}

impl Default for LinearDpo {
    fn default() -> Self {
        Self {
            beta: 100.0,
            eta: 1e-3,
            safeguard: None,
        }
    }
}

/// Slope of the line for β = 1, as published.
const SLOPE: f64 = 0.2;

impl Objective for LinearDpo {
    fn needs(&self) -> Needs {
        Needs {
            winner: true,
            ..Needs::PAIRS_AND_REFERENCE
        }
    }

    fn check(&self) -> Result<()> {
        require_positive(self.beta, "beta", "100 is published for SD1.5, 500 for SDXL")?;
        require(
            (0.0..=0.5).contains(&self.eta),
            "objective.eta",
            format!("is {}", self.eta),
            "Give a number from 0 to 0.5.",
        )?;
        self.safeguard.map_or(Ok(()), |guard| guard.check())
    }

    fn beta(&self) -> Option<f64> {
        Some(self.beta)
    }

    fn beta_effective(&self) -> Option<f64> {
        Some(SLOPE * self.beta)
    }

    fn safeguard(&self) -> Option<Safeguard> {
        self.safeguard
    }

    fn build(&self, graph: &mut Graph, l: &Likelihoods, _means: &[ValueId]) -> Result<Losses> {
        let u = reward(graph, l, SLOPE * self.beta)?;
        let half = graph.scalar_like(u, 0.5);
        let line = graph.sub(half, u)?;
        let (low, high) = (
            graph.scalar_like(line, self.eta),
            graph.scalar_like(line, 1.0 - self.eta),
        );
        let k = graph.op("Max", &[line, low], Attrs::new())?;
        let k = graph.op("Min", &[k, high], Attrs::new())?;
        let k = graph.stop_gradient(k)?;
        let difference = graph.sub(l.e_w, promised(l.e_l, "pairs"))?;
        Ok(Losses {
            loss: graph.mul(k, difference)?,
            reward_signal: Some(u),
        })
    }
}
