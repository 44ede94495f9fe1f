//! From an exported denoiser to the graph of one training step.
//!
//! ```text
//! static UNet ─► layers.rs    which node belongs to which module of the original network
//!             ─► timestep.rs  one timestep per sample, also where the export takes a single one
//!             ─► attention.rs large attention matrices in chunks
//!             ─► branch.rs    a copy of the network with adapters or trainable weights; base weights are shared
//!             ─► step.rs      policy branch (+ reference branch) ─► head.rs ─► gradients
//!                             head.rs: likelihoods ─► objective ─► loss
//! ```
//!
//! Each pass takes a [`crate::onnx::Graph`] and gives one, so each can be printed and tested alone.

pub mod attention;
pub mod borders;
pub mod branch;
pub mod head;
pub mod layers;
pub mod likelihood;
pub mod step;
pub mod timestep;
pub mod trainable;

pub use layers::{Layer, LayerKind, find_layers, matches};
pub use step::{AnchorGraph, BatchGraph, ErrorGraph, Reference, StepGraph, StepShape};
pub use trainable::{Trainable, TrainableKind, Trainables};
