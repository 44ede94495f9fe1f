//! Whether a graph is what every pass relies on: values made once and before they are used, types that the shape rules
//! agree with, names that a caller can tell apart.

use std::collections::HashSet;

use super::data::TensorData;
use super::graph::{Graph, Node, ValueId};
use super::infer;
use crate::{Error, Result};

/// Checks `graph`.
///
/// # Errors
/// The first place where the graph is not sound. Graphs come out of this program's own passes, so that is its defect.
pub fn validate(graph: &Graph) -> Result<()> {
    let mut made = HashSet::new();
    let sources = graph.inputs.iter().chain(graph.constants.keys());
    for v in sources {
        if !made.insert(*v) {
            return Err(defect(graph, *v, "is an input or constant twice"));
        }
    }
    for (v, constant) in &graph.constants {
        let ty = graph.ty(*v);
        if constant.dtype != ty.dtype || constant.shape != ty.shape {
            return Err(defect(graph, *v, &format!("is {ty}, but its constant is not")));
        }
        let length = match &constant.data {
            TensorData::Inline(bytes) => bytes.len() as u64,
            TensorData::External { length, .. } => *length,
        };
        // Strings have no size of their own.
        if length != (ty.len() * ty.dtype.size()) as u64 && ty.dtype.size() > 0 {
            return Err(defect(graph, *v, &format!("is {ty}, but has {length} bytes")));
        }
    }
    for node in &graph.nodes {
        check_node(graph, node, &mut made)?;
    }
    let mut names = HashSet::new();
    for v in graph.inputs.iter().chain(&graph.outputs) {
        if !made.contains(v) {
            return Err(defect(graph, *v, "is an output that nothing makes"));
        }
        if !names.insert(graph.name(*v)) && !graph.inputs.contains(v) {
            return Err(defect(graph, *v, "shares its name with another input or output"));
        }
    }
    match graph
        .parameters
        .iter()
        .find(|v| !graph.constants.contains_key(*v))
    {
        Some(v) => Err(defect(graph, *v, "is a parameter, but no constant")),
        None => Ok(()),
    }
}

/// Checks one node; what it makes joins `made`.
fn check_node(graph: &Graph, node: &Node, made: &mut HashSet<ValueId>) -> Result<()> {
    if let Some(v) = node.inputs.iter().flatten().find(|v| !made.contains(*v)) {
        let what = format!("is used by {} before it is made", node.place(graph));
        return Err(defect(graph, *v, &what));
    }
    let types = infer::infer(graph, node, node.outputs.len())?;
    for (v, ty) in node.outputs.iter().zip(types) {
        let Some(v) = v else { continue };
        if *graph.ty(*v) != ty {
            let what = format!("is {}, but {} makes {ty}", graph.ty(*v), node.place(graph));
            return Err(defect(graph, *v, &what));
        }
        if !made.insert(*v) {
            return Err(defect(graph, *v, "is made twice"));
        }
    }
    Ok(())
}

fn defect(graph: &Graph, value: ValueId, what: &str) -> Error {
    Error::bad(
        format!("graph `{}`: value `{}`", graph.name, graph.name(value)),
        what,
        "This is a defect of ortdpo; please report it.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::TensorType;
    use crate::tensor::DType;

    /// `y = −|x|`.
    fn chain() -> Graph {
        let mut g = Graph::new("chain", 17);
        let x = g.add_input("x", TensorType::new(DType::F32, [2]));
        let size = g.unary("Abs", x).unwrap();
        let y = g.neg(size).unwrap();
        let y = g.as_output(y, "y").unwrap();
        g.outputs.push(y);
        g
    }

    fn fault(change: impl FnOnce(&mut Graph)) -> String {
        let mut g = chain();
        validate(&g).unwrap();
        change(&mut g);
        validate(&g).unwrap_err().to_string()
    }

    #[test]
    fn unsound_graphs_are_told() {
        assert!(fault(|g| g.nodes.reverse()).contains("before it is made"));
        assert!(fault(|g| g.nodes.push(g.nodes[1].clone())).contains("made twice"));
        assert!(fault(|g| g.nodes.truncate(1)).contains("nothing makes"));
        assert!(fault(|g| g.inputs.push(g.inputs[0])).contains("twice"));
        assert!(fault(|g| g.set_name(g.outputs[0], "x")).contains("shares its name"));
        let other_type = |g: &mut Graph| {
            g.nodes[0].op = "IsNaN".into();
        };
        assert!(fault(other_type).contains("makes bool[2]"));
    }
}
