//! Attention in other forms than an exporter writes it.

mod chunks;
mod fused;
mod pattern;

pub use chunks::{in_chunks, in_chunks_of};
pub use fused::{fused, fused_above, fused_for};
