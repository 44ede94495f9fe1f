//! Reverse-mode differentiation of a static graph into ordinary ONNX operators.
//!
//! [`gradients`] walks the nodes once, backwards. For every node on a path from a requested tensor to a seeded output it
//! asks the operator's rule (`rules/`) for the gradients of the inputs that matter, and adds up what reaches each value.
//! Nothing else is differentiated, and the builder makes equal nodes once, so no work is done twice.

mod derive;
mod options;
mod recompute;
mod rules;

use crate::onnx::{Graph, Node, ValueId, View};
use crate::tensor::DType;
use crate::{Error, Result};
use recompute::Recomputation;

pub use derive::{Derived, Wrt, cotangent_name, derive, gradient_name};
pub use options::{AttentionGradient, ConvInputGradient, DeriveOptions, Recompute};
pub use recompute::PART;
pub use rules::{differentiable_operands, is_differentiable};

/// What a rule works with: the graph it adds nodes to, the node, and the gradients of the node's outputs.
pub struct Context<'g> {
    /// The graph; rules add nodes to its end.
    pub graph: &'g mut Graph,
    /// The node whose inputs' gradients are wanted.
    pub node: Node,
    /// Gradient of each output, `None` where nothing depends on that output.
    pub dy: Vec<Option<ValueId>>,
    /// Which inputs' gradients are wanted.
    pub wants: Vec<bool>,
    /// Choices between forms.
    pub options: DeriveOptions,
}

/// One gradient per input; `None` where it is not wanted or zero everywhere.
pub type Gradients = Vec<Option<ValueId>>;

impl Context<'_> {
    /// The node with its graph, for reading shapes, constants and attributes.
    pub fn view(&self) -> View<'_> {
        View::new(self.graph, &self.node)
    }

    /// Input `i`, which must be there.
    pub fn x(&self, i: usize) -> Result<ValueId> {
        self.view().input(i)
    }

    /// Output `i`, where the model names it: rules reuse what the forward pass computed.
    pub fn y(&self, i: usize) -> Option<ValueId> {
        self.node.output(i)
    }

    /// Whether the gradient of input `i` is wanted.
    pub fn wants(&self, i: usize) -> bool {
        self.wants.get(i).copied().unwrap_or(false)
    }

    /// Gradient of the first output. Rules of operators with one output are only called when there is one.
    pub fn dy0(&self) -> Result<ValueId> {
        self.dy
            .first()
            .copied()
            .flatten()
            .ok_or_else(|| self.view().error("has no gradient for its first output"))
    }

    /// Shape of input `i`.
    pub fn shape(&self, i: usize) -> Result<Vec<usize>> {
        Ok(self.view().shape(i)?.to_vec())
    }

    /// An error that says which part of the operator has no gradient rule.
    pub fn unsupported(&self, what: &str) -> Error {
        Error::bad(
            self.node.place(self.graph),
            format!("{what} has no gradient rule in ortdpo"),
            "Ask for gradients of fewer tensors, or export the model without this form of the operator.",
        )
    }
}

/// Adds the gradients of `Σ ⟨cotangent, output⟩` with respect to `wrt` to `graph`. `seeds` are pairs of an output and
/// its cotangent (same shape and type). The result has one entry per `wrt`, `None` where no seeded output depends on it.
///
/// Errors: an operator without gradient rule on the way, named with its node.
pub fn gradients(
    graph: &mut Graph,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>> {
    gradients_with(graph, seeds, wrt, DeriveOptions::default())
}

/// [`gradients`] with other choices between equal forms.
pub fn gradients_with(
    graph: &mut Graph,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
    options: DeriveOptions,
) -> Result<Vec<Option<ValueId>>> {
    let active = reached_from(graph, wrt);
    let last = graph.nodes.len();
    let mut sums: Vec<Option<ValueId>> = vec![None; graph.value_count()];
    let mut recomputation = Recomputation::new(graph, &active, options.recompute);
    for (output, cotangent) in seeds {
        let sum = accumulate(graph, &mut sums, *output, *cotangent)?;
        recomputation.found(*output, sum);
    }
    for i in (0..last).rev() {
        let node = &graph.nodes[i];
        let dy: Vec<_> = node
            .outputs
            .iter()
            .map(|o| o.and_then(|v| sums[graph.index(v)]))
            .collect();
        if dy.iter().all(Option::is_none) {
            continue;
        }
        let operands = differentiable_operands(graph, node);
        let wants: Vec<bool> = (0..node.inputs.len())
            .map(|k| operands.contains(&k) && node.input(k).is_some_and(|v| active[graph.index(v)]))
            .collect();
        if !wants.contains(&true) {
            continue;
        }
        let original = node.clone();
        let node = recomputation.node(graph, i)?;
        let mut context = Context {
            graph,
            node,
            dy,
            wants,
            options,
        };
        let found = rules::apply(&mut context)?;
        let Context { wants, .. } = context;
        for (k, gradient) in found.into_iter().enumerate() {
            if let (Some(g), Some(x), Some(true)) = (gradient, original.input(k), wants.get(k)) {
                let sum = accumulate(graph, &mut sums, x, g).map_err(|e| {
                    Error::bad(
                        original.place(graph),
                        format!("gradient of input {k}: {e}"),
                        "This is a defect of ortdpo; please report it.",
                    )
                })?;
                recomputation.found(x, sum);
            }
        }
    }
    Ok(wrt.iter().map(|v| sums[graph.index(*v)]).collect())
}

/// Adds `gradient` to what already reached `value`; returns the sum.
fn accumulate(
    graph: &mut Graph,
    sums: &mut [Option<ValueId>],
    value: ValueId,
    gradient: ValueId,
) -> Result<ValueId> {
    if graph.ty(value) != graph.ty(gradient) {
        return Err(Error::bad(
            graph.name(value),
            format!(
                "is {} but its gradient is {}",
                graph.ty(value),
                graph.ty(gradient)
            ),
            "The shapes and types must agree.",
        ));
    }
    let slot = graph.index(value);
    let sum = match sums[slot] {
        Some(old) => graph.add(old, gradient)?,
        None => gradient,
    };
    sums[slot] = Some(sum);
    Ok(sum)
}

/// Which float values depend on one of `from` through differentiable operands.
pub fn reached_from(graph: &Graph, from: &[ValueId]) -> Vec<bool> {
    let mut reached = vec![false; graph.value_count()];
    for v in from {
        reached[graph.index(*v)] = true;
    }
    for node in &graph.nodes {
        let feeds = |k: &usize| node.input(*k).is_some_and(|v| reached[graph.index(v)]);
        if differentiable_operands(graph, node).iter().any(feeds) {
            for v in node.outputs.iter().flatten() {
                reached[graph.index(*v)] = graph.dtype(*v).is_float() && !graph.stopped.contains(v);
            }
        }
    }
    reached
}

/// Which values some of `outputs` depend on through differentiable operands.
pub fn reaching(graph: &Graph, outputs: &[ValueId]) -> Vec<bool> {
    let mut needed = vec![false; graph.value_count()];
    for v in outputs {
        needed[graph.index(*v)] = graph.dtype(*v).is_float();
    }
    for node in graph.nodes.iter().rev() {
        if node.outputs.iter().flatten().any(|v| needed[graph.index(*v)]) {
            for k in differentiable_operands(graph, node) {
                if let Some(v) = node.input(k) {
                    needed[graph.index(v)] = is_float(graph.dtype(v));
                }
            }
        }
    }
    needed
}

fn is_float(dtype: DType) -> bool {
    dtype.is_float()
}
