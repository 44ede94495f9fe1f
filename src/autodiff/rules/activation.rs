//! Activation functions: `dx = dy · f′(x)`, written with `y = f(x)` where that is cheaper.
//!
//! At kinks the slope is that of the side towards zero or below (`Relu` and its relatives: 0 or the leak at 0), as in
//! PyTorch.

use std::f64::consts::{FRAC_2_SQRT_PI, SQRT_2};

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::{Graph, ValueId};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Sigmoid" => |c| {
            c.times_slope(|g, _, y| {
                let rest = g.one_minus(y)?;
                g.mul(y, rest)
            })
        },
        "Tanh" => |c| {
            c.times_slope(|g, _, y| {
                let square = g.square(y)?;
                g.one_minus(square)
            })
        },
        // The output is never negative, so its sign is the slope.
        "Relu" => |c| c.times_slope(|g, _, y| g.unary("Sign", y)),
        "LeakyRelu" => |c| {
            let alpha = c.view().float("alpha", 0.01).into();
            c.times_slope(|g, x, _| {
                let leak = g.scalar_like(x, alpha);
                one_above_zero(g, x, leak)
            })
        },
        "ThresholdedRelu" => |c| {
            let alpha = c.view().float("alpha", 1.0).into();
            c.one(|g, x, _, dy| {
                let above = g.with_number("Greater", x, alpha)?;
                g.keep_where(above, dy)
            })
        },
        "PRelu" => prelu,
        "Elu" => elu,
        "Celu" => celu,
        "Selu" => selu,
        "HardSigmoid" => hard_sigmoid,
        "HardSwish" => hard_swish,
        "Softplus" => |c| c.times_slope(|g, x, _| g.unary("Sigmoid", x)),
        "Softsign" => softsign,
        "Gelu" => gelu,
        "Mish" => mish,
        _ => return None,
    })
}

/// 1 where `x > 0`, `otherwise` elsewhere.
fn one_above_zero(g: &mut Graph, x: ValueId, otherwise: ValueId) -> Result<ValueId> {
    let above = g.with_number("Greater", x, 0.0)?;
    let one = g.scalar_like(x, 1.0);
    g.select(above, one, otherwise)
}

/// `y = x > 0 ? x : s·x`: `dx = dy · (x > 0 ? 1 : s)`, `ds = dy · min(x, 0)`.
fn prelu(c: &mut Context) -> Result<Gradients> {
    let (x, s, dy) = (c.x(0)?, c.x(1)?, c.dy0()?);
    let dx = if c.wants(0) {
        let slope = one_above_zero(c.graph, x, s)?;
        Some(c.graph.mul(dy, slope)?)
    } else {
        None
    };
    let ds = if c.wants(1) {
        let below = c.graph.with_number("Min", x, 0.0)?;
        let full = c.graph.mul(dy, below)?;
        Some(c.summed(1, full)?)
    } else {
        None
    };
    Ok(vec![dx, ds])
}

/// `y = x > 0 ? x : α(eˣ − 1)`: slope `x > 0 ? 1 : y + α`.
fn elu(c: &mut Context) -> Result<Gradients> {
    let alpha = c.view().float("alpha", 1.0).into();
    c.times_slope(|g, x, y| {
        let below = g.offset(y, alpha)?;
        one_above_zero(g, x, below)
    })
}

/// `y = x > 0 ? x : α(e^(x/α) − 1)`: slope `x > 0 ? 1 : y/α + 1`.
fn celu(c: &mut Context) -> Result<Gradients> {
    let alpha = f64::from(c.view().float("alpha", 1.0));
    c.times_slope(|g, x, y| {
        let scaled = g.scale(y, 1.0 / alpha)?;
        let below = g.offset(scaled, 1.0)?;
        one_above_zero(g, x, below)
    })
}

/// `y = γ(x > 0 ? x : α(eˣ − 1))`: slope `x > 0 ? γ : y + αγ`.
fn selu(c: &mut Context) -> Result<Gradients> {
    let alpha = f64::from(c.view().float("alpha", 1.673_263_2));
    let gamma = f64::from(c.view().float("gamma", 1.050_701));
    c.times_slope(|g, x, y| {
        let below = g.offset(y, alpha * gamma)?;
        let positive = g.with_number("Greater", x, 0.0)?;
        let above = g.scalar_like(x, gamma);
        g.select(positive, above, below)
    })
}

/// `y = clip(α·x + β, 0, 1)`: slope `α` where `0 < y < 1`.
fn hard_sigmoid(c: &mut Context) -> Result<Gradients> {
    let alpha = f64::from(c.view().float("alpha", 0.2));
    c.one(|g, _, y, dy| {
        let (above, below) = (g.with_number("Greater", y, 0.0)?, g.with_number("Less", y, 1.0)?);
        let inside = g.binary("And", above, below)?;
        let scaled = g.scale(dy, alpha)?;
        g.keep_where(inside, scaled)
    })
}

/// `y = x · clip(x/6 + 1/2, 0, 1)`: slope 0 up to −3, `x/3 + 1/2` between, 1 from 3.
fn hard_swish(c: &mut Context) -> Result<Gradients> {
    c.times_slope(|g, x, _| {
        let scaled = g.scale(x, 1.0 / 3.0)?;
        let inner = g.offset(scaled, 0.5)?;
        let (above, beyond) = (g.with_number("Greater", x, -3.0)?, g.with_number("Less", x, 3.0)?);
        let one = g.scalar_like(x, 1.0);
        let upper = g.select(beyond, inner, one)?;
        g.keep_where(above, upper)
    })
}

/// `y = x/(1 + |x|)`: slope `1/(1 + |x|)²`.
fn softsign(c: &mut Context) -> Result<Gradients> {
    c.one(|g, x, _, dy| {
        let size = g.unary("Abs", x)?;
        let below = g.offset(size, 1.0)?;
        let square = g.square(below)?;
        g.div(dy, square)
    })
}

fn gelu(c: &mut Context) -> Result<Gradients> {
    match c.view().str("approximate", "none") {
        "none" => c.times_slope(|g, x, _| exact_gelu_slope(g, x)),
        "tanh" => c.times_slope(|g, x, _| tanh_gelu_slope(g, x)),
        other => Err(c.unsupported(&format!("operator Gelu with approximate = {other:?}"))),
    }
}

/// `y = x·Φ(x)`: slope `Φ(x) + x·φ(x)` with the normal distribution `Φ(x) = (1 + erf(x/√2))/2` and its density `φ`.
fn exact_gelu_slope(g: &mut Graph, x: ValueId) -> Result<ValueId> {
    let scaled = g.scale(x, 1.0 / SQRT_2)?;
    let erf = g.unary("Erf", scaled)?;
    let raised = g.offset(erf, 1.0)?;
    let below = g.scale(raised, 0.5)?;
    let square = g.square(x)?;
    let exponent = g.scale(square, -0.5)?;
    let bell = g.unary("Exp", exponent)?;
    let density = g.scale(bell, FRAC_2_SQRT_PI / (2.0 * SQRT_2))?;
    let rest = g.mul(x, density)?;
    g.add(below, rest)
}

/// `y = x/2·(1 + t)`, `t = tanh(u)`, `u = √(2/π)·(x + 0.044715·x³)`:
/// slope `(1 + t)/2 + x/2·(1 − t²)·√(2/π)·(1 + 3·0.044715·x²)`.
fn tanh_gelu_slope(g: &mut Graph, x: ValueId) -> Result<ValueId> {
    let (k, cubic) = (FRAC_2_SQRT_PI / SQRT_2, 0.044715);
    let square = g.square(x)?;
    let bent = g.scale(square, k * cubic)?;
    let bent = g.offset(bent, k)?;
    let u = g.mul(x, bent)?;
    let t = g.unary("Tanh", u)?;
    let raised = g.offset(t, 1.0)?;
    let flat = g.scale(raised, 0.5)?;
    let t_square = g.square(t)?;
    let t_slope = g.one_minus(t_square)?;
    let u_slope = g.scale(square, 1.5 * k * cubic)?;
    let u_slope = g.offset(u_slope, 0.5 * k)?;
    let rest = g.mul(t_slope, u_slope)?;
    let rest = g.mul(rest, x)?;
    g.add(flat, rest)
}

/// `y = x·t`, `t = tanh(softplus(x))`: slope `t + x·σ(x)·(1 − t²)`.
fn mish(c: &mut Context) -> Result<Gradients> {
    c.times_slope(|g, x, _| {
        let soft = g.unary("Softplus", x)?;
        let t = g.unary("Tanh", soft)?;
        let t_square = g.square(t)?;
        let t_slope = g.one_minus(t_square)?;
        let sigmoid = g.unary("Sigmoid", x)?;
        let inner = g.mul(sigmoid, t_slope)?;
        let rest = g.mul(x, inner)?;
        g.add(t, rest)
    })
}
