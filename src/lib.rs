//! Preference optimisation for text-to-image diffusion models on stock ONNX Runtime.

#![warn(missing_docs)]

mod error;
pub mod model_folder;
pub mod tensor;

pub use error::{Error, Result};
