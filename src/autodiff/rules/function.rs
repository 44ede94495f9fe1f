//! Functions of one number: `dx = dy · f′(x)`, written with `y = f(x)` where that is cheaper.

use std::f64::consts::PI;

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::{Graph, ValueId};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Abs" => |c| c.times_slope(|g, x, _| g.unary("Sign", x)),
        "Sqrt" => |c| {
            c.one(|g, _, y, dy| {
                let half = g.scale(dy, 0.5)?;
                g.div(half, y)
            })
        },
        "Exp" => |c| c.times_slope(|_, _, y| Ok(y)),
        "Log" => |c| c.one(|g, x, _, dy| g.div(dy, x)),
        "Reciprocal" => |c| {
            c.times_slope(|g, _, y| {
                let square = g.square(y)?;
                g.neg(square)
            })
        },
        "Erf" => erf,
        "Sin" => |c| c.times_slope(|g, x, _| g.unary("Cos", x)),
        "Cos" => |c| {
            c.times_slope(|g, x, _| {
                let sin = g.unary("Sin", x)?;
                g.neg(sin)
            })
        },
        "Tan" => |c| {
            c.times_slope(|g, _, y| {
                let square = g.square(y)?;
                g.offset(square, 1.0)
            })
        },
        "Sinh" => |c| c.times_slope(|g, x, _| g.unary("Cosh", x)),
        "Cosh" => |c| c.times_slope(|g, x, _| g.unary("Sinh", x)),
        "Asin" => |c| arc(c, 1.0, |g, square| g.one_minus(square)),
        "Acos" => |c| arc(c, -1.0, |g, square| g.one_minus(square)),
        "Asinh" => |c| arc(c, 1.0, |g, square| g.offset(square, 1.0)),
        "Acosh" => |c| arc(c, 1.0, |g, square| g.offset(square, -1.0)),
        "Atan" => |c| {
            c.one(|g, x, _, dy| {
                let square = g.square(x)?;
                let below = g.offset(square, 1.0)?;
                g.div(dy, below)
            })
        },
        "Atanh" => |c| {
            c.one(|g, x, _, dy| {
                let square = g.square(x)?;
                let below = g.one_minus(square)?;
                g.div(dy, below)
            })
        },
        _ => return None,
    })
}

/// `erf′(x) = 2/√π · exp(−x²)`.
fn erf(c: &mut Context) -> Result<Gradients> {
    c.one(|g, x, _, dy| {
        let square = g.square(x)?;
        let negative = g.neg(square)?;
        let bell = g.unary("Exp", negative)?;
        let slope = g.scale(bell, 2.0 / PI.sqrt())?;
        g.mul(dy, slope)
    })
}

/// Inverse functions whose slope is `sign/√below(x²)`.
fn arc(c: &mut Context, sign: f64, below: fn(&mut Graph, ValueId) -> Result<ValueId>) -> Result<Gradients> {
    c.one(|g, x, _, dy| {
        let square = g.square(x)?;
        let below = below(g, square)?;
        let root = g.unary("Sqrt", below)?;
        let signed = g.scale(dy, sign)?;
        g.div(signed, root)
    })
}
