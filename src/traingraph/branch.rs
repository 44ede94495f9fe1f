//! Copies of the network inside a larger graph.
//!
//! All branches name the same constants, so base weights exist once. Nodes that come out equal in two branches (all that
//! lies before the first adapter) are made once, too.

use std::collections::HashMap;

use super::layers::{Layer, LayerKind};
use super::trainable::{TrainableKind, Trainables};
use crate::Result;
use crate::onnx::{Attrs, Graph, Node, TensorType, ValueId};
use crate::tensor::DType;

/// Constants of the body that already are in the target graph.
pub type SharedConstants = HashMap<ValueId, ValueId>;

/// How a branch gets its trainable tensors.
pub struct Weights<'a> {
    /// What is trained.
    pub trainables: &'a Trainables,
    /// Values that stand for the trainable tensors, in their order.
    pub values: Vec<ValueId>,
}

impl<'a> Weights<'a> {
    /// Adds one graph input per trainable tensor, named `prefix` + its name.
    pub fn as_inputs(graph: &mut Graph, trainables: &'a Trainables, prefix: &str) -> Self {
        let input = |t: &super::Trainable| {
            graph.add_input(
                &format!("{prefix}{}", t.name),
                TensorType::new(DType::F32, t.shape.clone()),
            )
        };
        Self {
            values: trainables.tensors.iter().map(input).collect(),
            trainables,
        }
    }
}

/// Copies `body` into `graph`. `given` binds values of the body (its inputs, at least) to values of `graph`; with
/// `weights` the layers get their adapters, or the trained constants are replaced. Returns the outputs of the copy.
pub fn inline(
    graph: &mut Graph,
    body: &Graph,
    given: &HashMap<ValueId, ValueId>,
    weights: Option<&Weights>,
    shared: &mut SharedConstants,
) -> Result<Vec<ValueId>> {
    let mut map = given.clone();
    let mut adapters: HashMap<usize, (&Layer, ValueId, ValueId)> = HashMap::new();
    if let Some(w) = weights {
        for (t, value) in w.trainables.tensors.iter().zip(&w.values) {
            if let TrainableKind::Weight { constant, .. } = t.kind {
                map.insert(constant, graph.cast(*value, body.dtype(constant))?);
            }
        }
        for (layer, factors) in w.trainables.adapted.iter().zip(w.values.chunks_exact(2)) {
            adapters.insert(layer.node, (layer, factors[0], factors[1]));
        }
    }
    let scale = weights.map_or(1.0, |w| w.trainables.scale);
    for (i, node) in body.nodes.iter().enumerate() {
        if node.outputs.iter().flatten().all(|v| map.contains_key(v)) {
            continue;
        }
        let mut copy = node.clone();
        for input in copy.inputs.iter_mut().flatten() {
            *input = mapped(graph, body, &mut map, shared, *input);
        }
        let outputs = graph.add_shared_node(copy.clone(), body, node)?;
        let mut first = outputs[0];
        if let (Some((layer, a, b)), Some(y)) = (adapters.get(&i), first) {
            first = Some(adapted(graph, layer, &copy, y, *a, *b, scale)?);
        }
        for (k, (old, new)) in node.outputs.iter().zip(outputs).enumerate() {
            if let (Some(old), Some(new)) = (old, if k == 0 { first } else { new }) {
                map.insert(*old, new);
            }
        }
    }
    Ok(body
        .outputs
        .clone()
        .into_iter()
        .map(|v| mapped(graph, body, &mut map, shared, v))
        .collect())
}

/// An empty graph with the inputs of `body`, and which input stands for which: the start of a copy that
/// [`finish_copy`] ends.
pub fn begin_copy(body: &Graph) -> (Graph, HashMap<ValueId, ValueId>) {
    let mut graph = Graph::new(&body.name, body.opset);
    graph.ir_version = body.ir_version;
    graph.other_opsets.clone_from(&body.other_opsets);
    let input = |input: &ValueId| {
        let id = graph.add_input(&body.name(*input), body.ty(*input).clone());
        (*input, id)
    };
    let given = body.inputs.iter().map(input).collect();
    (graph, given)
}

/// Copies `body` into `graph`, as [`inline`] does, with outputs of the same names.
pub fn finish_copy(
    mut graph: Graph,
    body: &Graph,
    given: &HashMap<ValueId, ValueId>,
    weights: Option<&Weights>,
) -> Result<Graph> {
    let outputs = inline(&mut graph, body, given, weights, &mut SharedConstants::new())?;
    for (old, new) in body.outputs.iter().zip(&outputs) {
        graph.set_name(*new, body.name(*old));
    }
    graph.outputs = outputs;
    graph.prune();
    graph.index_nodes();
    Ok(graph)
}

/// The value in `graph` that stands for `value` of the body; constants are brought over when first needed.
fn mapped(
    graph: &mut Graph,
    body: &Graph,
    map: &mut HashMap<ValueId, ValueId>,
    shared: &mut SharedConstants,
    value: ValueId,
) -> ValueId {
    if let Some(v) = map.get(&value) {
        return *v;
    }
    let id = *shared.entry(value).or_insert_with(|| {
        graph
            .add_constant_of(body, value)
            .expect("nodes are in topological order, so this is a constant")
    });
    map.insert(value, id);
    id
}

/// `y + s·B(A(x))` for one layer.
fn adapted(
    graph: &mut Graph,
    layer: &Layer,
    node: &Node,
    y: ValueId,
    a: ValueId,
    b: ValueId,
    scale: f64,
) -> Result<ValueId> {
    let x = node.inputs[0].expect("a layer has an input");
    // Factors are f32, whatever the network computes in.
    let dtype = graph.dtype(x);
    let (a, b) = (graph.cast(a, dtype)?, graph.cast(b, dtype)?);
    let delta = match layer.kind {
        LayerKind::Linear { .. } => {
            let (at, bt) = (graph.transpose(a, &[1, 0])?, graph.transpose(b, &[1, 0])?);
            let low = graph.matmul(x, at)?;
            let low = graph.scale(low, scale)?;
            graph.matmul(low, bt)?
        }
        LayerKind::Conv { .. } => {
            let geometry = ["auto_pad", "dilations", "pads", "strides"];
            let kept = node
                .attrs
                .0
                .iter()
                .filter(|(n, _)| geometry.contains(&n.as_str()))
                .cloned();
            let low = graph.op("Conv", &[x, a], Attrs(kept.collect()))?;
            let low = graph.scale(low, scale)?;
            graph.op("Conv", &[low, b], Attrs::new())?
        }
    };
    graph.add(y, delta)
}
