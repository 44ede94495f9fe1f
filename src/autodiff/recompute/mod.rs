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

use indexmap::IndexMap;

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
    /// Node that makes each value.
    producers: Vec<Option<usize>>,
    /// Gradients found since the last copies were made, by what they are gradients of.
    fresh: IndexMap<ValueId, ValueId>,
    /// What the last copies waited for.
    token: Option<Token>,
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
            producers: graph.producers(),
            fresh: IndexMap::new(),
            token: None,
        }
    }

    /// Takes note of the gradient of `value` so far, for which later copies wait.
    pub fn found(&mut self, value: ValueId, gradient: ValueId) {
        if self.level != Recompute::None {
            self.fresh.insert(value, gradient);
        }
    }

    /// Node `i` as a rule is to see it. Called from the last node to the first.
    pub fn node(&mut self, graph: &mut Graph, i: usize) -> Result<Node> {
        let mut node = graph.nodes[i].clone();
        let Some(k) = self.segment_of.get(i).copied().flatten() else {
            return Ok(node);
        };
        if self.entered != Some(k) {
            self.enter(graph, k, i)?;
        }
        let parts = &self.segments[k].parts;
        let part = parts.iter().position(|p| p.contains(&i));
        if let Some(p) = part
            && self.entered_part != part
        {
            self.enter_part(graph, k, p, i)?;
        }
        let seen = |v: ValueId| match self.part.get(&v).filter(|_| part.is_some()) {
            Some(copy) => *copy,
            // Also what the copies start from is seen waiting, or what a rule makes of it could be computed early.
            None => {
                let start = self.whole.get(&v).copied().unwrap_or(v);
                self.waiting.get(&start).copied().unwrap_or(start)
            }
        };
        for v in node.inputs.iter_mut().chain(&mut node.outputs).flatten() {
            *v = seen(*v);
        }
        Ok(node)
    }

    fn enter(&mut self, graph: &mut Graph, k: usize, i: usize) -> Result<()> {
        self.entered = Some(k);
        self.entered_part = None;
        self.whole.clear();
        self.part.clear();
        self.waiting.clear();
        let segment = self.segments[k].clone();
        if !segment.is_last {
            let token = self.start(graph, i)?;
            self.whole = self.copies(graph, segment.nodes, token)?;
        }
        Ok(())
    }

    fn enter_part(&mut self, graph: &mut Graph, k: usize, p: usize, i: usize) -> Result<()> {
        self.entered_part = Some(p);
        let nodes = self.segments[k].parts[p].clone();
        let token = self.start(graph, i)?;
        self.part = self.copies(graph, nodes, token)?;
        Ok(())
    }

    /// A token of all gradients found since the last one that are still to be used, now that the walk has come to node `i`:
    /// those of values made before it, and of what is differentiated for. Counting others would only keep them alive.
    fn start(&mut self, graph: &mut Graph, i: usize) -> Result<Token> {
        self.waiting.clear();
        let made = |v: &ValueId| self.producers.get(graph.index(*v)).copied().flatten();
        let pending = self.fresh.iter().filter(|(v, _)| made(v).is_none_or(|m| m <= i));
        let pending: Vec<ValueId> = pending.map(|(_, gradient)| *gradient).collect();
        self.fresh.clear();
        let token = match (pending.is_empty(), self.token) {
            (true, Some(token)) => token,
            _ => graph.token(&pending)?,
        };
        self.token = Some(token);
        Ok(token)
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
                    None => self.made_to_wait(graph, *v, token)?,
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
    fn made_to_wait(&mut self, graph: &mut Graph, value: ValueId, token: Token) -> Result<ValueId> {
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
