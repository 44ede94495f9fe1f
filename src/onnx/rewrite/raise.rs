//! The same graph in a newer operator set: ONNX knows some types only there, as bfloat16 of convolutions from opset 22 on.

use super::groups::expand_keeping_parameters;
use crate::Result;
use crate::onnx::attr::Attr;
use crate::onnx::graph::{Graph, ir_version_for};
use crate::onnx::view::View;

/// `graph` in `opset`, or as it is where its own is as new. Graphs of opset 13 and above, in which sizes are fixed.
///
/// # Errors
/// None that a caller can cause.
pub fn raise(graph: Graph, opset: i64) -> Result<Graph> {
    let before = graph.opset;
    if before >= opset {
        return Ok(graph);
    }
    // Scales of `GroupNormalization` were one per group before opset 21.
    let mut graph = expand_keeping_parameters(graph)?;
    graph.opset = opset;
    graph.ir_version = graph.ir_version.max(ir_version_for(opset));
    graph.forget_equal_nodes();
    for mut node in std::mem::take(&mut graph.nodes) {
        match node.op.as_str() {
            // Axes became an input.
            op if before < 18 && opset >= 18 && op.starts_with("Reduce") && op != "ReduceSum" => {
                let axes = node.attrs.opt_ints("axes").map(<[i64]>::to_vec);
                node.attrs.0.retain(|(name, _)| name != "axes");
                if let Some(axes) = axes {
                    let axes = graph.ints(&axes);
                    node.inputs.push(Some(axes));
                }
            }
            // Parts of equal length have to be counted.
            "Split" if before < 18 && opset >= 18 && View::new(&graph, &node).ints(1)?.is_none() => {
                let parts = Attr::Int(node.outputs.len() as i64);
                node.attrs = node.attrs.with("num_outputs", parts);
            }
            _ => {}
        }
        graph.nodes.push(node);
    }
    graph.forget_equal_nodes();
    Ok(graph)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::onnx::{Attrs, Node, TensorType, validate};
    use crate::pipeline::network::{map_weights, session_over};
    use crate::runtime::{SessionOptions, TensorView};
    use crate::tensor::DType;

    /// What changed its form between opsets 17 and 22.
    fn old() -> Graph {
        let mut g = Graph::new("old", 17);
        let x = g.add_input("x", TensorType::new(DType::F32, [2, 4, 3]));
        let split = Node {
            op: "Split".into(),
            domain: String::new(),
            name: String::new(),
            inputs: vec![Some(x)],
            outputs: Vec::new(),
            attrs: Attrs::new().int("axis", 1),
            metadata: Vec::new(),
        };
        let parts = g.add_node(split, &[Some(""), Some("")]).unwrap();
        let (a, b) = (parts[0].unwrap(), parts[1].unwrap());
        let mean = g.reduce("ReduceMean", a, &[1, 2], true).unwrap();
        let attrs = Attrs::new().int("keepdims", 1);
        let most = g.op("ReduceMax", &[b], attrs).unwrap();
        let scale = g.add_input("scale", TensorType::new(DType::F32, [2]));
        let attrs = Attrs::new().float("epsilon", 0.1);
        let normal = g.op("InstanceNormalization", &[b, scale, scale], attrs).unwrap();
        let sum = g.add(mean, most).unwrap();
        let sum = g.add(sum, normal).unwrap();
        let y = g.as_output(sum, "y").unwrap();
        g.outputs.push(y);
        g
    }

    fn run(graph: &Graph) -> Vec<f32> {
        let weights = map_weights(graph).unwrap();
        let mut session = session_over(graph, Path::new("."), &weights, &SessionOptions::default()).unwrap();
        let x: Vec<f32> = (0..24).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let given = [
            ("x", TensorView::f32(&[2, 4, 3], &x)),
            ("scale", TensorView::f32(&[2], &[0.5, 2.0])),
        ];
        let y = session.run(&given).unwrap().take("y").unwrap();
        y.into_f32("y").unwrap().into_raw_vec_and_offset().0
    }

    #[test]
    fn a_newer_operator_set_computes_the_same() {
        let raised = raise(old(), 22).unwrap();
        validate(&raised).unwrap();
        assert_eq!((raised.opset, raised.ir_version), (22, 10));
        for (found, wanted) in run(&raised).iter().zip(run(&old())) {
            assert!((found - wanted).abs() < 1e-5, "{found} {wanted}");
        }
        assert_eq!(raise(old(), 13).unwrap().opset, 17);
    }
}
