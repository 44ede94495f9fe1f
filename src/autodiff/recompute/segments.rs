//! Where a forward pass is cut for recomputation.
//!
//! Between two cuts everything is computed again, so what lives at the peak is what crosses the cuts, and the largest
//! segment with its gradients. For a bound on a segment's size, dynamic programming finds the cuts over which the fewest bytes
//! cross; the bound wins with which both together are least. Residual networks are cut where a block has been added to its input,
//! without anything being read from names.

use std::collections::HashSet;
use std::ops::Range;

use super::super::Recompute;
use crate::onnx::{Graph, Node, ValueId};

/// Metadata key of nodes that belong to a part of a segment (attention over a chunk of the queries): consecutive nodes with
/// the same value are one part.
pub const PART: &str = "ortdpo.part";

/// Bounds on the size of segments that are tried: all active values divided by these.
const FRACTIONS: [usize; 15] = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256];

/// Consecutive nodes that are computed again together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub nodes: Range<usize>,
    /// Ranges in it that are computed again one at a time.
    pub parts: Vec<Range<usize>>,
    /// Whether the backward pass begins in it: its values are still there.
    pub is_last: bool,
}

/// The segments of the nodes that are `active`, and which values are kept though a segment makes them.
pub(super) fn plan(graph: &Graph, active: &[bool], level: Recompute) -> (Vec<Segment>, Vec<bool>) {
    let kept = match level {
        Recompute::NormAttention => outputs_of_products(graph),
        _ => vec![false; graph.value_count()],
    };
    let costs = Costs::new(graph, active, &kept);
    let all: usize = costs.bytes.iter().sum();
    let plans = FRACTIONS.iter().filter_map(|n| costs.cut(all / n));
    let best = plans.min_by_key(|p| p.crossing + p.largest);
    let cuts = best.map_or_else(|| vec![0, active.len()], |p| p.cuts);
    let last = cuts.len().saturating_sub(2);
    let ranges = cuts.windows(2).map(|w| w[0]..w[1]).enumerate();
    let segments = ranges.map(|(k, nodes)| Segment {
        parts: parts(graph, nodes.clone()),
        nodes,
        is_last: k == last,
    });
    (segments.collect(), kept)
}

/// Ranges of nodes with the same [`PART`].
fn parts(graph: &Graph, nodes: Range<usize>) -> Vec<Range<usize>> {
    let mut found: Vec<(&str, Range<usize>)> = Vec::new();
    for i in nodes {
        let Some(part) = part(&graph.nodes[i]) else {
            continue;
        };
        match found.last_mut() {
            Some((last, range)) if *last == part && range.end == i => range.end = i + 1,
            _ => found.push((part, i..i + 1)),
        }
    }
    found.into_iter().map(|(_, range)| range).collect()
}

fn part(node: &Node) -> Option<&str> {
    let entry = node.metadata.iter().find(|(key, _)| key == PART);
    entry.map(|(_, value)| value.as_str())
}

/// Values that convolutions and products with weights make, sums of such (a layer, its bias, its adapter), and what attention as
/// one operator makes: dear to compute again, and small. Products of two activations, as in attention, are not among them.
fn outputs_of_products(graph: &Graph) -> Vec<bool> {
    let mut kept = vec![false; graph.value_count()];
    let given: HashSet<ValueId> = graph
        .inputs
        .iter()
        .chain(graph.constants.keys())
        .copied()
        .collect();
    for node in &graph.nodes {
        let weighs = |v: &ValueId| graph.rank(*v) == 2;
        let is_dear = match node.op.as_str() {
            _ if part(node).is_some() => false,
            "Conv" | "ConvTranspose" | "Gemm" | "MultiHeadAttention" => true,
            "MatMul" => node.inputs.iter().flatten().any(weighs),
            "Add" => {
                let made: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
                let small = |v: &ValueId| given.contains(v);
                made.iter().all(|v| kept[graph.index(*v)] || small(v)) && !made.iter().all(small)
            }
            _ => false,
        };
        if is_dear {
            for v in node.outputs.iter().flatten() {
                kept[graph.index(*v)] = true;
            }
        }
    }
    kept
}

/// A way to cut, and what it takes.
struct Cuts {
    /// First node of every segment, and the end of the last.
    cuts: Vec<usize>,
    /// Bytes that cross cuts.
    crossing: usize,
    /// Bytes of the largest segment.
    largest: usize,
}

/// What every node contributes to the size of a segment.
struct Costs {
    /// Bytes that the node's active values take.
    bytes: Vec<usize>,
    /// The last node that reads one of them in the forward pass.
    last_use: Vec<usize>,
    /// Part of the node, as a number that is its own, if it has one.
    part: Vec<Option<usize>>,
    /// Where a cut may be, first and last included.
    places: Vec<usize>,
    /// Where a cut must be.
    forced: Vec<bool>,
}

impl Costs {
    fn new(graph: &Graph, active: &[bool], kept: &[bool]) -> Self {
        let n = active.len();
        let mut read_last = vec![0; graph.value_count()];
        for (i, node) in graph.nodes.iter().enumerate() {
            for v in node.inputs.iter().flatten() {
                read_last[graph.index(*v)] = i;
            }
        }
        let (mut bytes, mut last_use) = (vec![0; n], vec![0; n]);
        for (i, node) in graph.nodes.iter().enumerate() {
            for v in node.outputs.iter().flatten().filter(|_| active[i]) {
                let slot = graph.index(*v);
                last_use[i] = last_use[i].max(read_last[slot]);
                // A view is its input's memory; its later uses keep that.
                if !kept[slot] && !node.is_view() {
                    bytes[i] += graph.ty(*v).len() * graph.dtype(*v).size();
                }
            }
        }
        let producers = graph.producers();
        for (i, node) in graph.nodes.iter().enumerate().rev() {
            if let (true, Some(made)) = (
                node.is_view(),
                node.input(0).and_then(|v| producers[graph.index(v)]),
            ) {
                last_use[made] = last_use[made].max(last_use[i]);
            }
        }
        let mut part_of = vec![None; n];
        let mut forced = vec![false; n + 1];
        for (k, range) in parts(graph, 0..n).into_iter().enumerate() {
            part_of[range.clone()].fill(Some(k));
            let follows = graph.nodes.get(range.end);
            // After the node that joins the parts: its value is kept, so that the parts are computed again once, not twice.
            if follows.is_some_and(|n| part(n).is_none()) && range.end < n {
                forced[range.end + 1] = true;
            }
        }
        let mut costs = Self {
            bytes,
            last_use,
            part: part_of,
            places: Vec::new(),
            forced,
        };
        costs.places = costs.places();
        costs
    }

    /// Positions at which fewer bytes cross than on either side, outside of parts.
    fn places(&self) -> Vec<usize> {
        let n = self.bytes.len();
        let mut change = vec![0_i64; n + 2];
        for i in 0..n {
            // The value crosses positions i+1 ..= last_use.
            if self.last_use[i] > i {
                change[i + 1] += self.bytes[i] as i64;
                change[self.last_use[i] + 1] -= self.bytes[i] as i64;
            }
        }
        let mut crossing = 0;
        let crosses: Vec<i64> = change
            .iter()
            .map(|c| {
                crossing += c;
                crossing
            })
            .collect();
        let inside = |p: usize| self.part[p].is_some() && self.part[p - 1].is_some();
        let mut places = vec![0];
        for p in 1..n {
            let is_low = crosses[p] <= crosses[p - 1] && crosses[p] < crosses[p + 1];
            if self.forced[p] || (is_low && !inside(p)) {
                places.push(p);
            }
        }
        places.push(n);
        places
    }

    /// The cuts over which the fewest bytes cross, with segments of at most `limit` bytes where that is possible.
    fn cut(&self, limit: usize) -> Option<Cuts> {
        #[derive(Clone, Copy)]
        struct Best {
            crossing: usize,
            largest: usize,
            from: usize,
        }
        let start = Best {
            crossing: 0,
            largest: 0,
            from: 0,
        };
        let mut best: Vec<Option<Best>> = vec![Some(start)];
        for (k, &p) in self.places.iter().enumerate().skip(1) {
            let mut found: Option<Best> = None;
            let (mut size, mut crossing) = (Size::default(), 0);
            let mut i = p;
            for j in (0..k).rev() {
                while i > self.places[j] {
                    i -= 1;
                    size.add(self.part[i], self.bytes[i]);
                    if self.last_use[i] >= p {
                        crossing += self.bytes[i];
                    }
                }
                if j + 1 < k && size.bytes() > limit {
                    break;
                }
                if let Some(before) = best[j] {
                    let all = before.crossing + crossing;
                    if found.is_none_or(|f| all < f.crossing) {
                        found = Some(Best {
                            crossing: all,
                            largest: before.largest.max(size.bytes()),
                            from: j,
                        });
                    }
                }
                if self.forced[self.places[j]] {
                    break;
                }
            }
            best.push(found);
        }
        let end = best.last().copied().flatten()?;
        let (mut cuts, mut k) = (Vec::new(), self.places.len() - 1);
        while k > 0 {
            cuts.push(self.places[k]);
            k = best[k]?.from;
        }
        cuts.push(0);
        cuts.reverse();
        Some(Cuts {
            cuts,
            crossing: end.crossing,
            largest: end.largest,
        })
    }
}

/// Size of a segment, of whose parts one is there at a time.
#[derive(Default)]
struct Size {
    outside: usize,
    largest_part: usize,
    part: (Option<usize>, usize),
}

impl Size {
    fn add(&mut self, part: Option<usize>, bytes: usize) {
        if part.is_none() {
            self.outside += bytes;
            return;
        }
        if self.part.0 != part {
            self.part = (part, 0);
        }
        self.part.1 += bytes;
        self.largest_part = self.largest_part.max(self.part.1);
    }

    fn bytes(&self) -> usize {
        self.outside + self.largest_part
    }
}
