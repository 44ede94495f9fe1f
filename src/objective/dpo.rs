//! Diffusion-DPO (Wallace et al. 2024).
//!
//! ```text
//! m    = (e_w(ref) − e_w(θ)) − (e_l(ref) − e_l(θ))      margin
//! u    = ½·β·λ(t)·m                                      logit
//! loss = −y·log σ(u) − (1 − y)·log σ(−u)                 y = label·(1 − s) + (1 − label)·s
//! ```
//!
//! β is in the convention of the original code (2000–5000, errors averaged over C,H,W); `s` is label smoothing (cDPO).

use super::{Likelihoods, Losses, Objective};
use crate::onnx::Graph;
use crate::{Error, Result};

/// See the module's text.
#[derive(Debug, Clone, Copy)]
pub struct Dpo {
    /// Strength of the pull towards the reference.
    pub beta: f64,
    /// Probability that a label is wrong.
    pub label_smoothing: f64,
}

impl Objective for Dpo {
    fn needs_pairs(&self) -> bool {
        true
    }

    fn needs_reference(&self) -> bool {
        true
    }

    fn beta_effective(&self) -> Option<f64> {
        Some(0.5 * self.beta)
    }

    fn build(&self, graph: &mut Graph, l: &Likelihoods) -> Result<Losses> {
        let (Some(e_l), Some(ref_w), Some(ref_l)) = (l.e_l, l.ref_w, l.ref_l) else {
            return Err(Error::bad(
                "objective.kind: dpo",
                "was built without pairs or reference",
                "Report this defect.",
            ));
        };
        let delta_ref = graph.sub(ref_w, ref_l)?;
        let delta = graph.sub(l.e_w, e_l)?;
        let margin = graph.sub(delta_ref, delta)?;
        let scaled = graph.scale(margin, 0.5 * self.beta)?;
        let logit = graph.mul(scaled, l.reward_scale)?;
        // −log σ(u) = softplus(−u), and softplus(u) = softplus(−u) + u: one transcendental for both sides.
        let minus = graph.neg(logit)?;
        let right = graph.unary("Softplus", minus)?;
        let kept = graph.scale(l.label, 1.0 - 2.0 * self.label_smoothing)?;
        let sure = graph.offset(kept, self.label_smoothing)?;
        let one = graph.scalar_like(sure, 1.0);
        let doubt = graph.sub(one, sure)?;
        let wrong = graph.mul(doubt, logit)?;
        let loss = graph.add(right, wrong)?;
        Ok(Losses {
            loss,
            reward_signal: Some(logit),
        })
    }
}
