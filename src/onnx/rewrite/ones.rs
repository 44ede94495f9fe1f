//! Multiplications and divisions by one, which exporters write where a factor of the architecture is one. ONNX Runtime drops them from
//! graphs in single and half precision, but not in bfloat16.

use std::collections::HashMap;

use crate::onnx::graph::{Graph, Node, ValueId};

/// Hands on the other operand of every `x · 1` and `x / 1` whose result has the shape of `x` and is no output of the graph. For graphs
/// that are run as they are: a one that is a parameter would not be trained afterwards.
pub fn drop_ones(graph: &mut Graph) {
    let mut same: HashMap<ValueId, ValueId> = HashMap::new();
    for mut node in std::mem::take(&mut graph.nodes) {
        for v in node.inputs.iter_mut().flatten() {
            *v = *same.get(v).unwrap_or(v);
        }
        match kept(graph, &node) {
            Some((result, operand)) => {
                same.insert(result, operand);
            }
            None => graph.nodes.push(node),
        }
    }
    graph.prune();
}

/// The result of a node that does nothing, and the operand that it equals.
fn kept(graph: &Graph, node: &Node) -> Option<(ValueId, ValueId)> {
    let is_one = |i: usize| {
        let numbers = node.input(i).and_then(|v| graph.constant_floats(v));
        numbers.is_some_and(|numbers| numbers.iter().all(|n| *n == 1.0))
    };
    let operand = match node.op.as_str() {
        "Mul" | "Div" if is_one(1) => node.input(0)?,
        "Mul" if is_one(0) => node.input(1)?,
        _ => return None,
    };
    let result = node.output(0)?;
    let is_same = graph.ty(result) == graph.ty(operand) && !graph.outputs.contains(&result);
    (node.domain.is_empty() && is_same).then_some((result, operand))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Attrs, TensorType, validate};
    use crate::tensor::DType;

    #[test]
    fn what_does_nothing_is_gone_and_what_does_something_stays() {
        let mut g = Graph::new("g", 22);
        let x = g.add_input("x", TensorType::new(DType::F32, [3]));
        let (one, two) = (g.scalar(DType::F32, 1.0), g.scalar(DType::F32, 2.0));
        let a = g.op("Div", &[x, one], Attrs::new()).unwrap();
        let b = g.op("Mul", &[one, a], Attrs::new()).unwrap();
        let inverse = g.op("Div", &[one, b], Attrs::new()).unwrap();
        let twice = g.op("Mul", &[inverse, two], Attrs::new()).unwrap();
        let ones = g.expand(one, &[2, 3]).unwrap();
        let wider = g.op("Mul", &[twice, ones], Attrs::new()).unwrap();
        let last = g.op("Mul", &[wider, one], Attrs::new()).unwrap();
        let y = g.as_output(last, "y").unwrap();
        g.outputs.push(y);
        drop_ones(&mut g);
        validate(&g).unwrap();
        let ops: Vec<&str> = g.nodes.iter().map(|n| n.op.as_str()).collect();
        // The last one is the output.
        let kept: Vec<&str> = ops.iter().copied().filter(|op| *op != "Expand").collect();
        assert_eq!(kept, ["Div", "Mul", "Mul", "Mul"], "{ops:?}");
        assert_eq!(g.nodes[0].input(1), Some(x));
    }
}
