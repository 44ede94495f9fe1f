//! Reductions over axes: the output's gradient is spread over the elements it came from.
//!
//! `ReduceMax` and `ReduceMin` give equal parts to elements that tie. `ReduceProd` and `ReduceL2` stay finite where
//! elements are 0.

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::{Graph, ValueId};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "ReduceSum" => |c| reduction(c, |g, r| g.expand(r.dy, &r.shape)),
        "ReduceMean" => |c| {
            reduction(c, |g, r| {
                let each = g.scale(r.dy, 1.0 / r.count() as f64)?;
                g.expand(each, &r.shape)
            })
        },
        "ReduceMax" | "ReduceMin" => |c| reduction(c, extremum),
        "ReduceProd" => |c| reduction(c, product),
        "ReduceL1" => |c| {
            elementwise(c, |g, r| {
                let sign = g.unary("Sign", r.x)?;
                g.mul(sign, r.dy)
            })
        },
        "ReduceL2" => |c| elementwise(c, euclidean),
        "ReduceSumSquare" => |c| {
            elementwise(c, |g, r| {
                let twice = g.scale(r.dy, 2.0)?;
                g.mul(r.x, twice)
            })
        },
        "ReduceLogSum" => |c| {
            elementwise(c, |g, r| {
                let sum = g.unary("Exp", r.y)?;
                let each = g.div(r.dy, sum)?;
                g.expand(each, &r.shape)
            })
        },
        "ReduceLogSumExp" => |c| {
            elementwise(c, |g, r| {
                let log_share = g.sub(r.x, r.y)?;
                let share = g.unary("Exp", log_share)?;
                g.mul(share, r.dy)
            })
        },
        _ => return None,
    })
}

/// A reduction's values, the reduced axes kept as dimensions of 1 in `y` and `dy`.
struct Reduced {
    x: ValueId,
    y: ValueId,
    dy: ValueId,
    axes: Vec<usize>,
    shape: Vec<usize>,
}

impl Reduced {
    /// Elements that one output element is made of.
    fn count(&self) -> usize {
        self.axes.iter().map(|a| self.shape[*a]).product()
    }
}

type Spread = fn(&mut Graph, &Reduced) -> Result<ValueId>;

fn reduction(c: &mut Context, spread: Spread) -> Result<Gradients> {
    let (axes, _) = c.view().reduction()?;
    let (x, y, dy, shape) = (c.x(0)?, c.y0()?, c.dy0()?, c.shape(0)?);
    if axes.is_empty() {
        return Ok(vec![Some(dy)]);
    }
    let mut kept = shape.clone();
    axes.iter().for_each(|a| kept[*a] = 1);
    let (y, dy) = (c.graph.reshape(y, &kept)?, c.graph.reshape(dy, &kept)?);
    Ok(vec![Some(spread(
        c.graph,
        &Reduced {
            x,
            y,
            dy,
            axes,
            shape,
        },
    )?)])
}

/// Reductions that apply a function to each element: without axes they are not the identity, and runtimes differ in
/// what they then compute.
fn elementwise(c: &mut Context, spread: Spread) -> Result<Gradients> {
    if c.view().reduction()?.0.is_empty() {
        return Err(c.unsupported(&format!("operator {} without axes", c.node.op)));
    }
    reduction(c, spread)
}

/// `dx = dy · [x = y] / number of elements equal to y`.
fn extremum(g: &mut Graph, r: &Reduced) -> Result<ValueId> {
    let mask = g.equal_mask(r.x, r.y)?;
    let ties = g.sum_keep(mask, &r.axes)?;
    let share = g.div(r.dy, ties)?;
    g.mul(mask, share)
}

/// `dxᵢ = dy · Π_{j≠i} xⱼ`: the product of all elements that are not 0, divided by `xᵢ` if that is not 0, and 0 where
/// another element is 0.
fn product(g: &mut Graph, r: &Reduced) -> Result<ValueId> {
    let zero = g.with_number("Equal", r.x, 0.0)?;
    let one = g.scalar_like(r.x, 1.0);
    let nonzero = g.select(zero, one, r.x)?;
    let product = g.reduce("ReduceProd", nonzero, &r.axes, true)?;
    let product = g.mul(product, r.dy)?;
    let rest = g.div(product, nonzero)?;
    let dtype = g.dtype(r.x);
    let zero = g.cast(zero, dtype)?;
    let zeros = g.sum_keep(zero, &r.axes)?;
    let others = g.equal_mask(zeros, zero)?;
    g.mul(rest, others)
}

/// `dx = dy · x / y`, and 0 where `y` is 0. The quotient is formed first: it is the smaller tensor.
fn euclidean(g: &mut Graph, r: &Reduced) -> Result<ValueId> {
    let quotient = g.div(r.dy, r.y)?;
    let positive = g.with_number("Greater", r.y, 0.0)?;
    let quotient = g.keep_where(positive, quotient)?;
    g.mul(r.x, quotient)
}
