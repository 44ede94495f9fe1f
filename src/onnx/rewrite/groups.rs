//! Normalisation of groups in operators that runtimes have. None of ONNX Runtime's providers implements `GroupNormalization`; ONNX's
//! own definition, which stands in, works out shapes while it runs, on the CPU. `InstanceNormalization`, in which a channel is a group,
//! CUDA has up to opset 21 only.

use crate::Result;
use crate::onnx::attr::Attrs;
use crate::onnx::graph::{Graph, Node, ValueId};
use crate::onnx::view::View;

/// `graph` with a `LayerNormalization` of fixed shapes in every one's place. For graphs that are run as they are: factors of one and
/// terms of zero are left out.
///
/// # Errors
/// None that a caller can cause.
pub fn expand_group_norms(graph: Graph) -> Result<Graph> {
    let opset = graph.opset;
    let is_expanded = |node: &Node| match node.op.as_str() {
        "GroupNormalization" => true,
        "InstanceNormalization" => opset >= 22,
        _ => false,
    };
    expand_all(graph, is_expanded, false)
}

/// `graph` without `GroupNormalization`, with all its parameters.
pub(super) fn expand_keeping_parameters(graph: Graph) -> Result<Graph> {
    expand_all(graph, |node| node.op == "GroupNormalization", true)
}

fn expand_all(mut graph: Graph, is_expanded: impl Fn(&Node) -> bool, keeps_all: bool) -> Result<Graph> {
    if !graph.nodes.iter().any(&is_expanded) {
        return Ok(graph);
    }
    // Nodes are put back one by one; none may be taken for one that is yet to come.
    graph.forget_equal_nodes();
    for node in std::mem::take(&mut graph.nodes) {
        match (is_expanded(&node), &node.inputs[..], &node.outputs[..]) {
            (true, [Some(x), Some(scale), Some(bias)], [Some(_)]) => {
                expand(&mut graph, &node, [*x, *scale, *bias], keeps_all)?;
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
fn expand(graph: &mut Graph, node: &Node, [x, scale, bias]: [ValueId; 3], keeps_all: bool) -> Result<()> {
    let view = View::new(graph, node);
    let epsilon = view.float("epsilon", 1e-5);
    let shape = graph.shape(x).to_vec();
    let groups = match node.op.as_str() {
        "InstanceNormalization" => shape[1],
        _ => view.int("num_groups", 1).max(1) as usize,
    };
    let (batch, per_sample) = (shape[0], shape[1..].iter().product::<usize>());
    // One per channel, or per group before opset 21.
    let scales = graph.shape(scale)[0];

    let flat = graph.reshape(x, &[batch, groups, per_sample / groups])?;
    let one = graph.scalar_like(x, 1.0);
    let ones = graph.expand(one, &[per_sample / groups])?;
    let attrs = Attrs::new().int("axis", 2).float("epsilon", epsilon);
    let normal = graph.op("LayerNormalization", &[flat, ones], attrs)?;
    let mut moved = graph.reshape(normal, &[batch, scales, per_sample / scales])?;
    // Exporters write normalisation of groups as one of instances that neither scales nor moves.
    let holds_only = |graph: &Graph, v: ValueId, number: f64| {
        let numbers = graph.constant_floats(v);
        numbers.is_some_and(|numbers| numbers.iter().all(|n| *n == number))
    };
    if keeps_all || !holds_only(graph, scale, 1.0) {
        let scale = graph.reshape(scale, &[1, scales, 1])?;
        moved = graph.mul(moved, scale)?;
    }
    if keeps_all || !holds_only(graph, bias, 0.0) {
        let bias = graph.reshape(bias, &[1, scales, 1])?;
        moved = graph.add(moved, bias)?;
    }
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
    use crate::onnx::{Constant, TensorType, validate};
    use crate::pipeline::network::{map_weights, session_over};
    use crate::runtime::{SessionOptions, TensorView};
    use crate::tensor::DType;

    const NORMS: [&str; 2] = ["GroupNormalization", "InstanceNormalization"];

    fn normalised(op: &str, shape: &[usize]) -> Graph {
        let mut g = Graph::new("groups", 22);
        let x = g.add_input("x", TensorType::new(DType::F32, shape));
        let scale = g.add_input("scale", TensorType::new(DType::F32, [6]));
        let bias = g.add_input("bias", TensorType::new(DType::F32, [6]));
        let attrs = match op {
            "GroupNormalization" => Attrs::new().int("num_groups", 3),
            _ => Attrs::new(),
        };
        let y = g.op(op, &[x, scale, bias], attrs.float("epsilon", 0.1)).unwrap();
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
        for (op, shape) in NORMS
            .into_iter()
            .flat_map(|op| [(op, &[2, 6, 4, 5][..]), (op, &[2, 6, 4])])
        {
            let expanded = expand_group_norms(normalised(op, shape)).unwrap();
            validate(&expanded).unwrap();
            assert!(expanded.nodes.iter().all(|n| n.op != op));
            for (found, wanted) in run(&expanded, shape)
                .iter()
                .zip(run(&normalised(op, shape), shape))
            {
                assert!((found - wanted).abs() < 1e-5, "{op}: {found} {wanted}");
            }
        }
    }

    #[test]
    fn instances_that_are_neither_scaled_nor_moved_take_no_further_operators() {
        let mut g = Graph::new("instances", 22);
        let x = g.add_input("x", TensorType::new(DType::F32, [2, 6, 4]));
        let (ones, zeros) = ([1.0; 6], [0.0; 6]);
        let scale = g.add_constant("scale", Constant::floats(DType::F32, &[6], &ones));
        let bias = g.add_constant("bias", Constant::floats(DType::F32, &[6], &zeros));
        let y = g
            .op("InstanceNormalization", &[x, scale, bias], Attrs::new())
            .unwrap();
        let y = g.as_output(y, "y").unwrap();
        g.outputs.push(y);
        let expanded = expand_group_norms(g).unwrap();
        assert!(
            expanded
                .nodes
                .iter()
                .all(|n| !["Mul", "Add"].contains(&n.op.as_str()))
        );
        let before_22 = Graph {
            opset: 21,
            ..normalised("InstanceNormalization", &[2, 6, 4])
        };
        let kept = expand_group_norms(before_22).unwrap();
        assert!(kept.nodes.iter().any(|n| n.op == "InstanceNormalization"));
    }
}
