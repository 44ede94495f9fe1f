//! ONNX Runtime: finding the shared library, execution providers, sessions and the buffers they work on.
//!
//! Everything that is computed on tensors of a model passes through here: the encoders of the data cache, the
//! training step, sampling, scoring. This is the only module that names the `ort` crate; the rest of the program
//! sees [`Session`], [`Tensor`](crate::tensor::Tensor) and [`ExecutionProvider`].
//!
//! ```text
//! init ─► library (which file, new enough?) ─► environment (one per process)
//! model bytes + SharedWeights + SessionOptions ─► Session ─► run(views) ─► Outputs
//!                                                         └► Binding: kept inputs, outputs written in place
//! ```

mod bfloat16;
mod binding;
mod device;
mod environment;
mod failure;
mod library;
mod memory_reuse;
mod operators;
mod options;
mod placement;
mod provider;
mod session;
mod value;
mod weights;

pub use bfloat16::{BFLOAT16_OPSET, computes_in_bfloat16, has_bfloat16};
pub use binding::Binding;
pub use device::{DeviceBuffer, DeviceTensor};
pub(crate) use environment::LARGEST_DOUBLING;
pub use environment::{RuntimeInfo, RuntimeOptions, info, init};
pub use options::{Arena, OptLevel, SessionOptions};
pub use placement::Placed;
pub use provider::{ExecutionProvider, Usability, require, usability};
pub use session::{IoInfo, Outputs, Session};
pub use value::TensorView;
pub use weights::{HostWeight, PackedWeights, SharedWeights, WeightSource};
