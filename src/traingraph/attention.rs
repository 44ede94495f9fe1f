//! Attention in chunks of queries, so that the matrix of all queries by all keys never is in memory as a whole.
//!
//! `softmax(s·Q·Kᵀ)·V` is `softmax(s·Qᵢ·Kᵀ)·V` for every chunk `Qᵢ` of the queries, one below the other: a `Split`, the same
//! nodes per chunk, a `Concat`. The chunks are named as parts ([`PART`]), which recomputation goes through one by one.

use std::ops::Range;

use crate::Result;
use crate::autodiff::PART;
use crate::onnx::{Attrs, Graph, Node, ValueId, View};

/// Bytes of an attention matrix above which it is made in chunks of about this size.
const LIMIT: usize = 64 << 20;

/// One attention: its nodes from the scores to the product with the values, all but the last with a single reader.
struct Attention {
    nodes: Vec<usize>,
    queries: ValueId,
    chunks: usize,
}

/// Puts attention whose matrix is larger than 64 MiB into chunks. Values keep their names, and layers their order.
///
/// # Errors
/// None that a caller can cause.
pub fn in_chunks(graph: Graph) -> Result<Graph> {
    in_chunks_of(graph, LIMIT)
}

/// [`in_chunks`] with another limit, in bytes.
///
/// # Errors
/// None that a caller can cause.
pub fn in_chunks_of(mut graph: Graph, limit: usize) -> Result<Graph> {
    let found = find(&graph, limit);
    let mut part = 0;
    // From the end, so that positions before stay what they are.
    for attention in found.into_iter().rev() {
        replace(&mut graph, &attention, &mut part)?;
    }
    Ok(graph)
}

/// All attentions with matrices of more than `limit` bytes.
fn find(graph: &Graph, limit: usize) -> Vec<Attention> {
    let mut readers = vec![Vec::new(); graph.value_count()];
    for (i, node) in graph.nodes.iter().enumerate() {
        for v in node.inputs.iter().flatten() {
            readers[graph.index(*v)].push(i);
        }
    }
    for v in &graph.outputs {
        readers[graph.index(*v)].push(usize::MAX);
    }
    let producers = graph.producers();
    let softmaxes = graph.nodes.iter().enumerate().filter(|(_, n)| n.op == "Softmax");
    let attention = |(i, node): (usize, &Node)| {
        let scores = node.input(0)?;
        let rank = graph.rank(scores);
        let bytes = graph.ty(scores).len() * graph.dtype(scores).size();
        let is_last = View::new(graph, node).axis_attr(0, -1).ok()? + 1 == rank;
        if bytes <= limit || !is_last || rank < 2 {
            return None;
        }
        let only_reader = |v: ValueId| match readers[graph.index(v)][..] {
            [one] if one != usize::MAX => Some(one),
            _ => None,
        };
        let mut nodes = vec![i];
        // Up to the product of queries and keys.
        let mut v = scores;
        let queries = loop {
            let made = producers[graph.index(v)]?;
            let node = &graph.nodes[made];
            only_reader(v)?;
            nodes.push(made);
            match node.op.as_str() {
                "MatMul" => break node.input(0)?,
                _ => v = elementwise(graph, node)?,
            }
        };
        nodes.reverse();
        // Down to the product with the values.
        let mut v = node.output(0)?;
        loop {
            let next = only_reader(v)?;
            let node = &graph.nodes[next];
            nodes.push(next);
            match node.op.as_str() {
                "MatMul" if node.input(0) == Some(v) => break,
                "MatMul" => return None,
                _ if elementwise(graph, node)? == v => v = node.output(0)?,
                _ => return None,
            }
        }
        let rows = graph.shape(queries)[graph.rank(queries) - 2];
        let chunks = bytes.div_ceil(limit).min(rows);
        (graph.rank(queries) == rank).then_some(Attention {
            nodes,
            queries,
            chunks,
        })
    };
    softmaxes.filter_map(attention).collect()
}

/// The input that `node` works on number by number, if there is at most a single number beside it.
fn elementwise(graph: &Graph, node: &Node) -> Option<ValueId> {
    let is_binary = match node.op.as_str() {
        "Cast" | "Identity" => false,
        "Mul" | "Div" | "Add" | "Sub" => true,
        _ => return None,
    };
    let shape = graph.shape(node.output(0)?);
    let given = || node.inputs.iter().flatten().copied();
    let numbers = given().filter(|v| graph.ty(*v).len() == 1).count();
    let found = given().find(|v| graph.shape(*v) == shape);
    if is_binary && numbers != 1 { None } else { found }
}

fn replace(graph: &mut Graph, attention: &Attention, part: &mut usize) -> Result<()> {
    let originals: Vec<Node> = attention.nodes.iter().map(|i| graph.nodes[*i].clone()).collect();
    let last = *attention.nodes.last().expect("an attention has nodes");
    let made_from = graph.nodes.len();
    let axis = graph.rank(attention.queries) - 2;
    let rows = graph.shape(attention.queries)[axis];
    let lengths: Vec<i64> = spans(rows, attention.chunks)
        .map(|span| span.len() as i64)
        .collect();
    let sizes = graph.ints(&lengths);
    let attrs = Attrs::new().int("axis", axis as i64);
    let queries = graph.op_n(
        "Split",
        &[Some(attention.queries), Some(sizes)],
        attrs,
        lengths.len(),
    )?;
    let mut results = Vec::with_capacity(queries.len());
    for chunk in queries {
        *part += 1;
        results.push(one_chunk(graph, &originals, attention.queries, chunk, *part)?);
    }
    graph.concat(&results, axis)?;
    // The joined result takes the place and the value of the last node.
    let mut made = graph.nodes.split_off(made_from);
    let joined = made.last_mut().expect("chunks were made");
    joined.outputs = originals[originals.len() - 1].outputs.clone();
    graph.nodes.splice(last..=last, made);
    let gone: Vec<usize> = attention.nodes[..attention.nodes.len() - 1].to_vec();
    let mut i = 0;
    graph.nodes.retain(|_| {
        i += 1;
        !gone.contains(&(i - 1))
    });
    Ok(())
}

/// The nodes of an attention for one chunk of its queries.
fn one_chunk(
    graph: &mut Graph,
    nodes: &[Node],
    queries: ValueId,
    chunk: ValueId,
    part: usize,
) -> Result<ValueId> {
    let (mut old, mut new) = (queries, chunk);
    for original in nodes {
        let mut node = original.clone();
        let position = node.inputs.iter().position(|v| *v == Some(old));
        node.inputs[position.expect("each node reads the one before")] = Some(new);
        node.metadata.push((PART.to_owned(), part.to_string()));
        old = original.output(0).expect("these operators have one output");
        new = graph.add_node(node, &[Some("")])?[0].expect("one output was asked for");
    }
    Ok(new)
}

/// `rows` shared out among `chunks` as evenly as can be.
fn spans(rows: usize, chunks: usize) -> impl Iterator<Item = Range<usize>> {
    (0..chunks).map(move |k| rows * k / chunks..rows * (k + 1) / chunks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{TensorType, validate};
    use crate::tensor::DType;

    /// Scaled attention of 2 heads, 10 queries and 6 keys: a matrix of 480 bytes.
    fn attention() -> Graph {
        let mut g = Graph::new("attention", 17);
        let q = g.add_input("q", TensorType::new(DType::F32, [2, 10, 4]));
        let k = g.add_input("k", TensorType::new(DType::F32, [2, 6, 4]));
        let v = g.add_input("v", TensorType::new(DType::F32, [2, 6, 4]));
        let keys = g.transpose_last(k).unwrap();
        let scores = g.matmul(q, keys).unwrap();
        let scores = g.scale(scores, 0.5).unwrap();
        let attrs = Attrs::new().int("axis", -1);
        let shares = g.op("Softmax", &[scores], attrs).unwrap();
        let values = g.unary("Neg", v).unwrap();
        let out = g.matmul(shares, values).unwrap();
        let out = g.unary("Neg", out).unwrap();
        let out = g.as_output(out, "out").unwrap();
        g.outputs.push(out);
        g
    }

    fn operators(graph: &Graph, op: &str) -> usize {
        graph.nodes.iter().filter(|n| n.op == op).count()
    }

    #[test]
    fn large_matrices_are_made_in_chunks() {
        let g = in_chunks_of(attention(), 200).unwrap();
        validate(&g).unwrap();
        let all = ["Split", "Softmax", "MatMul", "Mul", "Concat", "Neg"].map(|op| operators(&g, op));
        assert_eq!(all, [1, 3, 6, 3, 1, 2]);
        let rows: Vec<usize> = g
            .nodes
            .iter()
            .filter(|n| n.op == "Softmax")
            .map(|n| g.shape(n.output(0).unwrap())[1])
            .collect();
        assert_eq!(rows, [3, 3, 4]);
        let largest = g.nodes.iter().flat_map(|n| n.outputs.iter().flatten());
        assert!(
            largest.map(|v| g.ty(*v).len()).max().unwrap() <= 80,
            "{:?}",
            g.nodes
        );
    }

    #[test]
    fn small_matrices_stay_whole() {
        let g = in_chunks_of(attention(), 480).unwrap();
        assert_eq!(operators(&g, "Split"), 0);
    }

    #[test]
    fn a_matrix_that_somebody_else_reads_stays_whole() {
        let mut g = attention();
        let softmax = g.nodes.iter().find(|n| n.op == "Softmax").unwrap();
        g.outputs.push(softmax.output(0).unwrap());
        let g = in_chunks_of(g, 200).unwrap();
        assert_eq!(operators(&g, "Split"), 0);
    }

    #[test]
    fn chunks_share_out_all_rows() {
        for (rows, chunks) in [(10, 3), (4096, 17), (5, 5), (7, 1)] {
            let found: Vec<Range<usize>> = spans(rows, chunks).collect();
            assert_eq!((found[0].start, found[chunks - 1].end), (0, rows));
            assert!(
                found
                    .windows(2)
                    .all(|w| w[0].end == w[1].start && !w[0].is_empty())
            );
        }
    }
}
