//! Operators that work element by element.
//!
//! With `y = f(x)`: `dx = dy · f′(x)`, written with `y` where that is cheaper. For broadcast operands the gradient is
//! summed back to the operand's shape.

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::ValueId;

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Add" => add,
        "Sub" => sub,
        "Mul" => mul,
        "Div" => div,
        "Neg" => |c| one(c, |g, _, _, dy| g.neg(dy)),
        "Sigmoid" => sigmoid,
        _ => return None,
    })
}

/// A rule for an operator with one input: `f(graph, x, y, dy)` gives `dx`.
fn one(
    c: &mut Context,
    f: impl FnOnce(&mut crate::onnx::Graph, ValueId, ValueId, ValueId) -> Result<ValueId>,
) -> Result<Gradients> {
    let (x, dy) = (c.x(0)?, c.dy0()?);
    let y = c.y(0).ok_or_else(|| c.view().error("has no output"))?;
    Ok(vec![Some(f(c.graph, x, y, dy)?)])
}

/// `y = a + b`: `da = dy`, `db = dy`.
fn add(c: &mut Context) -> Result<Gradients> {
    let dy = c.dy0()?;
    (0..c.node.inputs.len())
        .map(|i| if c.wants(i) { Ok(Some(summed(c, i, dy)?)) } else { Ok(None) })
        .collect()
}

/// `y = a − b`: `da = dy`, `db = −dy`. The sum comes first: it is the smaller tensor that is negated.
fn sub(c: &mut Context) -> Result<Gradients> {
    let dy = c.dy0()?;
    let da = if c.wants(0) { Some(summed(c, 0, dy)?) } else { None };
    let db = if c.wants(1) {
        let sum = summed(c, 1, dy)?;
        Some(c.graph.neg(sum)?)
    } else {
        None
    };
    Ok(vec![da, db])
}

/// `y = a · b`: `da = dy · b`, `db = dy · a`.
fn mul(c: &mut Context) -> Result<Gradients> {
    let (a, b, dy) = (c.x(0)?, c.x(1)?, c.dy0()?);
    let mut out = vec![None, None];
    for (i, other) in [(0, b), (1, a)] {
        if c.wants(i) {
            let product = c.graph.mul(dy, other)?;
            out[i] = Some(summed(c, i, product)?);
        }
    }
    Ok(out)
}

/// `y = a / b`: `da = dy / b`, `db = −dy · y / b`.
fn div(c: &mut Context) -> Result<Gradients> {
    let (b, dy) = (c.x(1)?, c.dy0()?);
    let y = c.y(0).ok_or_else(|| c.view().error("has no output"))?;
    let da_full = c.graph.div(dy, b)?;
    let da = if c.wants(0) { Some(summed(c, 0, da_full)?) } else { None };
    let db = if c.wants(1) {
        let product = c.graph.mul(da_full, y)?;
        let sum = summed(c, 1, product)?;
        Some(c.graph.neg(sum)?)
    } else {
        None
    };
    Ok(vec![da, db])
}

/// `y = σ(x)`: `dx = dy · y · (1 − y)`.
fn sigmoid(c: &mut Context) -> Result<Gradients> {
    one(c, |g, _, y, dy| {
        let one = g.scalar_like(y, 1.0);
        let rest = g.sub(one, y)?;
        let slope = g.mul(y, rest)?;
        g.mul(dy, slope)
    })
}

/// `gradient` summed down to the shape of input `i`.
fn summed(c: &mut Context, i: usize, gradient: ValueId) -> Result<ValueId> {
    let shape = c.shape(i)?;
    c.graph.sum_to(gradient, &shape)
}
