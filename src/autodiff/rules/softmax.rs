//! `Softmax` and `LogSoftmax` along one axis.

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::{Graph, Node, ValueId};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Softmax" => softmax,
        "LogSoftmax" => log_softmax,
        _ => return None,
    })
}

/// `y = softmax(x)`: `dx = y ∘ (dy − Σ dy∘y)`.
fn softmax(c: &mut Context) -> Result<Gradients> {
    let dy = c.dy0()?;
    let axis = c.view().axis_attr(0, -1)?;
    let y = c.y0()?;
    let g = &mut *c.graph;
    let sum = match product_after(g, y, dy, axis) {
        Some((o, d_o)) => {
            let product = g.mul(d_o, o)?;
            g.sum_keep(product, &[axis])?
        }
        None => {
            let product = g.mul(dy, y)?;
            g.sum_keep(product, &[axis])?
        }
    };
    let rest = g.sub(dy, sum)?;
    Ok(vec![Some(g.mul(rest, y)?)])
}

/// Attention multiplies the probabilities with the values, `O = P·V`, and `dP = dO·Vᵀ` comes back. Then
/// `Σ dP∘P = Σ dO∘O` (Dao et al. 2022, FlashAttention, appendix B.2), over head size instead of number of keys: one
/// attention matrix less in memory and two passes less over one. Finds `O` and `dO`.
fn product_after(g: &Graph, p: ValueId, dp: ValueId, axis: usize) -> Option<(ValueId, ValueId)> {
    if axis + 1 != g.rank(p) {
        return None;
    }
    let back = product_of(g, dp)?;
    let (d_o, vt) = (back.input(0)?, back.input(1)?);
    let is_transposed = |n: &&Node| n.op == "Transpose" && n.output(0) == Some(vt);
    let turned = g.nodes.iter().rev().find(is_transposed)?;
    let v = turned.input(0)?;
    let mut swapped: Vec<i64> = (0..g.rank(v) as i64).collect();
    let last = swapped.len().checked_sub(2)?;
    swapped[last..].reverse();
    if turned.attrs.opt_ints("perm") != Some(&swapped[..]) {
        return None;
    }
    let forward = g
        .nodes
        .iter()
        .find(|n| n.op == "MatMul" && n.input(0) == Some(p) && n.input(1) == Some(v))?;
    let o = forward.output(0)?;
    (g.shape(o) == g.shape(d_o) && g.shape(o).last() < g.shape(p).last()).then_some((o, d_o))
}

/// The `MatMul` that makes `value`.
fn product_of(g: &Graph, value: ValueId) -> Option<&Node> {
    g.nodes
        .iter()
        .rev()
        .find(|n| n.output(0) == Some(value))
        .filter(|n| n.op == "MatMul")
}

/// `y = log softmax(x)`: `dx = dy − exp(y) ∘ Σ dy`.
fn log_softmax(c: &mut Context) -> Result<Gradients> {
    let dy = c.dy0()?;
    let axis = c.view().axis_attr(0, -1)?;
    let y = c.y0()?;
    let g = &mut *c.graph;
    let p = g.unary("Exp", y)?;
    let sum = g.sum_keep(dy, &[axis])?;
    let spread = g.mul(p, sum)?;
    Ok(vec![Some(g.sub(dy, spread)?)])
}
