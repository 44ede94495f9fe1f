//! Training: sessions, the loop, and what it leaves behind.

pub mod bench;
pub mod denoiser;
pub mod engine;
pub mod memory;
mod weights;
