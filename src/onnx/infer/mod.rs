//! Shape rules: the type of every output of a node from its inputs' types and constants.
//!
//! All shapes are plain numbers here; a shape that depends on data (`NonZero`, a computed `Reshape` target that folding
//! could not resolve) is an error that names the node.

mod arrange;
mod contract;
mod create;
mod elementwise;
mod fused;
mod norm;
mod pick;
mod resample;

pub use arrange::transpose_perm;

use super::graph::{Graph, MICROSOFT, Node, TensorType};
use super::view::View;
use crate::kernels::ORTDPO;
use crate::{Error, Result};

/// Types of the first `outputs` outputs of `node`.
pub fn infer(graph: &Graph, node: &Node, outputs: usize) -> Result<Vec<TensorType>> {
    let view = View::new(graph, node);
    let found = match node.domain.as_str() {
        "" | "ai.onnx" => standard(&view, outputs)?,
        MICROSOFT => fused::infer(&view)?,
        ORTDPO => fused::infer_own(&view)?,
        _ => None,
    };
    let types = found.ok_or_else(|| unknown(graph, node))?;
    if types.len() < outputs {
        return Err(view.error(format!(
            "has {outputs} outputs, of which ortdpo knows {}",
            types.len()
        )));
    }
    if let Some(ty) = types.iter().find(|ty| !ty.is_countable()) {
        return Err(view.error(format!("makes an impossibly large tensor {ty}")));
    }
    Ok(types)
}

fn standard(v: &View, outputs: usize) -> Result<Option<Vec<TensorType>>> {
    for family in [
        elementwise::infer,
        norm::infer,
        arrange::infer,
        pick::infer,
        create::infer,
        contract::infer,
        resample::infer,
    ] {
        if let Some(types) = family(v, outputs)? {
            return Ok(Some(types));
        }
    }
    Ok(None)
}

fn unknown(graph: &Graph, node: &Node) -> Error {
    let domain = if node.domain.is_empty() {
        String::new()
    } else {
        format!(" of domain `{}`", node.domain)
    };
    Error::bad(
        node.place(graph),
        format!("operator {}{domain} has no shape rule in ortdpo", node.op),
        "Export the model with standard ONNX operators (opset 13 to 23), without runtime-specific fusions.",
    )
}
