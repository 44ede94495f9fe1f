//! Pooling: `AveragePool`, `MaxPool`, `GlobalAveragePool`, `GlobalMaxPool`.
//!
//! Every output element sends its gradient back to the window it came from: evenly for a mean, to the largest element for
//! a maximum (in equal parts where several are equal). Windows side by side are undone by repeating, overlapping ones by a
//! transposed convolution that puts each tap back in its place.

use super::conv::{positions, seen_by};
use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::view::Window;
use crate::onnx::{Attrs, Graph, ValueId};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "AveragePool" => average_pool,
        "MaxPool" => max_pool,
        "GlobalAveragePool" => global_average_pool,
        "GlobalMaxPool" => global_max_pool,
        _ => return None,
    })
}

/// `y = mean(x)` over all positions: `dx = dy / positions`.
fn global_average_pool(c: &mut Context) -> Result<Gradients> {
    let (dy, shape) = (c.dy0()?, c.shape(0)?);
    let positions: usize = shape[2..].iter().product();
    let share = c.graph.scale(dy, 1.0 / positions as f64)?;
    Ok(vec![Some(c.graph.expand(share, &shape)?)])
}

/// `y = max(x)` over all positions: `dy` goes to the largest.
fn global_max_pool(c: &mut Context) -> Result<Gradients> {
    let axes: Vec<usize> = (2..c.shape(0)?.len()).collect();
    c.one(|g, x, y, dy| {
        let largest = g.equal_mask(x, y)?;
        let count = g.sum_keep(largest, &axes)?;
        let share = g.div(dy, count)?;
        g.mul(share, largest)
    })
}

/// `dx` is `dy / count` in every position of its window.
fn average_pool(c: &mut Context) -> Result<Gradients> {
    let (dy, shape) = (c.dy0()?, c.shape(0)?);
    let window = c.view().window(None)?;
    let include_pads = c.view().int("count_include_pad", 0) != 0;
    let out = c.graph.shape(dy)[2..].to_vec();
    let counts: Vec<Vec<usize>> = (0..out.len())
        .map(|i| axis_counts(&window, i, shape[i + 2], out[i], include_pads))
        .collect();
    let g = &mut *c.graph;
    let share = shares(g, dy, &counts)?;
    let dx = if side_by_side(&window, &shape[2..], &out) {
        repeated(g, share, &window.kernel, &shape)?
    } else {
        let taps: usize = window.kernel.iter().product();
        let dtype = g.dtype(dy);
        let ones = g.float_tensor(dtype, &[&[1, 1], &window.kernel[..]].concat(), &vec![1.0; taps]);
        let images = g.reshape(share, &[&[shape[0] * shape[1], 1], &out[..]].concat())?;
        put_back(g, images, ones, &window, &shape)?
    };
    Ok(vec![Some(dx)])
}

/// How many elements each window along axis `i` counts: those of the input, or also those of the padding.
fn axis_counts(w: &Window, i: usize, size: usize, out: usize, include_pads: bool) -> Vec<usize> {
    let begin = w.pads_begin[i];
    let counted = if include_pads {
        0..begin + size + w.pads_end[i]
    } else {
        begin..begin + size
    };
    let at = |o: usize, k: usize| o * w.strides[i] + k * w.dilations[i];
    (0..out)
        .map(|o| {
            (0..w.kernel[i])
                .filter(|k| counted.contains(&at(o, *k)))
                .count()
                .max(1)
        })
        .collect()
}

/// `dy` divided by the number of elements in each window.
fn shares(g: &mut Graph, dy: ValueId, counts: &[Vec<usize>]) -> Result<ValueId> {
    let even = counts.iter().all(|axis| axis.iter().all(|n| *n == axis[0]));
    if even {
        let count: usize = counts.iter().map(|axis| axis[0]).product();
        return g.scale(dy, 1.0 / count as f64);
    }
    let all = counts.iter().fold(vec![1.0], |done: Vec<f64>, axis| {
        done.iter()
            .flat_map(|a| axis.iter().map(move |n| a / *n as f64))
            .collect()
    });
    let shape: Vec<usize> = [1, 1].into_iter().chain(counts.iter().map(Vec::len)).collect();
    let factors = g.float_tensor(g.dtype(dy), &shape, &all);
    g.mul(dy, factors)
}

/// Whether every input element is in exactly one window.
fn side_by_side(w: &Window, size: &[usize], out: &[usize]) -> bool {
    (0..size.len()).all(|i| {
        let plain = w.dilations[i] == 1 && w.pads_begin[i] == 0 && w.pads_end[i] == 0;
        plain && w.strides[i] == w.kernel[i] && out[i] * w.kernel[i] == size[i]
    })
}

/// Every element `times[i]` times along spatial dimension `i`.
fn repeated(g: &mut Graph, v: ValueId, times: &[usize], shape: &[usize]) -> Result<ValueId> {
    let from = g.shape(v).to_vec();
    let (mut narrow, mut wide) = (from[..2].to_vec(), from[..2].to_vec());
    for (n, times) in from[2..].iter().zip(times) {
        narrow.extend([*n, 1]);
        wide.extend([*n, *times]);
    }
    let v = g.reshape(v, &narrow)?;
    let v = g.expand(v, &wide)?;
    g.reshape(v, shape)
}

/// Adds up what the taps (N·C, taps, out…) send to the positions of `x` of the given shape; `placing` (taps, 1, kernel…)
/// says where each tap lies.
fn put_back(g: &mut Graph, taps: ValueId, placing: ValueId, w: &Window, shape: &[usize]) -> Result<ValueId> {
    let list = |v: &[usize]| v.iter().map(|x| *x as i64).collect::<Vec<_>>();
    let attrs = Attrs::new()
        .ints("kernel_shape", &list(&w.kernel))
        .ints("strides", &list(&w.strides))
        .ints("dilations", &list(&w.dilations));
    let full = g.op("ConvTranspose", &[taps, placing], attrs)?;
    let n = w.kernel.len();
    let begin: Vec<i64> = w.pads_begin.iter().map(|p| -(*p as i64)).collect();
    let end: Vec<i64> = (0..n)
        .map(|i| (shape[i + 2] + w.pads_begin[i]) as i64 - g.shape(full)[i + 2] as i64)
        .collect();
    let cut = g.pad_zeros(
        full,
        &[&[0, 0], &begin[..]].concat(),
        &[&[0, 0], &end[..]].concat(),
    )?;
    g.reshape(cut, shape)
}

/// `dy` goes to the elements of the window that are equal to its maximum.
fn max_pool(c: &mut Context) -> Result<Gradients> {
    let (x, y, dy) = (c.x(0)?, c.y0()?, c.dy0()?);
    let (window, shape) = (c.view().window(None)?, c.shape(0)?);
    let g = &mut *c.graph;
    let (n, out) = (window.kernel.len(), g.shape(y)[2..].to_vec());
    let images = shape[0] * shape[1];
    let stacked = |g: &mut Graph, v| g.reshape(v, &[&[images, 1], &out[..]].concat());
    let (y, dy) = (stacked(g, y)?, stacked(g, dy)?);
    let x = g.reshape(x, &[&[images, 1], &shape[2..]].concat())?;
    let x = surrounded(g, x, &window, &out)?;
    let mut masks = Vec::new();
    for tap in positions(&window.kernel) {
        let seen = seen_by(g, x, &window, &tap, &out)?;
        masks.push(g.equal_mask(seen, y)?);
    }
    let taps = masks.len();
    let masks = g.concat(&masks, 1)?;
    let count = g.sum_keep(masks, &[1])?;
    let share = g.div(dy, count)?;
    let sent = g.mul(masks, share)?;
    let unit: Vec<f64> = (0..taps * taps)
        .map(|k| f64::from(u8::from(k / taps == k % taps)))
        .collect();
    let placing = g.float_tensor(g.dtype(x), &[&[taps, 1], &window.kernel[..n]].concat(), &unit);
    Ok(vec![Some(put_back(g, sent, placing, &window, &shape)?)])
}

/// `x` with −∞ around it, as far as the windows reach.
fn surrounded(g: &mut Graph, x: ValueId, w: &Window, out: &[usize]) -> Result<ValueId> {
    let before: Vec<i64> = [0, 0]
        .into_iter()
        .chain(w.pads_begin.iter().map(|p| *p as i64))
        .collect();
    let reach = |i: usize| (out[i] - 1) * w.strides[i] + w.span(i);
    let after: Vec<i64> = [0, 0]
        .into_iter()
        .chain(
            (0..out.len()).map(|i| (reach(i) as i64 - (w.pads_begin[i] + g.shape(x)[i + 2]) as i64).max(0)),
        )
        .collect();
    if before.iter().chain(&after).all(|p| *p == 0) {
        return Ok(x);
    }
    let pads = g.ints(&[before, after].concat());
    let never = g.scalar_like(x, f64::NEG_INFINITY);
    g.op("Pad", &[x, pads, never], Attrs::new().str("mode", "constant"))
}
