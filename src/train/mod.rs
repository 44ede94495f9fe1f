//! Training: sessions, the loop, and what it leaves behind.

mod batch;
pub mod bench;
pub mod by_size;
pub mod checkpoint;
pub mod draw;
mod encoders;
pub mod engine;
pub mod evaluate;
pub mod folder;
pub mod graphs;
pub mod guard;
pub mod initial;
pub mod inputs;
pub mod kept;
pub mod loss_scale;
pub mod memory;
pub mod model;
mod moving;
pub mod on_device;
pub mod pictures;
pub mod prepare;
pub mod probe;
pub mod record;
pub mod refuse;
pub mod report;
mod results;
pub mod rollout;
mod run;
pub mod source;
pub mod state;
pub mod step;
pub mod summary;
mod untouched;
mod weights;

pub use run::{RunOptions, run};
