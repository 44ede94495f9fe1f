//! What a training run will take, before anything large is loaded: memory from its graphs, time from a short calibration.
//!
//! ```text
//! configuration, pipeline folder ─┬─► train::graphs ─┬─► sizes.rs ─► memory.rs  bytes by part, with the gaps of arena.rs
//!                                 │   train::kept ───┘   what is trained, set by set
//!                                 │                  └─► time.rs    seconds by kind of node, the costliest ones measured
//!                                 └─► encoding.rs  bytes while the cache is filled
//! ```
//!
//! Forecasts for the CPU are compared with runs; those for devices are computed by the same walk and were never measured
//! ([`Basis`]).

mod arena;
mod encoding;
mod level;
mod memory;
mod sizes;
mod time;

pub use encoding::Encoding;
pub use level::{Basis, Level, fitting, forecast};
pub use memory::{DeviceMemory, Memory};
pub use time::{Batch, Calibration, Time};
