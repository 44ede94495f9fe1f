//! One timestep per sample.
//!
//! Some exports take a single `timestep` (a scalar, or one element) and expand it to the batch inside the graph. For
//! training, every sample has its own: the expansion is found, and what it makes is fed directly.

use std::collections::HashMap;

use super::branch;
use crate::onnx::{Graph, TensorType, ValueId};
use crate::{Error, Result};

/// The network with an input `timestep` of shape `[batch]`; unchanged if it already has one.
pub fn per_sample(graph: Graph, batch: usize) -> Result<Graph> {
    let timestep = graph.input("timestep")?;
    if graph.shape(timestep) == [batch] {
        return Ok(graph);
    }
    if graph.ty(timestep).len() != 1 {
        return Err(Error::bad(
            format!("graph `{}`: input `timestep`", graph.name),
            format!(
                "has shape {:?}, neither one element nor one per sample ({batch})",
                graph.shape(timestep)
            ),
            "Export the UNet with a timestep of shape [batch].",
        ));
    }
    let (ends, dtype_path) = expansion(&graph, timestep, batch)?;
    let mut out = Graph::new(&graph.name, graph.opset);
    out.ir_version = graph.ir_version;
    out.other_opsets.clone_from(&graph.other_opsets);
    let mut given = HashMap::new();
    for input in &graph.inputs {
        let mut ty = graph.ty(*input).clone();
        if *input == timestep {
            ty = TensorType::new(ty.dtype, vec![batch]);
        }
        let id = out.add_input(&graph.name(*input), ty);
        given.insert(*input, id);
    }
    let fed = given[&timestep];
    for (end, dtype) in ends.iter().zip(dtype_path) {
        let value = out.cast(fed, dtype)?;
        let value = out.reshape(value, graph.shape(*end))?;
        given.insert(*end, value);
    }
    branch::finish_copy(out, &graph, &given, None)
}

/// Follows `timestep` through nodes that only change its type or shape, to the values with one element per sample.
fn expansion(
    graph: &Graph,
    timestep: ValueId,
    batch: usize,
) -> Result<(Vec<ValueId>, Vec<crate::tensor::DType>)> {
    let mut trail = vec![timestep];
    let mut ends = Vec::new();
    let mut i = 0;
    while i < trail.len() {
        let value = trail[i];
        i += 1;
        for node in graph.nodes.iter().filter(|n| n.inputs.contains(&Some(value))) {
            let passes = matches!(
                node.op.as_str(),
                "Cast" | "Unsqueeze" | "Squeeze" | "Reshape" | "Expand" | "Tile" | "Identity"
            );
            let made = node.output(0).filter(|_| passes && node.input(0) == Some(value));
            // Multiplying by ones is how older diffusers versions expand.
            let made = made.or_else(|| {
                node.output(0)
                    .filter(|v| node.op == "Mul" && graph.ty(*v).len() == batch)
            });
            match made {
                Some(v) if graph.ty(v).len() == batch && batch > 1 => ends.push(v),
                Some(v) => trail.push(v),
                None if batch == 1 => ends.push(value),
                None => {
                    return Err(Error::bad(
                        node.place(graph),
                        "uses the single timestep before it is expanded to the batch",
                        "Export the UNet with a timestep of shape [batch].",
                    ));
                }
            }
        }
    }
    ends.dedup();
    let dtypes = ends.iter().map(|v| graph.dtype(*v)).collect();
    Ok((ends, dtypes))
}
