//! Supervised fine-tuning on the preferred samples: `loss = e_w(θ)`, the denoising error itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Likelihoods, Losses, Needs, Objective};
use crate::Result;
use crate::onnx::{Graph, ValueId};

/// The `sft` objective has no keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sft {}

impl Objective for Sft {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn build(&self, _graph: &mut Graph, l: &Likelihoods, _means: &[ValueId]) -> Result<Losses> {
        Ok(Losses {
            loss: l.e_w,
            reward_signal: None,
        })
    }
}
