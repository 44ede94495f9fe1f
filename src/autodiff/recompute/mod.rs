//! Recomputation: what the backward pass needs of the forward pass is computed again there instead of being kept.
//!
//! The nodes that matter for gradients are cut into *segments* where little has to be remembered ([`plan`], in
//! `segments.rs`). When the backward pass enters a segment from its end, the segment's nodes are added once more, and the
//! gradient rules are shown the copies. What lies before the segment comes through [`Graph::after`]: the copies wait for all
//! gradients found so far, so that a runtime can neither merge them with the originals nor run them early. Copies that no
//! rule uses are pruned with everything else that leads nowhere.
//!
//! A segment can hold *parts* (attention in chunks of queries). Then its copies give what the parts start from, and each part
//! is copied again when the backward pass enters it, so that one part's matrices live at a time.

mod segments;

use std::collections::HashMap;
use std::ops::Range;

use super::Recompute;
use crate::Result;
use crate::onnx::{Graph, Node, Token, ValueId};
pub use segments::PART;
use segments::{Segment, plan};

/// The copies that the backward pass sees, while it walks from the last node to the first.
pub(super) struct Recomputation {
    level: Recompute,
    segments: Vec<Segment>,
    /// Position of each node's segment.
    segment_of: Vec<Option<usize>>,
    /// Whether a node is copied: those on a way from what is differentiated.
    active: Vec<bool>,
    /// Whether a value is kept although its segment is computed again.
    kept: Vec<bool>,
    entered: Option<usize>,
    entered_part: Option<usize>,
    /// Copies of the segment's values, and of the part's.
    whole: HashMap<ValueId, ValueId>,
    part: HashMap<ValueId, ValueId>,
    /// Values from before the segment or the part, made to wait.
    waiting: HashMap<ValueId, ValueId>,
    /// Gradients found since the last copies were made.
    fresh: Vec<ValueId>,
}

impl Recomputation {
    /// Plans for the nodes of `graph`, of which those with `active` outputs are differentiated.
    pub fn new(graph: &Graph, active: &[bool], level: Recompute) -> Self {
        let is_active = |n: &Node| n.outputs.iter().flatten().any(|v| active[graph.index(*v)]);
        let nodes: Vec<bool> = graph.nodes.iter().map(is_active).collect();
        let (segments, kept) = match level {
            Recompute::None => (Vec::new(), Vec::new()),
            _ => plan(graph, &nodes, level),
        };
        let mut segment_of = vec![None; graph.nodes.len()];
        for (k, segment) in segments.iter().enumerate() {
            segment_of[segment.nodes.clone()].fill(Some(k));
        }
        Self {
            level,
            segments,
            segment_of,
            active: nodes,
            kept,
            entered: None,
            entered_part: None,
            whole: HashMap::new(),
            part: HashMap::new(),
            waiting: HashMap::new(),
            fresh: Vec::new(),
        }
    }

    /// Takes note of a gradient, for which later copies wait.
    pub fn found(&mut self, gradient: ValueId) {
        if self.level != Recompute::None {
            self.fresh.push(gradient);
        }
    }

    /// Node `i` as a rule is to see it. Called from the last node to the first.
    pub fn node(&mut self, graph: &mut Graph, i: usize) -> Result<Node> {
        let mut node = graph.nodes[i].clone();
        let Some(k) = self.segment_of.get(i).copied().flatten() else {
            return Ok(node);
        };
        if self.entered != Some(k) {
            self.enter(graph, k)?;
        }
        let parts = &self.segments[k].parts;
        let part = parts.iter().position(|p| p.contains(&i));
        if let Some(p) = part
            && self.entered_part != part
        {
            self.enter_part(graph, k, p)?;
        }
        let own = if part.is_some() { &self.part } else { &self.whole };
        for v in node.inputs.iter_mut().chain(&mut node.outputs).flatten() {
            *v = own.get(v).or_else(|| self.whole.get(v)).copied().unwrap_or(*v);
        }
        Ok(node)
    }

    fn enter(&mut self, graph: &mut Graph, k: usize) -> Result<()> {
        self.entered = Some(k);
        self.entered_part = None;
        self.whole.clear();
        self.part.clear();
        let segment = self.segments[k].clone();
        if !segment.is_last {
            let token = self.start(graph)?;
            self.whole = self.copies(graph, segment.nodes, token)?;
        }
        Ok(())
    }

    fn enter_part(&mut self, graph: &mut Graph, k: usize, p: usize) -> Result<()> {
        self.entered_part = Some(p);
        let nodes = self.segments[k].parts[p].clone();
        let token = self.start(graph)?;
        self.part = self.copies(graph, nodes, token)?;
        Ok(())
    }

    /// A token of everything found since the last one.
    fn start(&mut self, graph: &mut Graph) -> Result<Token> {
        self.waiting.clear();
        self.fresh.sort();
        self.fresh.dedup();
        let token = graph.token(&self.fresh);
        self.fresh.clear();
        token
    }

    /// Copies of the active ones of `nodes`, what they start from waiting for `token`: values by their originals.
    fn copies(
        &mut self,
        graph: &mut Graph,
        nodes: Range<usize>,
        token: Token,
    ) -> Result<HashMap<ValueId, ValueId>> {
        let mut made: HashMap<ValueId, ValueId> = HashMap::new();
        for i in nodes {
            if !self.active[i] || self.is_kept(graph, &graph.nodes[i]) {
                continue;
            }
            let mut node = graph.nodes[i].clone();
            for v in node.inputs.iter_mut().flatten() {
                *v = match made.get(v) {
                    Some(copy) => *copy,
                    None => self.from_before(graph, *v, token)?,
                };
            }
            let names = vec![Some(""); node.outputs.len()];
            let outputs = node.outputs.clone();
            let copies = graph.add_node(node, &names)?;
            for (original, copy) in outputs.iter().zip(copies) {
                if let (Some(original), Some(copy)) = (original, copy) {
                    made.insert(*original, copy);
                }
            }
        }
        Ok(made)
    }

    /// `value`, which the nodes that are copied do not make, after `token`.
    fn from_before(&mut self, graph: &mut Graph, value: ValueId, token: Token) -> Result<ValueId> {
        // In a part, values of the segment are the segment's copies.
        let start = self.whole.get(&value).copied().unwrap_or(value);
        if graph.constants.contains_key(&start) || graph.inputs.contains(&start) {
            return Ok(start);
        }
        if let Some(waiting) = self.waiting.get(&start) {
            return Ok(*waiting);
        }
        let waiting = graph.after(start, token)?;
        self.waiting.insert(start, waiting);
        Ok(waiting)
    }

    fn is_kept(&self, graph: &Graph, node: &Node) -> bool {
        node.outputs.iter().flatten().any(|v| self.kept[graph.index(*v)])
    }
}
