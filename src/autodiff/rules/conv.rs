//! Convolutions: `Conv` and `ConvTranspose` with any strides, pads, dilations and groups, in any number of dimensions.
//!
//! For output position `p` and tap `k` of the window: `y[n,o,p] = Σ W[o,c,k] · x[n,c, p·stride + k·dilation − pad] + b[o]`.
//! - `dx` is the transposed convolution of `dy` with the same weight; for stride 1 also the convolution with the flipped,
//!   transposed weight ([`ConvInputGradient`] chooses between them).
//! - `dW[·,·,k]` is a matrix product per tap, `dy · x_kᵀ`, where `x_k` is `x` as the tap sees it. On CPUs this is about
//!   twice as fast as the textbook form, a convolution with batch and channels exchanged, which remains for large windows.
//! - `db = Σ dy` over batch and positions.

use super::matmul::gemm;
use super::{Context, Gradients, Rule};
use crate::Result;
use crate::autodiff::ConvInputGradient;
use crate::onnx::view::Window;
use crate::onnx::{Attrs, Graph, ValueId};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Conv" => conv,
        "ConvTranspose" => conv_transpose,
        _ => return None,
    })
}

/// Windows with more taps than this get their weight gradient from one convolution instead of one product per tap.
const MAX_TAPS: usize = 64;

fn conv(c: &mut Context) -> Result<Gradients> {
    let (x, w, dy) = (c.x(0)?, c.x(1)?, c.dy0()?);
    let v = c.view();
    let groups = v.int("group", 1).max(1) as usize;
    let window = v.window(Some(&v.shape(1)?[2..]))?;
    let flipped = c.options.conv_input == ConvInputGradient::Flipped
        && c.graph.constants.contains_key(&w)
        && flippable(&window);
    let g = &mut *c.graph;
    let mut out = vec![None; c.node.inputs.len()];
    if c.wants[0] {
        let spatial = g.shape(x)[2..].to_vec();
        out[0] = Some(match flipped {
            true => flipped_conv(g, dy, w, &window, groups)?,
            false => transposed(g, dy, w, &window, groups, &spatial)?,
        });
    }
    if c.wants[1] {
        out[1] = Some(weight_gradient(g, x, dy, &window, groups)?);
    }
    if c.wants(2) {
        out[2] = Some(bias_gradient(c.graph, dy)?);
    }
    Ok(out)
}

/// Exchanges the roles of input and output in [`conv`]: `dx` is the convolution of `dy`, and in `dW` `dy` is what the taps
/// slide over.
fn conv_transpose(c: &mut Context) -> Result<Gradients> {
    let (x, w, dy) = (c.x(0)?, c.x(1)?, c.dy0()?);
    let v = c.view();
    let groups = v.int("group", 1).max(1) as usize;
    let t = v.conv_transpose_window()?;
    let mut out = vec![None; c.node.inputs.len()];
    if c.wants(2) {
        out[2] = Some(bias_gradient(c.graph, dy)?);
    }
    let g = &mut *c.graph;
    // The full reach of the windows: what the pads cut off got no gradient, what output padding added came from no window.
    let padding: Vec<i64> = t.output_padding.iter().map(|p| *p as i64).collect();
    let end: Vec<i64> = t.pads_end.iter().zip(padding).map(|(e, p)| e - p).collect();
    let dy = g.pad_zeros(
        dy,
        &[&[0, 0], &t.pads_begin[..]].concat(),
        &[&[0, 0], &end[..]].concat(),
    )?;
    let zeros = vec![0; end.len()];
    let window = Window {
        pads_begin: zeros.clone(),
        pads_end: zeros,
        ..t.window
    };
    if c.wants[0] {
        out[0] = Some(g.op("Conv", &[dy, w], window_attrs(&window, groups))?);
    }
    if c.wants[1] {
        out[1] = Some(weight_gradient(g, dy, x, &window, groups)?);
    }
    Ok(out)
}

/// `db[o] = Σ dy[·,o,·]`.
fn bias_gradient(g: &mut Graph, dy: ValueId) -> Result<ValueId> {
    let axes: Vec<usize> = (0..g.rank(dy)).filter(|i| *i != 1).collect();
    g.reduce("ReduceSum", dy, &axes, false)
}

fn window_attrs(w: &Window, groups: usize) -> Attrs {
    let list = |v: &[usize]| v.iter().map(|x| *x as i64).collect::<Vec<_>>();
    let pads = [list(&w.pads_begin), list(&w.pads_end)].concat();
    Attrs::new()
        .ints("kernel_shape", &list(&w.kernel))
        .ints("strides", &list(&w.strides))
        .ints("dilations", &list(&w.dilations))
        .ints("pads", &pads)
        .int("group", groups as i64)
}

/// Input gradient as a transposed convolution; `spatial` are the input's positions.
fn transposed(
    g: &mut Graph,
    dy: ValueId,
    w: ValueId,
    window: &Window,
    groups: usize,
    spatial: &[usize],
) -> Result<ValueId> {
    // Positions at the end that no window reaches.
    let rest: Vec<i64> = (0..spatial.len())
        .map(|i| {
            let reach = (g.shape(dy)[i + 2] - 1) * window.strides[i] + window.span(i);
            (spatial[i] + window.pads_begin[i] + window.pads_end[i] - reach) as i64
        })
        .collect();
    let mut attrs = window_attrs(window, groups);
    if rest.iter().any(|r| *r != 0) {
        attrs = attrs.ints("output_padding", &rest);
    }
    g.op("ConvTranspose", &[dy, w], attrs)
}

/// Whether the input gradient is a plain convolution: stride 1, and no pads larger than the window's reach.
fn flippable(w: &Window) -> bool {
    (0..w.kernel.len()).all(|i| w.strides[i] == 1 && w.pads_begin[i].max(w.pads_end[i]) < w.span(i))
}

/// Input gradient as a convolution with the weight flipped in space and its channels exchanged. ONNX Runtime folds the
/// flipped weight when the session is made: a second copy of the weight.
fn flipped_conv(g: &mut Graph, dy: ValueId, w: ValueId, window: &Window, groups: usize) -> Result<ValueId> {
    let shape = g.shape(w).to_vec();
    let (outs, ins, n) = (shape[0] / groups, shape[1], shape.len() - 2);
    let grouped = g.reshape(w, &[&[groups, outs, ins], &shape[2..]].concat())?;
    let perm: Vec<usize> = [0, 2, 1].into_iter().chain(3..3 + n).collect();
    let exchanged = g.transpose(grouped, &perm)?;
    let exchanged = g.reshape(exchanged, &[&[groups * ins, outs], &shape[2..]].concat())?;
    let axes: Vec<usize> = (2..2 + n).filter(|i| shape[*i] > 1).collect();
    let flipped = g.reversed(exchanged, &axes)?;
    let mirrored = |pads: &[usize]| (0..n).map(|i| window.span(i) - 1 - pads[i]).collect();
    let back = Window {
        pads_begin: mirrored(&window.pads_begin),
        pads_end: mirrored(&window.pads_end),
        ..window.clone()
    };
    g.op("Conv", &[dy, flipped], window_attrs(&back, groups))
}

/// Weight gradient (O, C/groups, kernel…) of a convolution from `x` (N, C, …) to an output of gradient `dy` (N, O, …).
fn weight_gradient(g: &mut Graph, x: ValueId, dy: ValueId, w: &Window, groups: usize) -> Result<ValueId> {
    let n = w.kernel.len();
    let taps: usize = w.kernel.iter().product();
    let is_patches = (0..n).all(|i| w.dilations[i] == 1 && w.kernel[i] == w.strides[i]);
    if taps > 1 && is_patches && groups == 1 {
        return by_patches(g, x, dy, w);
    }
    if taps > MAX_TAPS {
        return by_convolution(g, x, dy, w, groups);
    }
    by_taps(g, x, dy, w, groups)
}

/// One product per tap. Channels go first, so that the product also sums over the batch.
fn by_taps(g: &mut Graph, x: ValueId, dy: ValueId, w: &Window, groups: usize) -> Result<ValueId> {
    let n = w.kernel.len();
    let (sx, sy) = (g.shape(x).to_vec(), g.shape(dy).to_vec());
    let (ins, outs) = (sx[1] / groups, sy[1] / groups);
    let inner: usize = sy[0] * sy[2..].iter().product::<usize>();
    let swap: Vec<usize> = [1, 0].into_iter().chain(2..2 + n).collect();
    let x = channels_first(g, x, &swap)?;
    let x = pad_spatial(g, x, w)?;
    let dy = channels_first(g, dy, &swap)?;
    let stack = |g: &mut Graph, v, channels| match groups {
        1 => g.reshape(v, &[channels, inner]),
        _ => g.reshape(v, &[groups, channels, inner]),
    };
    let dy = stack(g, dy, outs)?;
    let mut parts = Vec::new();
    for tap in positions(&w.kernel) {
        let seen = seen_by(g, x, w, &tap, &sy[2..])?;
        let seen = stack(g, seen, ins)?;
        let product = if groups == 1 {
            gemm(g, dy, seen, false, true)?
        } else {
            let seen = g.transpose_last(seen)?;
            g.matmul(dy, seen)?
        };
        parts.push(g.reshape(product, &[1, groups * outs * ins])?);
    }
    let taps = parts.len();
    let all = g.concat(&parts, 0)?;
    let all = g.transpose(all, &[1, 0])?;
    debug_assert_eq!(g.shape(all)[1], taps);
    g.reshape(all, &[&[groups * outs, ins], &w.kernel[..]].concat())
}

/// Batch and channels exchanged: nothing to move where the batch is 1.
fn channels_first(g: &mut Graph, v: ValueId, swap: &[usize]) -> Result<ValueId> {
    let shape = g.shape(v).to_vec();
    if shape[0] == 1 || shape[1] == 1 {
        let shape: Vec<usize> = swap.iter().map(|i| shape[*i]).collect();
        return g.reshape(v, &shape);
    }
    g.transpose(v, swap)
}

fn pad_spatial(g: &mut Graph, x: ValueId, w: &Window) -> Result<ValueId> {
    let pads = |v: &[usize]| {
        [0, 0]
            .into_iter()
            .chain(v.iter().map(|p| *p as i64))
            .collect::<Vec<_>>()
    };
    g.pad_zeros(x, &pads(&w.pads_begin), &pads(&w.pads_end))
}

/// All positions of a window, the last dimension fastest.
pub(super) fn positions(kernel: &[usize]) -> Vec<Vec<usize>> {
    kernel.iter().fold(vec![vec![]], |found, size| {
        let longer = |p: &Vec<usize>| {
            let p = p.clone();
            (0..*size).map(move |i| [&p[..], &[i]].concat())
        };
        found.iter().flat_map(longer).collect()
    })
}

/// What one tap sees of the padded `x` from every one of the `out` positions.
pub(super) fn seen_by(
    g: &mut Graph,
    x: ValueId,
    w: &Window,
    tap: &[usize],
    out: &[usize],
) -> Result<ValueId> {
    let (mut starts, mut ends, mut axes, mut steps) = (vec![], vec![], vec![], vec![]);
    for i in 0..tap.len() {
        let start = tap[i] * w.dilations[i];
        let end = start + (out[i] - 1) * w.strides[i] + 1;
        if start > 0 || end < g.shape(x)[i + 2] || w.strides[i] > 1 {
            starts.push(start as i64);
            ends.push(end as i64);
            axes.push(i as i64 + 2);
            steps.push(w.strides[i] as i64);
        }
    }
    if axes.is_empty() {
        return Ok(x);
    }
    let (starts, ends, axes, steps) = (g.ints(&starts), g.ints(&ends), g.ints(&axes), g.ints(&steps));
    g.op("Slice", &[x, starts, ends, axes, steps], Attrs::new())
}

/// Windows side by side (patch embeddings): `x` cut into patches is a matrix, and the gradient one product.
fn by_patches(g: &mut Graph, x: ValueId, dy: ValueId, w: &Window) -> Result<ValueId> {
    let n = w.kernel.len();
    let (sx, sy) = (g.shape(x).to_vec(), g.shape(dy).to_vec());
    let count = &sy[2..];
    let pads = |v: &[i64]| [&[0, 0], v].concat();
    let before: Vec<i64> = w.pads_begin.iter().map(|p| *p as i64).collect();
    let after: Vec<i64> = (0..n)
        .map(|i| (count[i] * w.kernel[i]) as i64 - before[i] - sx[i + 2] as i64)
        .collect();
    let x = g.pad_zeros(x, &pads(&before), &pads(&after))?;
    let cut: Vec<usize> = (0..n).flat_map(|i| [count[i], w.kernel[i]]).collect();
    let x = g.reshape(x, &[&sx[..2], &cut[..]].concat())?;
    // (N, C, count₁, kernel₁, count₂, kernel₂, …) → (N, count…, C, kernel…)
    let perm: Vec<usize> = [0]
        .into_iter()
        .chain((0..n).map(|i| 2 + 2 * i))
        .chain([1])
        .chain((0..n).map(|i| 3 + 2 * i))
        .collect();
    let patches = g.transpose(x, &perm)?;
    let rows = sy[0] * count.iter().product::<usize>();
    let patches = g.reshape(patches, &[rows, sx[1] * w.kernel.iter().product::<usize>()])?;
    let perm: Vec<usize> = [0].into_iter().chain(2..2 + n).chain([1]).collect();
    let dy = g.transpose(dy, &perm)?;
    let dy = g.reshape(dy, &[rows, sy[1]])?;
    let product = gemm(g, dy, patches, true, false)?;
    g.reshape(product, &[&[sy[1], sx[1]], &w.kernel[..]].concat())
}

/// Batch and channels exchanged, strides and dilations exchanged: `dy` is the window that slides over `x`.
fn by_convolution(g: &mut Graph, x: ValueId, dy: ValueId, w: &Window, groups: usize) -> Result<ValueId> {
    let n = w.kernel.len();
    let (sx, sy) = (g.shape(x).to_vec(), g.shape(dy).to_vec());
    let (ins, outs) = (sx[1] / groups, sy[1]);
    // (N, groups·C′, …) → (C′, groups·N, …)
    let grouped = g.reshape(x, &[&[sx[0], groups, ins], &sx[2..]].concat())?;
    let perm: Vec<usize> = [2, 1, 0].into_iter().chain(3..3 + n).collect();
    let x = g.transpose(grouped, &perm)?;
    let x = g.reshape(x, &[&[ins, groups * sx[0]], &sx[2..]].concat())?;
    let swap: Vec<usize> = [1, 0].into_iter().chain(2..2 + n).collect();
    let dy = channels_first(g, dy, &swap)?;
    // Cut off what no window reaches; otherwise the result would have more taps than the kernel.
    let reach = |i: usize| (sy[i + 2] - 1) * w.strides[i] + w.span(i);
    let after: Vec<i64> = (0..n)
        .map(|i| reach(i) as i64 - (w.pads_begin[i] + sx[i + 2]) as i64)
        .collect();
    let before: Vec<i64> = w.pads_begin.iter().map(|p| *p as i64).collect();
    let x = g.pad_zeros(
        x,
        &[&[0, 0], &before[..]].concat(),
        &[&[0, 0], &after[..]].concat(),
    )?;
    let window = Window {
        kernel: sy[2..].to_vec(),
        strides: w.dilations.clone(),
        dilations: w.strides.clone(),
        pads_begin: vec![0; n],
        pads_end: vec![0; n],
        ceil_mode: false,
    };
    let product = g.op("Conv", &[x, dy], window_attrs(&window, groups))?;
    let product = channels_first(g, product, &swap)?;
    debug_assert_eq!(g.shape(product)[..2], [outs, ins]);
    Ok(product)
}
