//! A network that computes in half precision, with single precision at its borders.
//!
//! What a run feeds and what it measures is f32; so are its losses, its optimizer and what it trains. Inside, the network
//! stays as it was exported: a cast behind every input, and one before every output.

use std::collections::HashMap;

use super::branch::{SharedConstants, inline};
use crate::Result;
use crate::onnx::{Graph, TensorType};
use crate::tensor::DType;

/// `body` with inputs and outputs of f32 wherever it has such of half precision.
///
/// # Errors
/// None that a caller can cause.
pub fn in_single(body: &Graph) -> Result<Graph> {
    let mut graph = Graph::new(&body.name, body.opset);
    graph.ir_version = body.ir_version;
    graph.other_opsets.clone_from(&body.other_opsets);
    let mut given = HashMap::new();
    for input in &body.inputs {
        let ty = body.ty(*input).clone();
        let fed = graph.add_input(&body.name(*input), TensorType::new(wide(ty.dtype), ty.shape));
        given.insert(*input, graph.cast(fed, ty.dtype)?);
    }
    let outputs = inline(&mut graph, body, &given, None, &mut SharedConstants::new())?;
    for (old, new) in body.outputs.iter().zip(outputs) {
        let output = graph.cast(new, wide(body.dtype(*old)))?;
        graph.set_name(output, body.name(*old));
        graph.outputs.push(output);
    }
    graph.prune();
    graph.index_nodes();
    Ok(graph)
}

fn wide(dtype: DType) -> DType {
    match dtype.is_half() {
        true => DType::F32,
        false => dtype,
    }
}
