//! Operators beside the standard ones that ortdpo writes: of ONNX Runtime's own domain, and of ours.

use crate::Result;
use crate::kernels::ATTENTION_GRADIENT;
use crate::onnx::graph::TensorType;
use crate::onnx::view::View;

/// Types of the outputs, if it is one of them.
pub fn infer(v: &View) -> Result<Option<Vec<TensorType>>> {
    if v.node.op != "MultiHeadAttention" {
        return Ok(None);
    }
    // Queries [B,N,H·D], keys [B,M,H·D] and values [B,M,H·Dv].
    if v.node.outputs.len() > 1 {
        return Err(v.error("gives keys and values back, which ortdpo does not read"));
    }
    let heads = usize::try_from(v.int("num_heads", 0)).unwrap_or(0);
    let (queries, values) = (v.ty(0)?.clone(), v.shape(2)?);
    match (&queries.shape[..], values) {
        ([batch, rows, inner], [_, _, width])
            if heads > 0 && inner.is_multiple_of(heads) && width.is_multiple_of(heads) =>
        {
            let shape = vec![*batch, *rows, *width];
            Ok(Some(vec![TensorType::new(queries.dtype, shape)]))
        }
        _ => Err(v.error("has heads, keys or values in a layout that ortdpo does not read")),
    }
}

/// Types of the outputs of an operator of ortdpo's own.
pub fn infer_own(v: &View) -> Result<Option<Vec<TensorType>>> {
    if v.node.op != ATTENTION_GRADIENT {
        return Ok(None);
    }
    let types = [v.ty(0)?, v.ty(1)?, v.ty(2)?];
    Ok(Some(types.map(TensorType::clone).to_vec()))
}
