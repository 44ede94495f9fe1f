//! From gradients to steps: accumulation, norms and clipping, AdamW, learning-rate schedules.
//!
//! One optimizer step is two passes over memory. The first reads the gradients and gives their norms and
//! whether they are finite ([`Gradient::norms`]). The second ([`AdamW::step`]) reads gradient, weights and
//! moments once, writes weights and moments, and moves the reference along in the same pass.

mod accumulate;
mod adamw;
mod gradient;
mod schedule;

pub use accumulate::GradientSum;
pub use adamw::{AdamW, Follow};
pub use gradient::{Gradient, GradientNorms, Term, clip_factor};
pub use schedule::LrSchedule;

/// Values per parallel task. Fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 1 << 14;
