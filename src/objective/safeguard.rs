//! The guard of the preferred sample (SDPO, "Diffusion-SDPO: Safeguarded Direct Preference Optimization").
//!
//! Pushing the rejected sample's error up may push the preferred one's up, too. The gradient of `e_l` is shortened just so
//! far that, to first order in the predictions, it undoes at most the share 1 − μ of what lowers `e_w`:
//!
//! ```text
//! λ    = min(1, (1 − μ)·⟨r_w, r_w⟩ / ⟨r_w, r_l⟩)  if ⟨r_w, r_l⟩ > 0, else 1        r = prediction − target
//! e_l  → stop(e_l) + λ·(e_l − stop(e_l))
//! ```
//!
//! The products are taken over the whole optimizer batch, and no gradient flows through λ. A plug-in: it works under every
//! objective on pairs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Likelihoods, promised, require};
use crate::Result;
use crate::onnx::{Attrs, Graph, ValueId};

/// Keys of `objective.safeguard`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Safeguard {
    /// Share of the preferred sample's improvement that is kept, from 0 to 1. Published: 0.9 under DPO and DMPO, 0.2 under
    /// DSPO on SD1.5, 0.6 on SDXL.
    pub mu: f64,
}

impl Default for Safeguard {
    fn default() -> Self {
        Self { mu: 0.9 }
    }
}

/// Below this `⟨r_w, r_l⟩` the rejected sample does no harm.
const SMALLEST: f64 = 1e-12;

impl Safeguard {
    /// Checks the value; errors name the configuration key.
    pub fn check(&self) -> Result<()> {
        require(
            (0.0..=1.0).contains(&self.mu),
            "objective.safeguard.mu",
            format!("is {}", self.mu),
            "Give a number from 0 to 1.",
        )
    }

    /// `⟨r_w, r_w⟩` and `⟨r_w, r_l⟩` of each pair.
    pub fn batch_quantities(l: &Likelihoods) -> [ValueId; 2] {
        [l.e_w, promised(l.cross, "products of residuals")]
    }

    /// Replaces `e_l` by the guarded one.
    pub fn apply(
        &self,
        graph: &mut Graph,
        l: &Likelihoods,
        [own, cross]: [ValueId; 2],
    ) -> Result<Likelihoods> {
        let smallest = graph.scalar_like(cross, SMALLEST);
        // With a product of no more than zero the quotient is huge, and λ = 1.
        let harm = graph.op("Max", &[cross, smallest], Attrs::new())?;
        let kept = graph.scale(own, 1.0 - self.mu)?;
        let quotient = graph.div(kept, harm)?;
        let one = graph.scalar_like(quotient, 1.0);
        let lambda = graph.op("Min", &[quotient, one], Attrs::new())?;
        let e_l = promised(l.e_l, "pairs");
        let still = graph.stop_gradient(e_l)?;
        let moving = graph.sub(e_l, still)?;
        let moving = graph.mul(moving, lambda)?;
        Ok(Likelihoods {
            e_l: Some(graph.add(still, moving)?),
            ..*l
        })
    }
}
