//! Attention as one operator: ONNX Runtime's `MultiHeadAttention`, which goes over keys in blocks and never
//! has the matrix of all queries by all keys in memory.

use super::pattern::{Attention, find};
use crate::Result;
use crate::onnx::{Attrs, Graph, MICROSOFT, Node, ValueId};
use crate::runtime::ExecutionProvider;

/// Whether an execution provider has the operator.
fn is_fused_by(ep: ExecutionProvider) -> bool {
    use ExecutionProvider::{Cpu, Cuda, DirectMl, WebGpu};
    matches!(ep, Cpu | Cuda | DirectMl | WebGpu)
}

/// `graph` with attention [`fused`] where the provider has the operator, and as it is where not.
///
/// # Errors
/// None that a caller can cause.
pub fn fused_for(graph: Graph, ep: ExecutionProvider) -> Result<Graph> {
    match is_fused_by(ep) {
        true => fused(graph),
        false => Ok(graph),
    }
}

/// `graph` with one operator for every attention of several heads, `[B,H,N,D]`.
///
/// # Errors
/// None that a caller can cause.
pub fn fused(mut graph: Graph) -> Result<Graph> {
    // From the end, so that positions before stay what they are.
    for attention in find(&graph).into_iter().rev() {
        if let Some(scale) = attention.scale.filter(|_| has_heads(&graph, &attention)) {
            attention.replace(&mut graph, |graph| one_operator(graph, &attention, scale))?;
            graph.other_opsets.insert(MICROSOFT.to_owned(), 1);
        }
    }
    Ok(graph)
}

/// Whether all three are of one type, and have the same heads.
fn has_heads(graph: &Graph, attention: &Attention) -> bool {
    let given = [attention.queries, attention.keys, attention.values];
    let dtype = graph.dtype(attention.queries);
    let heads = |v: ValueId| (graph.rank(v) == 4).then(|| graph.shape(v)[..2].to_vec());
    let first = heads(attention.queries);
    first.is_some()
        && given
            .iter()
            .all(|v| graph.dtype(*v) == dtype && heads(*v) == first)
}

fn one_operator(graph: &mut Graph, attention: &Attention, scale: f64) -> Result<ValueId> {
    let [batch, heads, queries, width] = graph.shape(attention.queries)[..] else {
        unreachable!("only attention of several heads is fused")
    };
    // Heads side by side for all three: with heads in front, ONNX Runtime's CPU kernel makes the whole matrix after all.
    let rows = graph.transpose(attention.queries, &[0, 2, 1, 3])?;
    let rows = graph.reshape(rows, &[batch, queries, heads * width])?;
    let [keys, values] =
        [(attention.keys, [0, 3, 1, 2]), (attention.values, [0, 2, 1, 3])].map(|(v, perm)| {
            let v = graph.transpose(v, &perm)?;
            let [batch, rows, heads, width] = graph.shape(v)[..] else {
                unreachable!("only attention of several heads is fused")
            };
            graph.reshape(v, &[batch, rows, heads * width])
        });
    let node = Node {
        op: "MultiHeadAttention".to_owned(),
        domain: MICROSOFT.to_owned(),
        name: String::new(),
        inputs: vec![Some(rows), Some(keys?), Some(values?)],
        outputs: Vec::new(),
        attrs: Attrs::new()
            .int("num_heads", heads as i64)
            .float("scale", scale as f32),
        metadata: Vec::new(),
    };
    let made = graph.add_node(node, &[Some("")])?[0].expect("one output was asked for");
    let made = graph.reshape(made, &[batch, queries, heads, graph.shape(attention.values)[3]])?;
    graph.transpose(made, &[0, 2, 1, 3])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::pattern::tests::attention;
    use super::*;
    use crate::onnx::{TensorType, validate};
    use crate::pipeline::network::{map_weights, session_over};
    use crate::runtime::{SessionOptions, TensorView};
    use crate::tensor::DType;

    /// Attention of 3 heads over 2 samples, scaled twice, with the layout of heads that exporters write.
    fn heads() -> Graph {
        let mut g = Graph::new("attention", 17);
        let split = |g: &mut Graph, name: &str, rows: usize, perm: [usize; 4]| {
            let x = g.add_input(name, TensorType::new(DType::F32, [2, rows, 12]));
            let x = g.reshape(x, &[2, rows, 3, 4]).unwrap();
            g.transpose(x, &perm).unwrap()
        };
        let q = split(&mut g, "q", 10, [0, 2, 1, 3]);
        let k = split(&mut g, "k", 6, [0, 2, 3, 1]);
        let v = split(&mut g, "v", 6, [0, 2, 1, 3]);
        let scores = g.matmul(q, k).unwrap();
        let scores = g.scale(scores, 0.75).unwrap();
        let two = g.scalar_like(scores, 2.0);
        let scores = g.div(scores, two).unwrap();
        let shares = g.op("Softmax", &[scores], Attrs::new().int("axis", -1)).unwrap();
        let out = g.matmul(shares, v).unwrap();
        let out = g.transpose(out, &[0, 2, 1, 3]).unwrap();
        let out = g.reshape(out, &[2, 10, 12]).unwrap();
        let out = g.as_output(out, "out").unwrap();
        g.outputs.push(out);
        g
    }

    fn run(graph: &Graph) -> Vec<f32> {
        let weights = map_weights(graph).unwrap();
        let options = SessionOptions::default();
        let mut session = session_over(graph, Path::new("."), &weights, &options).unwrap();
        let values = |rows: usize, seed: f32| -> Vec<f32> {
            (0..2 * rows * 12).map(|i| (i as f32 * seed).sin()).collect()
        };
        let (q, k, v) = (values(10, 0.7), values(6, 1.3), values(6, 2.1));
        let given = [
            ("q", TensorView::f32(&[2, 10, 12], &q)),
            ("k", TensorView::f32(&[2, 6, 12], &k)),
            ("v", TensorView::f32(&[2, 6, 12], &v)),
        ];
        let out = session.run(&given).unwrap().take("out").unwrap();
        out.into_f32("out").unwrap().into_raw_vec_and_offset().0
    }

    #[test]
    fn one_operator_computes_the_same() {
        let graph = fused(heads()).unwrap();
        validate(&graph).unwrap();
        let has = |op: &str| graph.nodes.iter().any(|n| n.op == op);
        assert!(has("MultiHeadAttention") && !has("Softmax") && !has("MatMul"));
        for (found, wanted) in run(&graph).iter().zip(run(&heads())) {
            assert!((found - wanted).abs() < 1e-6, "{found} {wanted}");
        }
    }

    #[test]
    fn attention_without_heads_stays_as_it_is() {
        let graph = fused(attention()).unwrap();
        assert!(graph.nodes.iter().any(|n| n.op == "Softmax"));
        assert!(graph.other_opsets.is_empty());
    }
}
