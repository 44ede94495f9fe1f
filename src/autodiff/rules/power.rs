//! `Pow`: `y = x^p`, `dx = dy · p · x^(p−1)`, `dp = dy · y · ln x`.
//!
//! Constant exponents, which is what exporters write (`x²` of a norm, `√x`), get forms without a call of `Pow`. Where
//! `p = 0` the slope in `x` is 0 even at `x = 0`, and at `x = 0` the slope in `p` is 0, as in PyTorch.

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::{Graph, ValueId};

pub(super) fn rule(op: &str) -> Option<Rule> {
    (op == "Pow").then_some(pow)
}

fn pow(c: &mut Context) -> Result<Gradients> {
    let (x, p, y, dy) = (c.x(0)?, c.x(1)?, c.y0()?, c.dy0()?);
    let mut out = vec![None, None];
    if c.wants(0) {
        let full = match known_numbers(c.graph, p) {
            Some(numbers) => by_constant(c.graph, x, p, y, dy, &numbers)?,
            None => Some(by_variable(c.graph, x, p, dy)?),
        };
        out[0] = full.map(|full| c.summed(0, full)).transpose()?;
    }
    if c.wants(1) {
        let full = to_exponent(c.graph, x, y, dy)?;
        let exponent_type = c.graph.dtype(p);
        let sum = c.summed(1, full)?;
        out[1] = Some(c.graph.cast(sum, exponent_type)?);
    }
    Ok(out)
}

/// The exponents, if they are a constant in memory. They may be integers where the base is a float.
fn known_numbers(g: &Graph, p: ValueId) -> Option<Vec<f64>> {
    let constant = g.constants.get(&p)?;
    let integers = || Some(constant.to_integers()?.into_iter().map(|n| n as f64).collect());
    constant.to_floats().or_else(integers)
}

/// `dx` for known exponents `numbers` (the constant `p`); `None` where it is 0 everywhere.
fn by_constant(
    g: &mut Graph,
    x: ValueId,
    p: ValueId,
    y: ValueId,
    dy: ValueId,
    numbers: &[f64],
) -> Result<Option<ValueId>> {
    let Some(&first) = numbers.first() else {
        return Ok(None);
    };
    if numbers.iter().any(|n| *n != first) {
        let dtype = g.dtype(x);
        let shape = g.shape(p).to_vec();
        // An exponent 0 has the slope 0·x instead of 0·x⁻¹, which would not be a number at 0.
        let lower: Vec<f64> = numbers
            .iter()
            .map(|n| if *n == 0.0 { 1.0 } else { n - 1.0 })
            .collect();
        let (factor, lower) = (
            g.float_tensor(dtype, &shape, numbers),
            g.float_tensor(dtype, &shape, &lower),
        );
        let power = g.binary("Pow", x, lower)?;
        let slope = g.mul(power, factor)?;
        return g.mul(dy, slope).map(Some);
    }
    let power = match first {
        0.0 => return Ok(None),
        1.0 => return Ok(Some(dy)),
        2.0 => x,
        3.0 => g.square(x)?,
        0.5 => g.unary("Reciprocal", y)?,
        -0.5 => {
            let square = g.square(y)?;
            g.mul(square, y)?
        }
        -1.0 => g.square(y)?,
        other => g.with_number("Pow", x, other - 1.0)?,
    };
    let scaled = g.scale(dy, first)?;
    g.mul(scaled, power).map(Some)
}

/// `dx` for an exponent that is computed.
fn by_variable(g: &mut Graph, x: ValueId, p: ValueId, dy: ValueId) -> Result<ValueId> {
    let dtype = g.dtype(x);
    let p = g.cast(p, dtype)?;
    let flat = g.with_number("Equal", p, 0.0)?;
    let one = g.scalar_like(p, 1.0);
    let lower = g.sub(p, one)?;
    let lower = g.select(flat, one, lower)?;
    let power = g.binary("Pow", x, lower)?;
    let slope = g.mul(power, p)?;
    g.mul(dy, slope)
}

/// `dp`, before it is summed to the shape of `p`.
fn to_exponent(g: &mut Graph, x: ValueId, y: ValueId, dy: ValueId) -> Result<ValueId> {
    let zero = g.with_number("Equal", x, 0.0)?;
    let one = g.scalar_like(x, 1.0);
    let safe = g.select(zero, one, x)?;
    let log = g.unary("Log", safe)?;
    let slope = g.mul(y, log)?;
    g.mul(dy, slope)
}
