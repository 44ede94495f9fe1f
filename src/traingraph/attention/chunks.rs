//! Attention in chunks of queries, so that the matrix of all queries by all keys never is in memory as a whole.
//!
//! `softmax(s·Q·Kᵀ)·V` is `softmax(s·Qᵢ·Kᵀ)·V` for every chunk `Qᵢ` of the queries, one below the other: a `Split`, the same
//! nodes per chunk, a `Concat`. The chunks are named as parts ([`PART`]), which recomputation goes through one by one.

use super::pattern::{Attention, find};
use crate::Result;
use crate::autodiff::PART;
use crate::onnx::{Graph, LARGE_MATRIX, Node, ValueId};

/// Puts attention whose matrix is larger than 64 MiB into chunks. Values keep their names, and layers their order.
///
/// # Errors
/// None that a caller can cause.
pub fn in_chunks(graph: Graph) -> Result<Graph> {
    in_chunks_of(graph, LARGE_MATRIX)
}

/// [`in_chunks`] with another limit, in bytes.
///
/// # Errors
/// None that a caller can cause.
pub fn in_chunks_of(mut graph: Graph, limit: usize) -> Result<Graph> {
    let mut part = 0;
    // From the end, so that positions before stay what they are.
    for attention in find(&graph).into_iter().rev() {
        if attention.matrix_bytes > limit {
            replace(&mut graph, &attention, limit, &mut part)?;
        }
    }
    Ok(graph)
}

fn replace(graph: &mut Graph, attention: &Attention, limit: usize, part: &mut usize) -> Result<()> {
    let originals: Vec<Node> = attention.nodes.iter().map(|i| graph.nodes[*i].clone()).collect();
    attention.replace(graph, |graph| {
        let axis = graph.rank(attention.queries) - 2;
        let rows = graph.shape(attention.queries)[axis];
        let chunks = attention.matrix_bytes.div_ceil(limit).min(rows);
        let queries = graph.in_parts(attention.queries, axis, chunks)?;
        let mut results = Vec::with_capacity(queries.len());
        for chunk in queries {
            *part += 1;
            results.push(one_chunk(graph, &originals, attention.queries, chunk, *part)?);
        }
        graph.concat(&results, axis)
    })
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

#[cfg(test)]
mod tests {
    use super::super::pattern::tests::attention;
    use super::*;
    use crate::onnx::validate;

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
}
