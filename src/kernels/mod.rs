//! Operators of ortdpo's own for the CPU, where standard ones would be slow or large. Arithmetic only: [`crate::runtime`] makes
//! ONNX Runtime call it, and a form in standard operators stands beside each for every other execution provider.

mod attention_gradient;

/// Domain of these operators, in sessions on the CPU.
pub const ORTDPO: &str = "ortdpo";
/// Backward pass of `MultiHeadAttention`: Q, K, V, O, dO → dQ, dK, dV; attributes `num_heads` and `scale`.
pub const ATTENTION_GRADIENT: &str = "AttentionGradient";

pub use attention_gradient::{AttentionShape, Gradients, Operands, attention_gradients};
