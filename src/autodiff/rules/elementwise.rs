//! Arithmetic and selection, element by element.
//!
//! With `y = f(a, b, …)`: `da = dy · ∂f/∂a`. Operands may be broadcast; their gradient is summed back to their shape.

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::ValueId;

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Add" | "Sum" => add,
        "Sub" => sub,
        "Mul" => mul,
        "Div" => div,
        "Mean" => mean,
        "Min" | "Max" => extremum,
        "Neg" => |c| c.one(|g, _, _, dy| g.neg(dy)),
        "Where" => select,
        "Clip" => clip,
        "Cast" | "CastLike" => cast,
        "Identity" => |c| Ok(vec![c.dy.first().copied().flatten()]),
        "Dropout" => dropout,
        _ => return None,
    })
}

/// `y = a + b + …`: `da = dy`.
fn add(c: &mut Context) -> Result<Gradients> {
    let dy = c.dy0()?;
    spread(c, dy)
}

/// `y = (a + b + …)/n`: `da = dy/n`.
fn mean(c: &mut Context) -> Result<Gradients> {
    let (n, dy) = (c.node.inputs.len(), c.dy0()?);
    let each = c.graph.scale(dy, 1.0 / n as f64)?;
    spread(c, each)
}

/// The same gradient for every wanted input.
fn spread(c: &mut Context, gradient: ValueId) -> Result<Gradients> {
    (0..c.node.inputs.len())
        .map(|i| {
            if c.wants(i) {
                c.summed(i, gradient).map(Some)
            } else {
                Ok(None)
            }
        })
        .collect()
}

/// `y = a − b`: `da = dy`, `db = −dy`. The sum comes first: it is the smaller tensor that is negated.
fn sub(c: &mut Context) -> Result<Gradients> {
    let dy = c.dy0()?;
    let da = if c.wants(0) { Some(c.summed(0, dy)?) } else { None };
    let db = if c.wants(1) {
        let sum = c.summed(1, dy)?;
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
            out[i] = Some(c.summed(i, product)?);
        }
    }
    Ok(out)
}

/// `y = a / b`: `da = dy / b`, `db = −dy · y / b`.
fn div(c: &mut Context) -> Result<Gradients> {
    let (b, y, dy) = (c.x(1)?, c.y0()?, c.dy0()?);
    let da_full = c.graph.div(dy, b)?;
    let da = if c.wants(0) {
        Some(c.summed(0, da_full)?)
    } else {
        None
    };
    let db = if c.wants(1) {
        let product = c.graph.mul(da_full, y)?;
        let sum = c.summed(1, product)?;
        Some(c.graph.neg(sum)?)
    } else {
        None
    };
    Ok(vec![da, db])
}

/// `y = max(a, b, …)` or `min`: the gradient goes to the operand that was taken, in equal parts where several were.
fn extremum(c: &mut Context) -> Result<Gradients> {
    let (y, dy, n) = (c.y0()?, c.dy0()?, c.node.inputs.len());
    if n == 1 {
        return Ok(vec![Some(dy)]);
    }
    let masks: Vec<ValueId> = (0..n)
        .map(|i| c.x(i).and_then(|x| c.graph.equal_mask(x, y)))
        .collect::<Result<_>>()?;
    let taken = c.graph.op("Sum", &masks, crate::onnx::Attrs::new())?;
    let share = c.graph.div(dy, taken)?;
    let mut out = vec![None; n];
    for (i, mask) in masks.into_iter().enumerate() {
        if c.wants(i) {
            let part = c.graph.mul(share, mask)?;
            out[i] = Some(c.summed(i, part)?);
        }
    }
    Ok(out)
}

/// `y = condition ? a : b`: `da = condition ? dy : 0`, `db = condition ? 0 : dy`.
fn select(c: &mut Context) -> Result<Gradients> {
    let (condition, dy) = (c.x(0)?, c.dy0()?);
    let zero = c.graph.scalar_like(dy, 0.0);
    let mut out = vec![None; 3];
    for (i, (yes, no)) in [(1, (dy, zero)), (2, (zero, dy))] {
        if c.wants(i) {
            let part = c.graph.select(condition, yes, no)?;
            out[i] = Some(c.summed(i, part)?);
        }
    }
    Ok(out)
}

/// `y = min(max(x, low), high)`: `dy` where `x` was left as it is, bounds included.
fn clip(c: &mut Context) -> Result<Gradients> {
    c.times_slope(|g, x, y| g.equal_mask(x, y))
}

/// `y = x` as another float type: `dy` as elements of the type of `x`.
fn cast(c: &mut Context) -> Result<Gradients> {
    c.one(|g, x, _, dy| {
        let dtype = g.dtype(x);
        g.cast(dy, dtype)
    })
}

/// Dropout outside training hands its input on.
fn dropout(c: &mut Context) -> Result<Gradients> {
    if c.view().has(2) && c.view().ints(2)?.is_some_and(|t| t == [1]) {
        return Err(c.unsupported("operator Dropout in training mode"));
    }
    Ok(vec![Some(c.dy0()?)])
}
