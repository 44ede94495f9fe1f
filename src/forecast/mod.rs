//! What a training run will take, before anything large is loaded: memory from its graphs, time from a short calibration.
//!
//! ```text
//! configuration, pipeline folder ─┬─► train::graphs ─┬─► memory.rs  bytes by part, with the gaps of arena.rs
//!                                 │                  └─► time.rs    seconds by kind of node, the costliest ones measured
//!                                 └─► encoding.rs  bytes while the cache is filled
//! ```

mod arena;
mod encoding;
mod level;
mod memory;
mod time;

pub use encoding::Encoding;
pub use level::{Level, fitting, forecast};
pub use memory::Memory;
pub use time::{Batch, Calibration, Time};
