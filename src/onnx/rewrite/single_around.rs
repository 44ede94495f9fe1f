//! Single precision around operators that a provider does not have in the precision of a graph.

use crate::Result;
use crate::onnx::graph::{Graph, Node};
use crate::tensor::DType;

/// Puts casts around every node of `graph` that `is_known` does not say is known in `dtype`: it reads and makes f32 instead, and
/// what it makes is rounded.
///
/// # Errors
/// None that a caller can cause.
pub fn single_around(graph: &mut Graph, dtype: DType, is_known: impl Fn(&Node) -> bool) -> Result<()> {
    // Nodes are put back one by one; none may be taken for one that is yet to come.
    graph.forget_equal_nodes();
    for mut node in std::mem::take(&mut graph.nodes) {
        let mut values = node.inputs.iter().chain(&node.outputs).flatten();
        let is_touched = values.any(|v| graph.dtype(*v) == dtype);
        if !is_touched || is_known(&node) {
            graph.nodes.push(node);
            continue;
        }
        for v in node.inputs.iter_mut().flatten() {
            if graph.dtype(*v) == dtype {
                *v = graph.cast(*v, DType::F32)?;
            }
        }
        let mut rounded = Vec::new();
        for v in node.outputs.iter_mut().flatten() {
            if graph.dtype(*v) == dtype {
                let mut ty = graph.ty(*v).clone();
                ty.dtype = DType::F32;
                rounded.push((*v, graph.push_value("", ty)));
                *v = rounded.last().expect("one was pushed").1;
            }
        }
        graph.nodes.push(node);
        for (narrow, wide) in rounded {
            graph.cast(wide, dtype)?;
            let cast = graph.nodes.last_mut().expect("a cast was made");
            cast.outputs = vec![Some(narrow)];
        }
    }
    graph.forget_equal_nodes();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Attrs, TensorType, validate};

    #[test]
    fn what_is_not_known_computes_in_single_precision() {
        let mut g = Graph::new("g", 22);
        let x = g.add_input("x", TensorType::new(DType::BF16, [4]));
        let a = g.op("Exp", &[x], Attrs::new()).unwrap();
        let b = g.op("Log", &[a], Attrs::new()).unwrap();
        let c = g.op("Log", &[b], Attrs::new()).unwrap();
        let wide = g.cast(c, DType::F32).unwrap();
        let y = g.op("Log", &[wide], Attrs::new()).unwrap();
        let y = g.as_output(y, "y").unwrap();
        g.outputs = vec![c, y];
        single_around(&mut g, DType::BF16, |node| node.op != "Log").unwrap();
        validate(&g).unwrap();
        let types = |op: &str| {
            let nodes = g.nodes.iter().filter(|n| n.op == op);
            nodes.map(|n| g.dtype(n.input(0).unwrap())).collect::<Vec<_>>()
        };
        assert_eq!(types("Exp"), [DType::BF16]);
        assert_eq!(types("Log"), [DType::F32; 3]);
        // Two in, two out, and the model's own.
        assert_eq!(types("Cast").len(), 5);
        assert_eq!(g.dtype(g.outputs[0]), DType::BF16);
    }
}
