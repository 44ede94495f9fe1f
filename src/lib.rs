//! Preference optimisation for text-to-image diffusion models on stock ONNX Runtime.

#![warn(missing_docs)]

mod error;

pub use error::{Error, Result};
