//! MaPO, margin-aware preference optimisation without a reference (Hong et al. 2024, arXiv 2406.06424).
//!
//! ```text
//! f(e) = s·e / (exp(s·e) − 1)
//! loss = e_w − β·log σ( T·(f(e_w) − f(e_l)) )            T: training timesteps
//! ```

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::paired::log_loss;
use super::{Likelihoods, Losses, Needs, Objective, Safeguard, promised, require_positive};
use crate::Result;
use crate::onnx::{Graph, ValueId};

/// Keys of the `mapo` objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Mapo {
    /// Weight of the margin's loss beside the denoising error. Positive.
    pub beta: f64,
    /// `s` in f(e); published: 0.5. Positive.
    pub snr: f64,
    /// `T`, which multiplies the margin; published: 1000, the number of training timesteps. Positive.
    pub timesteps: f64,
    /// Guard of the preferred sample.
    pub safeguard: Option<Safeguard>,
}

impl Default for Mapo {
    fn default() -> Self {
        Self {
            beta: 0.1,
            snr: 0.5,
            timesteps: 1000.0,
            safeguard: None,
        }
    }
}

impl Mapo {
    /// `f(e) = x/(exp(x) − 1)` with `x = s·e`, as `h/tanh(h) − h` with `h = x/2`: the difference of an exponential and one
    /// would lose the digits that matter when errors are small.
    fn odds(&self, graph: &mut Graph, error: ValueId) -> Result<ValueId> {
        let h = graph.scale(error, 0.5 * self.snr)?;
        let tanh = graph.unary("Tanh", h)?;
        let quotient = graph.div(h, tanh)?;
        graph.sub(quotient, h)
    }
}

impl Objective for Mapo {
    fn needs(&self) -> Needs {
        Needs {
            pairs: true,
            winner: true,
            ..Needs::default()
        }
    }

    fn check(&self) -> Result<()> {
        require_positive(self.beta, "beta", "0.1 is the published one")?;
        require_positive(self.snr, "snr", "0.5 is the published one")?;
        require_positive(self.timesteps, "timesteps", "1000 is the published one")?;
        self.safeguard.map_or(Ok(()), |guard| guard.check())
    }

    fn beta(&self) -> Option<f64> {
        Some(self.beta)
    }

    fn safeguard(&self) -> Option<Safeguard> {
        self.safeguard
    }

    fn build(&self, graph: &mut Graph, l: &Likelihoods, _means: &[ValueId]) -> Result<Losses> {
        let w = self.odds(graph, l.e_w)?;
        let l_odds = self.odds(graph, promised(l.e_l, "pairs"))?;
        let ratio = graph.sub(w, l_odds)?;
        let ratio = graph.scale(ratio, self.timesteps)?;
        let loss = log_loss(graph, ratio)?;
        let weighted = graph.scale(loss, self.beta)?;
        Ok(Losses {
            loss: graph.add(l.e_w, weighted)?,
            reward_signal: None,
        })
    }
}
