//! Attention as one operator: ONNX Runtime's `MultiHeadAttention`, which goes over keys in blocks and never
//! has the matrix of all queries by all keys in memory.

use super::pattern::{Attention, Search, find};
use crate::Result;
use crate::onnx::{Attrs, Graph, MICROSOFT, Node, ValueId, View};
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

/// `graph` with one operator for every attention of several heads.
///
/// # Errors
/// None that a caller can cause.
pub fn fused(graph: Graph) -> Result<Graph> {
    fused_above(graph, 0)
}

/// [`fused`] where the matrix of all queries by all keys has more than `limit` bytes.
///
/// # Errors
/// None that a caller can cause.
pub fn fused_above(mut graph: Graph, limit: usize) -> Result<Graph> {
    let all = find(&graph).into_iter().filter(|a| a.matrix_bytes > limit);
    // From the end, so that positions before stay what they are.
    for mut attention in all.collect::<Vec<_>>().into_iter().rev() {
        let Some(heads) = Heads::of(&graph, &mut attention) else {
            continue;
        };
        attention.replace(&mut graph, |graph| heads.one_operator(graph))?;
        graph.other_opsets.insert(MICROSOFT.to_owned(), 1);
    }
    Ok(graph)
}

/// An operand with heads apart.
#[derive(Clone, Copy)]
struct Operand {
    value: ValueId,
    /// `[B,H,D,N]`, not `[B,H,N,D]`.
    is_transposed: bool,
}

/// The operands of an attention of several heads.
struct Heads {
    queries: Operand,
    keys: Operand,
    values: Operand,
    scale: f64,
}

impl Heads {
    /// Those of `attention`, if it has heads, multiplies by a number only, and all operands are of one type. Where heads and
    /// samples are one dimension, the reshape that takes the result apart again becomes part of `attention`.
    fn of(graph: &Graph, attention: &mut Attention) -> Option<Self> {
        let search = Search::new(graph);
        let found = Self {
            queries: apart(graph, &search, attention.queries, false)?,
            keys: apart(graph, &search, attention.keys, true)?,
            values: apart(graph, &search, attention.values, false)?,
            scale: attention.scale?,
        };
        let all = [found.queries, found.keys, found.values].map(|o| o.value);
        let kind = |v: ValueId| (graph.dtype(v), graph.shape(v)[..2].to_vec());
        if all.iter().any(|v| kind(*v) != kind(all[0])) {
            return None;
        }
        if graph.rank(attention.queries) == 3 {
            let last = *attention.nodes.last()?;
            let result = graph.nodes[last].output(0)?;
            let reader = search.only_reader(result)?;
            let shape = graph.shape(graph.nodes[reader].output(0)?);
            let is_apart =
                graph.nodes[reader].op == "Reshape" && shape.len() == 4 && shape[..2] == kind(all[0]).1;
            if !is_apart {
                return None;
            }
            attention.nodes.push(reader);
        }
        Some(found)
    }

    /// `[B,H,N,D]`.
    fn one_operator(&self, graph: &mut Graph) -> Result<ValueId> {
        let heads = graph.shape(self.queries.value)[1];
        // Heads side by side for all three: with heads in front, ONNX Runtime's CPU kernel makes the whole matrix after all.
        let mut side_by_side = |operand: Operand| -> Result<ValueId> {
            let perm = if operand.is_transposed {
                [0, 3, 1, 2]
            } else {
                [0, 2, 1, 3]
            };
            let v = graph.transpose(operand.value, &perm)?;
            let [batch, rows, heads, width] = graph.shape(v)[..] else {
                unreachable!("heads are apart")
            };
            graph.reshape(v, &[batch, rows, heads * width])
        };
        let inputs = [self.queries, self.keys, self.values].map(&mut side_by_side);
        let inputs = inputs.into_iter().collect::<Result<Vec<_>>>()?;
        let node = Node {
            op: "MultiHeadAttention".to_owned(),
            domain: MICROSOFT.to_owned(),
            name: String::new(),
            inputs: inputs.into_iter().map(Some).collect(),
            outputs: Vec::new(),
            attrs: Attrs::new()
                .int("num_heads", heads as i64)
                .float("scale", self.scale as f32),
            metadata: Vec::new(),
        };
        let made = graph.add_node(node, &[Some("")])?[0].expect("one output was asked for");
        let [batch, rows, wide] = graph.shape(made)[..] else {
            unreachable!("heads are side by side")
        };
        let made = graph.reshape(made, &[batch, rows, heads, wide / heads])?;
        graph.transpose(made, &[0, 2, 1, 3])
    }
}

/// `value` with heads apart: as it is, or what a reshape made one dimension of heads and samples from.
fn apart(graph: &Graph, search: &Search, value: ValueId, is_transposed: bool) -> Option<Operand> {
    if graph.rank(value) == 4 {
        return Some(Operand { value, is_transposed });
    }
    let node = search.producer(value)?;
    let given = node.input(0)?;
    match node.op.as_str() {
        "Transpose" if View::new(graph, node).sizes("perm").ok()? == Some(vec![0, 2, 1]) => {
            apart(graph, search, given, !is_transposed)
        }
        "Reshape" => {
            let (four, three) = (graph.shape(given), graph.shape(value));
            let merges =
                four.len() == 4 && three.len() == 3 && [four[0] * four[1], four[2], four[3]] == three[..];
            merges.then_some(Operand {
                value: given,
                is_transposed,
            })
        }
        _ => None,
    }
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

    /// The same as [`heads`], with samples and heads as one dimension, as diffusers' plain attention has them.
    fn merged_heads() -> Graph {
        let mut g = Graph::new("attention", 17);
        let split = |g: &mut Graph, name: &str, rows: usize| {
            let x = g.add_input(name, TensorType::new(DType::F32, [2, rows, 12]));
            let x = g.reshape(x, &[2, rows, 3, 4]).unwrap();
            let x = g.transpose(x, &[0, 2, 1, 3]).unwrap();
            g.reshape(x, &[6, rows, 4]).unwrap()
        };
        let (q, k, v) = (
            split(&mut g, "q", 10),
            split(&mut g, "k", 6),
            split(&mut g, "v", 6),
        );
        let keys = g.transpose(k, &[0, 2, 1]).unwrap();
        let scores = g.matmul(q, keys).unwrap();
        let scores = g.scale(scores, 0.375).unwrap();
        let shares = g.op("Softmax", &[scores], Attrs::new().int("axis", -1)).unwrap();
        let out = g.matmul(shares, v).unwrap();
        let out = g.reshape(out, &[2, 3, 10, 4]).unwrap();
        let out = g.transpose(out, &[0, 2, 1, 3]).unwrap();
        let out = g.reshape(out, &[2, 10, 12]).unwrap();
        let out = g.as_output(out, "out").unwrap();
        g.outputs.push(out);
        g
    }

    #[test]
    fn samples_and_heads_in_one_dimension_are_taken_apart() {
        let graph = fused(merged_heads()).unwrap();
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
