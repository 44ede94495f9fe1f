//! `GroupNormalization` in operators that runtimes have. None of ONNX Runtime's providers implements it; ONNX's own definition, which
//! stands in, works out shapes while it runs, on the CPU.

use super::attr::Attrs;
use super::graph::{Graph, Node, ValueId};
use super::view::View;
use crate::Result;

/// `graph` with a `LayerNormalization` of fixed shapes in every one's place.
///
/// # Errors
/// None that a caller can cause.
pub fn expand_group_norms(mut graph: Graph) -> Result<Graph> {
    if graph.nodes.iter().all(|n| n.op != "GroupNormalization") {
        return Ok(graph);
    }
    // Nodes are put back one by one; none may be taken for one that is yet to come.
    graph.forget_equal_nodes();
    for node in std::mem::take(&mut graph.nodes) {
        match (node.op.as_str(), &node.inputs[..], &node.outputs[..]) {
            ("GroupNormalization", [Some(x), Some(scale), Some(bias)], [Some(_)]) => {
                expand(&mut graph, &node, *x, *scale, *bias)?;
                let last = graph.nodes.last_mut().expect("nodes were made");
                last.outputs.clone_from(&node.outputs);
            }
            _ => graph.nodes.push(node),
        }
    }
    graph.forget_equal_nodes();
    Ok(graph)
}

/// The last node that it adds makes the result.
fn expand(graph: &mut Graph, node: &Node, x: ValueId, scale: ValueId, bias: ValueId) -> Result<()> {
    let view = View::new(graph, node);
    let groups = view.int("num_groups", 1).max(1) as usize;
    let epsilon = view.float("epsilon", 1e-5);
    let shape = graph.shape(x).to_vec();
    let (batch, per_sample) = (shape[0], shape[1..].iter().product::<usize>());
    // One per channel, or per group before opset 21.
    let scales = graph.shape(scale)[0];

    let flat = graph.reshape(x, &[batch, groups, per_sample / groups])?;
    let one = graph.scalar_like(x, 1.0);
    let ones = graph.expand(one, &[per_sample / groups])?;
    // Not `InstanceNormalization`, which CUDA has up to opset 21 only.
    let attrs = Attrs::new().int("axis", 2).float("epsilon", epsilon);
    let normal = graph.op("LayerNormalization", &[flat, ones], attrs)?;
    let normal = graph.reshape(normal, &[batch, scales, per_sample / scales])?;
    let scale = graph.reshape(scale, &[1, scales, 1])?;
    let scaled = graph.mul(normal, scale)?;
    let bias = graph.reshape(bias, &[1, scales, 1])?;
    let moved = graph.add(scaled, bias)?;
    let from = graph.nodes.len();
    graph.reshape(moved, &shape)?;
    // A reshape to the shape it has is none.
    if graph.nodes.len() == from {
        graph.op("Identity", &[moved], Attrs::new())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::onnx::{TensorType, validate};
    use crate::pipeline::network::{map_weights, session_over};
    use crate::runtime::{SessionOptions, TensorView};
    use crate::tensor::DType;

    fn normalised(shape: &[usize]) -> Graph {
        let mut g = Graph::new("groups", 21);
        let x = g.add_input("x", TensorType::new(DType::F32, shape));
        let scale = g.add_input("scale", TensorType::new(DType::F32, [6]));
        let bias = g.add_input("bias", TensorType::new(DType::F32, [6]));
        let attrs = Attrs::new().int("num_groups", 3).float("epsilon", 0.1);
        let y = g.op("GroupNormalization", &[x, scale, bias], attrs).unwrap();
        let y = g.as_output(y, "y").unwrap();
        g.outputs.push(y);
        g
    }

    fn run(graph: &Graph, shape: &[usize]) -> Vec<f32> {
        let weights = map_weights(graph).unwrap();
        let options = SessionOptions::default();
        let mut session = session_over(graph, Path::new("."), &weights, &options).unwrap();
        let len = shape.iter().product::<usize>();
        let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let (scale, bias) = ([0.5, 1.0, 1.5, 2.0, 2.5, 3.0], [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0]);
        let given = [
            ("x", TensorView::f32(shape, &x)),
            ("scale", TensorView::f32(&[6], &scale)),
            ("bias", TensorView::f32(&[6], &bias)),
        ];
        let y = session.run(&given).unwrap().take("y").unwrap();
        y.into_f32("y").unwrap().into_raw_vec_and_offset().0
    }

    #[test]
    fn what_stands_in_computes_what_onnx_defines() {
        for shape in [&[2, 6, 4, 5][..], &[2, 6, 4]] {
            let expanded = expand_group_norms(normalised(shape)).unwrap();
            validate(&expanded).unwrap();
            assert!(expanded.nodes.iter().all(|n| n.op != "GroupNormalization"));
            for (found, wanted) in run(&expanded, shape).iter().zip(run(&normalised(shape), shape)) {
                assert!((found - wanted).abs() < 1e-5, "{found} {wanted}");
            }
        }
    }
}
