//! Slices that share out a tensor become one `Split`.
//!
//! The legacy exporter writes `chunk` (the halves of a gated feed-forward layer) as one `Slice` per part. A `Split` says
//! the same in one pass over the tensor, and its gradient is one `Concat` where each slice would add a padded tensor.

use indexmap::IndexMap;

use super::attr::Attrs;
use super::graph::{Graph, Node, ValueId};
use super::view::View;

/// A slice of consecutive elements along one axis.
struct Part {
    start: i64,
    len: usize,
    node: usize,
    output: ValueId,
}

/// Replaces every set of slices that covers a tensor's dimension without gap or overlap. Values keep their names.
pub(super) fn join(graph: &mut Graph) {
    let mut groups: IndexMap<(ValueId, usize), Vec<Part>> = IndexMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        if let Some((x, axis, part)) = consecutive(graph, node, i) {
            groups.entry((x, axis)).or_default().push(part);
        }
    }
    let mut gone = vec![false; graph.nodes.len()];
    for ((x, axis), mut parts) in groups {
        parts.sort_by_key(|p| p.start);
        if parts.len() < 2 || !shares_out(&parts, graph.shape(x)[axis]) {
            continue;
        }
        let lengths: Vec<i64> = parts.iter().map(|p| p.len as i64).collect();
        let lengths = graph.ints(&lengths);
        parts.iter().for_each(|p| gone[p.node] = true);
        let first = parts
            .iter()
            .map(|p| p.node)
            .min()
            .expect("there are two parts at least");
        gone[first] = false;
        let node = &mut graph.nodes[first];
        *node = Node {
            op: "Split".into(),
            inputs: vec![Some(x), Some(lengths)],
            outputs: parts.iter().map(|p| Some(p.output)).collect(),
            attrs: Attrs::new().int("axis", axis as i64),
            ..node.clone()
        };
    }
    let mut gone = gone.into_iter();
    graph.nodes.retain(|_| !gone.next().expect("one flag per node"));
}

/// What `node` slices, if it takes consecutive elements along a single axis.
fn consecutive(graph: &Graph, node: &Node, index: usize) -> Option<(ValueId, usize, Part)> {
    if node.op != "Slice" || !node.domain.is_empty() {
        return None;
    }
    let (x, output) = (node.input(0)?, node.output(0)?);
    let cuts = View::new(graph, node).slice_axes().ok()?;
    let [cut] = cuts[..] else { return None };
    (cut.step == 1 && cut.len > 0).then_some((
        x,
        cut.axis,
        Part {
            start: cut.start,
            len: cut.len,
            node: index,
            output,
        },
    ))
}

fn shares_out(parts: &[Part], size: usize) -> bool {
    let mut end = 0;
    for part in parts {
        if part.start != end {
            return false;
        }
        end += part.len as i64;
    }
    end == size as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{TensorType, validate};
    use crate::tensor::DType;

    /// The operators left after joining slices of `cuts` along the dimension of 6 of a tensor.
    fn joined(cuts: &[(usize, usize)]) -> Vec<String> {
        let mut g = Graph::new("slices", 17);
        let x = g.add_input("x", TensorType::new(DType::F32, [2, 6]));
        for (i, (start, end)) in cuts.iter().enumerate() {
            let part = g.slice(x, 1, *start, *end).unwrap();
            let y = g.unary("Exp", part).unwrap();
            let y = g.as_output(y, &format!("y{i}")).unwrap();
            g.outputs.push(y);
        }
        join(&mut g);
        validate(&g).unwrap();
        g.nodes.iter().map(|n| n.op.clone()).collect()
    }

    #[test]
    fn parts_that_cover_a_dimension_are_joined_in_any_order() {
        assert_eq!(joined(&[(3, 6), (0, 2), (2, 3)]), ["Split", "Exp", "Exp", "Exp"]);
    }

    #[test]
    fn gaps_overlaps_and_single_parts_stay() {
        assert_eq!(joined(&[(0, 2), (3, 6)]), ["Slice", "Exp", "Slice", "Exp"]);
        assert_eq!(joined(&[(0, 4), (3, 6)]), ["Slice", "Exp", "Slice", "Exp"]);
        assert_eq!(joined(&[(0, 4)]), ["Slice", "Exp"]);
    }
}
