//! From gradients to steps: accumulation, norms and clipping, AdamW and Adafactor, learning-rate schedules.
//!
//! One optimizer step is two passes over memory. The first reads the gradients and gives their norms and
//! whether they are finite ([`Gradient::norms`]). The second ([`AdamW::step`]) reads gradient, weights and
//! moments once, writes weights and moments, and moves the reference along in the same pass.

mod accumulate;
mod adafactor;
mod adamw;
mod gradient;
mod optimizer;
mod schedule;

pub use accumulate::GradientSum;
pub use adafactor::Adafactor;
pub use adamw::{AdamW, Follow};
pub use gradient::{Gradient, GradientNorms, Term, clip_factor};
pub use optimizer::Optimizer;
pub use schedule::LrSchedule;

use crate::params::ParamSet;
use crate::{Error, Result};

/// Values per parallel task. Fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 1 << 14;

/// Refuses moments of other parameters than those of `own`.
fn check_moments(own: &ParamSet, restored: &ParamSet) -> Result<()> {
    match own.layout().difference(restored.layout()) {
        None => Ok(()),
        Some(difference) => Err(Error::bad(
            "optimizer state",
            difference,
            "Resume with the model and adapter configuration that wrote the checkpoint.",
        )),
    }
}
