//! Normalisations: over channels groups and positions (`LayerNormalization`, `GroupNormalization`,
//! `InstanceNormalization`, `RMSNormalization`), with fixed statistics (`BatchNormalization`), to unit length
//! (`LpNormalization`).
//!
//! The first family is `y = x̂ ∘ scale + bias` with `x̂ = (x − mean)·r`, `r = 1/√(var + ε)`. With `g = dy ∘ scale`:
//! `dx = r · (g − mean(g) − x̂ ∘ mean(g∘x̂))`, `dscale = Σ dy∘x̂`, `dbias = Σ dy`.
//! `x̂` and `r` are computed again from `x` in one pass instead of being kept from the forward pass.

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::{Attrs, Graph, ValueId};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "LayerNormalization" => layer_norm,
        "GroupNormalization" => group_norm,
        "InstanceNormalization" => instance_norm,
        "RMSNormalization" => rms_norm,
        "BatchNormalization" => batch_norm,
        "LpNormalization" => lp_norm,
        _ => return None,
    })
}

/// `x̂` and `r` over the dimensions from `axis` on; `r` has 1 for those.
struct Normalised {
    x_hat: ValueId,
    r: ValueId,
    axes: Vec<usize>,
}

impl Normalised {
    /// Recomputes both. `LayerNormalization` gives them in one pass, and more exactly than separate reductions in single
    /// precision; it exists from opset 17 on.
    fn of(g: &mut Graph, x: ValueId, axis: usize, epsilon: f32) -> Result<Self> {
        let axes: Vec<usize> = (axis..g.rank(x)).collect();
        if g.opset >= 17 {
            let one = g.scalar_like(x, 1.0);
            let shape = g.shape(x)[axis..].to_vec();
            let ones = g.expand(one, &shape)?;
            let attrs = Attrs::new().int("axis", axis as i64).float("epsilon", epsilon);
            let made = g.op_n("LayerNormalization", &[Some(x), Some(ones)], attrs, 3)?;
            let r = g.cast(made[2], g.dtype(x))?;
            return Ok(Self {
                x_hat: made[0],
                r,
                axes,
            });
        }
        let mean = g.mean_keep(x, &axes)?;
        let centred = g.sub(x, mean)?;
        let r = inverse_root_mean_square(g, centred, &axes, epsilon)?;
        Ok(Self {
            x_hat: g.mul(centred, r)?,
            r,
            axes,
        })
    }

    /// `r · (g − mean(g) − x̂ ∘ mean(g∘x̂))`.
    fn input_gradient(&self, g: &mut Graph, dy: ValueId) -> Result<ValueId> {
        let mean = g.mean_keep(dy, &self.axes)?;
        let centred = g.sub(dy, mean)?;
        self.without_length(g, dy, centred)
    }

    /// `r · (rest − x̂ ∘ mean(g∘x̂))`.
    fn without_length(&self, g: &mut Graph, dy: ValueId, rest: ValueId) -> Result<ValueId> {
        let product = g.mul(dy, self.x_hat)?;
        let along = g.mean_keep(product, &self.axes)?;
        let part = g.mul(self.x_hat, along)?;
        let rest = g.sub(rest, part)?;
        g.mul(rest, self.r)
    }
}

/// `1/√(mean(v²) + ε)`.
fn inverse_root_mean_square(g: &mut Graph, v: ValueId, axes: &[usize], epsilon: f32) -> Result<ValueId> {
    let count: usize = axes.iter().map(|a| g.shape(v)[*a]).product();
    let squares = g.reduce("ReduceSumSquare", v, axes, true)?;
    let mean = g.scale(squares, 1.0 / count as f64)?;
    let mean = g.offset(mean, f64::from(epsilon))?;
    let root = g.unary("Sqrt", mean)?;
    g.unary("Reciprocal", root)
}

/// Normalises over the dimensions from `axis` on; scale and bias broadcast to them.
fn layer_norm(c: &mut Context) -> Result<Gradients> {
    let (x, scale, dy) = (c.x(0)?, c.x(1)?, only_first(c)?);
    let axis = c.view().axis_attr(0, -1)?;
    let epsilon = c.view().float("epsilon", 1e-5);
    let n = Normalised::of(c.graph, x, axis, epsilon)?;
    let mut out = scale_and_bias(c, dy, n.x_hat)?;
    if c.wants[0] {
        let g = c.graph.mul(dy, scale)?;
        out[0] = Some(n.input_gradient(c.graph, g)?);
    }
    Ok(out)
}

/// `y = x · r · scale` with `r = 1/√(mean(x²) + ε)`: as a layer norm without the mean.
fn rms_norm(c: &mut Context) -> Result<Gradients> {
    let (x, scale, dy) = (c.x(0)?, c.x(1)?, c.dy0()?);
    let axis = c.view().axis_attr(0, -1)?;
    let epsilon = c.view().float("epsilon", 1e-5);
    let axes: Vec<usize> = (axis..c.graph.rank(x)).collect();
    let r = inverse_root_mean_square(c.graph, x, &axes, epsilon)?;
    let x_hat = c.graph.mul(x, r)?;
    let n = Normalised { x_hat, r, axes };
    let mut out = scale_and_bias(c, dy, x_hat)?;
    if c.wants[0] {
        let g = c.graph.mul(dy, scale)?;
        out[0] = Some(n.without_length(c.graph, g, g)?);
    }
    Ok(out)
}

/// The gradient of `y`; those of the statistics that `LayerNormalization` can also give have no rule.
fn only_first(c: &Context) -> Result<ValueId> {
    if c.dy.iter().skip(1).any(Option::is_some) {
        return Err(c.unsupported("a LayerNormalization whose mean or deviation is used"));
    }
    c.dy0()
}

/// Gradients of inputs 1 and 2 of `y = x̂ ∘ scale + bias`, where these broadcast by NumPy's rules.
fn scale_and_bias(c: &mut Context, dy: ValueId, x_hat: ValueId) -> Result<Gradients> {
    let mut out = vec![None; c.node.inputs.len()];
    if c.wants(1) {
        let shape = c.shape(1)?;
        let product = c.graph.mul(dy, x_hat)?;
        out[1] = Some(c.graph.sum_to(product, &shape)?);
    }
    if c.wants(2) {
        let shape = c.shape(2)?;
        out[2] = Some(c.graph.sum_to(dy, &shape)?);
    }
    Ok(out)
}

/// Normalises each of `num_groups` groups of channels with all their positions. Scale and bias are per channel from
/// opset 21 on, and per group before.
fn group_norm(c: &mut Context) -> Result<Gradients> {
    let groups = c.view().int("num_groups", 1).max(1) as usize;
    grouped(c, groups)
}

/// Normalises every channel by itself: as many groups as channels.
fn instance_norm(c: &mut Context) -> Result<Gradients> {
    let channels = c.shape(0)?[1];
    grouped(c, channels)
}

fn grouped(c: &mut Context, groups: usize) -> Result<Gradients> {
    let (x, scale, dy) = (c.x(0)?, c.x(1)?, c.dy0()?);
    let shape = c.shape(0)?;
    let epsilon = c.view().float("epsilon", 1e-5);
    let (batch, channels) = (shape[0], shape[1]);
    let positions: usize = shape[2..].iter().product();
    // (N, channels or groups, what shares one scale)
    let scales = c.shape(1)?[0];
    let scaled = [batch, scales, channels / scales * positions];
    let flat = [batch, groups, channels / groups * positions];
    let x = c.graph.reshape(x, &flat)?;
    let n = Normalised::of(c.graph, x, 2, epsilon)?;
    let dy = c.graph.reshape(dy, &scaled)?;
    let mut out = vec![None; c.node.inputs.len()];
    if c.wants(1) {
        let x_hat = c.graph.reshape(n.x_hat, &scaled)?;
        let product = c.graph.mul(dy, x_hat)?;
        out[1] = Some(c.graph.reduce("ReduceSum", product, &[0, 2], false)?);
    }
    if c.wants(2) {
        out[2] = Some(c.graph.reduce("ReduceSum", dy, &[0, 2], false)?);
    }
    if c.wants[0] {
        let scale = match is_one(c.graph, scale) {
            true => c.graph.scalar_like(dy, 1.0),
            false => c.graph.reshape(scale, &[1, scales, 1])?,
        };
        let g = c.graph.mul(dy, scale)?;
        let g = c.graph.reshape(g, &flat)?;
        let dx = n.input_gradient(c.graph, g)?;
        out[0] = Some(c.graph.reshape(dx, &shape)?);
    }
    Ok(out)
}

/// Whether a constant holds only ones: exporters write group norms as `InstanceNormalization` with such a scale, and
/// multiply with the real one afterwards.
fn is_one(g: &Graph, value: ValueId) -> bool {
    g.constants.contains_key(&value)
        && g.constant_floats(value)
            .is_some_and(|v| v.iter().all(|x| *x == 1.0))
}

/// Inference form, `y = (x − mean) · r · scale + bias` with `r = 1/√(var + ε)` and all four given per channel:
/// `dx = dy·r·scale`, `dscale = r·Σ dy·(x − mean)`, `dbias = Σ dy`, `dmean = −r·scale·Σ dy`,
/// `dvar = −½·r³·scale·Σ dy·(x − mean)`.
fn batch_norm(c: &mut Context) -> Result<Gradients> {
    if c.view().int("training_mode", 0) != 0 {
        return Err(c.unsupported("a BatchNormalization in training mode"));
    }
    let (x, scale, mean, var, dy) = (c.x(0)?, c.x(1)?, c.x(3)?, c.x(4)?, c.dy0()?);
    let epsilon = f64::from(c.view().float("epsilon", 1e-5));
    let wants = c.wants.clone();
    let g = &mut *c.graph;
    let channels = g.shape(scale)[0];
    let spread: Vec<usize> = [channels].into_iter().chain(vec![1; g.rank(x) - 2]).collect();
    let others: Vec<usize> = (0..g.rank(x)).filter(|i| *i != 1).collect();
    let shifted = g.offset(var, epsilon)?;
    let root = g.unary("Sqrt", shifted)?;
    let r = g.unary("Reciprocal", root)?;
    let factor = g.mul(r, scale)?;
    let mut out = vec![None; 5];
    if wants[0] {
        let factor = g.reshape(factor, &spread)?;
        out[0] = Some(g.mul(dy, factor)?);
    }
    if wants[1] || wants[4] {
        let mean = g.reshape(mean, &spread)?;
        let centred = g.sub(x, mean)?;
        let product = g.mul(dy, centred)?;
        let sum = g.reduce("ReduceSum", product, &others, false)?;
        let along = g.mul(sum, r)?;
        out[1] = Some(along);
        let square = g.mul(r, factor)?;
        let slope = g.mul(along, square)?;
        out[4] = Some(g.scale(slope, -0.5)?);
    }
    if wants[2] || wants[3] {
        let sum = g.reduce("ReduceSum", dy, &others, false)?;
        out[2] = Some(sum);
        let along = g.mul(sum, factor)?;
        out[3] = Some(g.neg(along)?);
    }
    Ok(out)
}

/// `y = x/‖x‖` along one axis. `p = 2`: `dx = (dy − y·Σ dy∘y)/‖x‖`; `p = 1`: `dx = (dy − sign(x)·Σ dy∘y)/‖x‖`.
fn lp_norm(c: &mut Context) -> Result<Gradients> {
    let (x, dy) = (c.x(0)?, c.dy0()?);
    let y = c.y0()?;
    let axis = c.view().axis_attr(0, -1)?;
    let p = c.view().int("p", 2);
    let g = &mut *c.graph;
    let (norm, slope) = match p {
        1 => (g.reduce("ReduceL1", x, &[axis], true)?, g.unary("Sign", x)?),
        2 => (g.reduce("ReduceL2", x, &[axis], true)?, y),
        _ => return Err(c.unsupported(&format!("a norm with p = {p}"))),
    };
    let product = g.mul(dy, y)?;
    let sum = g.sum_keep(product, &[axis])?;
    let part = g.mul(slope, sum)?;
    let rest = g.sub(dy, part)?;
    Ok(vec![Some(g.div(rest, norm)?)])
}
