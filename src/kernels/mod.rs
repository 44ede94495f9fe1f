//! Operators of ortdpo's own for the CPU, where standard ones would be slow or large. Arithmetic only: [`crate::runtime`] makes
//! ONNX Runtime call it, and a form in standard operators stands beside each for every other execution provider.

mod attention_gradient;

pub use attention_gradient::{AttentionShape, Gradients, Operands, attention_gradients};
