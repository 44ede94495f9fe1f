//! Hidden states inside a text encoder's graph: what transformers calls `hidden_states[i]` is the output of encoder
//! layer i − 1, the last node that the exporter made of that layer.

use std::path::Path;

use crate::onnx::{Graph, ValueId};
use crate::traingraph::layers::scope_of;
use crate::{Error, Result};

/// Makes `hidden_states[index]` an output called `name`.
pub fn expose(graph: &mut Graph, index: usize, name: &str, path: &Path) -> Result<()> {
    let value = layer_output(graph, index - 1, path)?;
    let value = graph.as_output(value, name)?;
    graph.outputs.push(value);
    Ok(())
}

/// Lets the final layer norm read `hidden_states[index]` instead of the last ones: CLIP-skip of SD 1.x and 2.x.
pub fn end_after(graph: &mut Graph, index: usize, path: &Path) -> Result<()> {
    let mut last = index;
    while layer_end(graph, last).is_some() {
        last += 1;
    }
    let from = layer_output(graph, last - 1, path)?;
    let to = layer_output(graph, index - 1, path)?;
    let reads_norm = |scope: Option<String>| scope.is_some_and(|s| s.ends_with("final_layer_norm"));
    let mut moved = false;
    for node in &mut graph.nodes {
        if reads_norm(scope_of(node)) {
            for input in node.inputs.iter_mut().filter(|input| **input == Some(from)) {
                *input = Some(to);
                moved = true;
            }
        }
    }
    if !moved {
        return Err(unknown_structure(path, "no final_layer_norm after its layers"));
    }
    // The outputs that the export has besides, such as pooled embeddings, are not asked for.
    graph.outputs.retain({
        let wanted = graph.output("last_hidden_state").ok();
        move |output| Some(*output) == wanted
    });
    graph.prune();
    graph.index_nodes();
    Ok(())
}

fn layer_output(graph: &Graph, layer: usize, path: &Path) -> Result<ValueId> {
    layer_end(graph, layer)
        .ok_or_else(|| unknown_structure(path, &format!("no node that says it belongs to layer {layer}")))
}

fn layer_end(graph: &Graph, layer: usize) -> Option<ValueId> {
    let own = format!("layers.{layer}");
    let belongs = |scope: &str| {
        let mut rest = scope;
        while let Some(at) = rest.find(&own) {
            let end = at + own.len();
            let starts = at == 0 || rest.as_bytes()[at - 1] == b'.';
            if starts && matches!(rest.as_bytes().get(end), None | Some(b'.')) {
                return true;
            }
            rest = &rest[end..];
        }
        false
    };
    let found = graph
        .nodes
        .iter()
        .rfind(|node| scope_of(node).is_some_and(|s| belongs(&s)));
    found.and_then(|node| node.output(0))
}

fn unknown_structure(path: &Path, what: &str) -> Error {
    Error::bad(
        path.display().to_string(),
        format!("has {what}"),
        "Export the text encoder again with optimum, with output_hidden_states.",
    )
}
