//! `Resize` and its forerunner `Upsample`.
//!
//! Resizing is linear and separable: along each axis `y = M·x` with a constant matrix `M` (out × in) that depends on the
//! mode alone, so `dx = Mᵀ·dy` axis by axis. Nearest neighbours repeated a whole number of times (the upsampling blocks of
//! diffusion models) are summed directly.

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::{Graph, ValueId};

mod interpolation;

use interpolation::{Axis, Sampling};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Resize" | "Upsample" => resize,
        _ => return None,
    })
}

fn resize(c: &mut Context) -> Result<Gradients> {
    let dy = c.dy0()?;
    let from = c.shape(0)?;
    let sampling = Sampling::of(&c.view())?.ok_or_else(|| c.unsupported("this mode of Resize"))?;
    let axes = Axis::of(&c.view(), c.graph.shape(dy))?;
    let mut gradient = dy;
    let mut repeats = vec![1; from.len()];
    for axis in &axes {
        match sampling.repeats(axis) {
            Some(times) => repeats[axis.position] = times,
            None => gradient = through_matrix(c.graph, gradient, axis, &sampling)?,
        }
    }
    let gradient = sum_repeats(c.graph, gradient, &from, &repeats)?;
    Ok(vec![Some(gradient)])
}

/// `Mᵀ` applied along one axis.
fn through_matrix(g: &mut Graph, dy: ValueId, axis: &Axis, sampling: &Sampling) -> Result<ValueId> {
    let mut shape = g.shape(dy).to_vec();
    let at = axis.position;
    let matrix = sampling.matrix(axis);
    let before: usize = shape[..at].iter().product();
    let after: usize = shape[at + 1..].iter().product();
    let dtype = g.dtype(dy);
    let product = if after == 1 {
        let m = g.float_tensor(dtype, &[axis.to, axis.from], &matrix);
        let rows = g.reshape(dy, &[before, axis.to])?;
        g.matmul(rows, m)?
    } else {
        let transposed: Vec<f64> = (0..axis.from)
            .flat_map(|i| matrix.iter().skip(i).step_by(axis.from).copied())
            .collect();
        let m = g.float_tensor(dtype, &[axis.from, axis.to], &transposed);
        let stack = g.reshape(dy, &[before, axis.to, after])?;
        g.matmul(m, stack)?
    };
    shape[at] = axis.from;
    g.reshape(product, &shape)
}

/// Sums `times[i]` neighbours along every dimension `i`, down to `shape`.
fn sum_repeats(g: &mut Graph, dy: ValueId, shape: &[usize], times: &[usize]) -> Result<ValueId> {
    let (mut split, mut axes) = (Vec::new(), Vec::new());
    for (n, times) in shape.iter().zip(times) {
        split.push(*n);
        if *times > 1 {
            axes.push(split.len());
            split.push(*times);
        }
    }
    let split = g.reshape(dy, &split)?;
    let sum = g.reduce("ReduceSum", split, &axes, false)?;
    g.reshape(sum, shape)
}
