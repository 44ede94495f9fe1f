//! Supervised fine-tuning on the preferred samples: `loss = e_w(θ)`, the denoising error itself.

use super::{Likelihoods, Losses, Objective};
use crate::Result;
use crate::onnx::Graph;

/// See the module's text.
#[derive(Debug, Clone, Copy)]
pub struct Sft;

impl Objective for Sft {
    fn needs_pairs(&self) -> bool {
        false
    }

    fn needs_reference(&self) -> bool {
        false
    }

    fn beta_effective(&self) -> Option<f64> {
        None
    }

    fn build(&self, _graph: &mut Graph, l: &Likelihoods) -> Result<Losses> {
        Ok(Losses {
            loss: l.e_w,
            reward_signal: None,
        })
    }
}
