//! Which operators execution providers compute in bfloat16.
//!
//! From sessions of one operator of opset 22 that were made with ONNX Runtime 1.31.1; `tests/cuda_placement.rs` holds whole steps to
//! what is said of CUDA.

use super::provider::ExecutionProvider;
use crate::onnx::{MICROSOFT, Node};

/// The operator set from which on ONNX knows bfloat16 of convolutions.
pub const BFLOAT16_OPSET: i64 = 22;

/// What moves elements and does no arithmetic with them.
const MOVES: [&str; 13] = [
    "Cast",
    "Concat",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// What else CUDA computes in bfloat16, or of it. Not among it are `ConvTranspose`, `InstanceNormalization`, `Resize`, `Pad`, `Log`,
/// `Reciprocal` and most reductions.
const ON_CUDA: [&str; 31] = [
    "Abs",
    "Add",
    "Clip",
    "Conv",
    "Cos",
    "Div",
    "Erf",
    "Exp",
    "Expand",
    "Gelu",
    "Gemm",
    "LayerNormalization",
    "MatMul",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Pow",
    "ReduceMean",
    "ReduceSum",
    "Relu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Size",
    "Softmax",
    "Sqrt",
    "Sub",
    "Tanh",
    "Tile",
    "Where",
];

/// Whether a network can be computed in bfloat16: by CUDA, and on the CPU by casts around whatever does arithmetic.
pub fn has_bfloat16(ep: ExecutionProvider) -> bool {
    matches!(ep, ExecutionProvider::Cpu | ExecutionProvider::Cuda)
}

/// Whether the provider computes this node in bfloat16.
pub fn computes_in_bfloat16(ep: ExecutionProvider, node: &Node) -> bool {
    let op = node.op.as_str();
    let is_cuda = ep == ExecutionProvider::Cuda;
    match node.domain.as_str() {
        "" => MOVES.contains(&op) || is_cuda && ON_CUDA.contains(&op),
        MICROSOFT => is_cuda && op == "MultiHeadAttention",
        _ => false,
    }
}
