//! What objectives on pairs have in common: the margin, and losses that treat both orders of a pair alike.

use super::{Likelihoods, promised};
use crate::Result;
use crate::onnx::{Graph, ValueId};

/// `m = (e_w(ref) − e_w(θ)) − (e_l(ref) − e_l(θ))`, `[P]`.
pub fn margin(graph: &mut Graph, l: &Likelihoods) -> Result<ValueId> {
    let ref_w = promised(l.ref_w, "errors of the reference");
    let ref_l = promised(l.ref_l, "errors of the reference");
    let delta_ref = graph.sub(ref_w, ref_l)?;
    let delta = graph.sub(l.e_w, promised(l.e_l, "pairs"))?;
    graph.sub(delta_ref, delta)
}

/// `u = coefficient·λ(t)·m`, `[P]`.
pub fn reward(graph: &mut Graph, l: &Likelihoods, coefficient: f64) -> Result<ValueId> {
    let margin = margin(graph, l)?;
    let scaled = graph.scale(margin, coefficient)?;
    graph.mul(scaled, l.reward_scale)
}

/// `y·loss(u) + (1 − y)·loss(−u)`, `y` being how surely the preferred sample is preferred.
pub fn both_orders(
    graph: &mut Graph,
    l: &Likelihoods,
    u: ValueId,
    loss: impl Fn(&mut Graph, ValueId) -> Result<ValueId>,
) -> Result<ValueId> {
    let minus = graph.neg(u)?;
    let (right, wrong) = (loss(graph, u)?, loss(graph, minus)?);
    // wrong + y·(right − wrong)
    let difference = graph.sub(right, wrong)?;
    let part = graph.mul(l.label, difference)?;
    graph.add(wrong, part)
}

/// `−log σ(u) = softplus(−u)`.
pub fn log_loss(graph: &mut Graph, u: ValueId) -> Result<ValueId> {
    let minus = graph.neg(u)?;
    graph.unary("Softplus", minus)
}

/// `1 − σ(u) = σ(−u)`: how wrong the policy still is.
pub fn doubt(graph: &mut Graph, u: ValueId) -> Result<ValueId> {
    let minus = graph.neg(u)?;
    graph.unary("Sigmoid", minus)
}
