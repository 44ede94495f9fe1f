//! Operators of ONNX Runtime's own domain that ortdpo writes.

use crate::Result;
use crate::onnx::graph::TensorType;
use crate::onnx::view::View;

/// Types of the outputs, if it is one of them.
pub fn infer(v: &View) -> Result<Option<Vec<TensorType>>> {
    if v.node.op != "MultiHeadAttention" {
        return Ok(None);
    }
    // Queries [B,N,H·D], keys [B,M,H·D] and values [B,M,H·Dv].
    let (queries, values) = (v.ty(0)?.clone(), v.shape(2)?);
    match (&queries.shape[..], values) {
        ([batch, rows, _], [_, _, width]) => {
            let shape = vec![*batch, *rows, *width];
            Ok(Some(vec![TensorType::new(queries.dtype, shape)]))
        }
        _ => Err(v.error("has keys and values in a layout that ortdpo does not write")),
    }
}
