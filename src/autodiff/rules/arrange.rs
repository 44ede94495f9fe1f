//! Operators that move elements without changing them: the gradient moves back.

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::view::SliceAxis;
use crate::onnx::{Attrs, Graph, TensorType, ValueId};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => reshape,
        "Transpose" => transpose,
        "Expand" => expand,
        "Tile" => tile,
        "Concat" => concat,
        "Split" => split,
        "Slice" => slice,
        "DepthToSpace" => depth_to_space,
        "SpaceToDepth" => space_to_depth,
        "CumSum" => cumulative_sum,
        "Trilu" => triangle,
        _ => return None,
    })
}

fn reshape(c: &mut Context) -> Result<Gradients> {
    c.one(|g, x, _, dy| {
        let shape = g.shape(x).to_vec();
        g.reshape(dy, &shape)
    })
}

fn transpose(c: &mut Context) -> Result<Gradients> {
    let perm = crate::onnx::infer::transpose_perm(&c.view())?;
    let mut back = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(i, p)| back[*p] = i);
    c.one(|g, _, _, dy| g.transpose(dy, &back))
}

fn expand(c: &mut Context) -> Result<Gradients> {
    let dy = c.dy0()?;
    Ok(vec![Some(c.summed(0, dy)?)])
}

/// Repeats become dimensions of their own, which are summed.
fn tile(c: &mut Context) -> Result<Gradients> {
    c.one(|g, x, _, dy| {
        let (small, large) = (g.shape(x).to_vec(), g.shape(dy).to_vec());
        let (mut shape, mut axes) = (Vec::new(), Vec::new());
        for (s, l) in small.iter().zip(&large) {
            let times = l.checked_div(*s).unwrap_or(1);
            if times != 1 {
                axes.push(shape.len());
                shape.push(times);
            }
            shape.push(*s);
        }
        let apart = g.reshape(dy, &shape)?;
        g.reduce("ReduceSum", apart, &axes, false)
    })
}

/// One `Split` for all wanted inputs, or one `Slice` where only one is wanted.
fn concat(c: &mut Context) -> Result<Gradients> {
    let (axis, dy) = (c.view().axis_attr(0, 0)?, c.dy0()?);
    let count = c.node.inputs.len();
    let sizes = (0..count)
        .map(|i| Ok(c.shape(i)?[axis]))
        .collect::<Result<Vec<_>>>()?;
    let wanted: Vec<usize> = (0..count).filter(|i| c.wants(*i)).collect();
    let mut out = vec![None; count];
    if let [only] = wanted[..] {
        let start = sizes[..only].iter().sum();
        out[only] = Some(c.graph.slice(dy, axis, start, start + sizes[only])?);
        return Ok(out);
    }
    let lengths: Vec<i64> = sizes.iter().map(|n| *n as i64).collect();
    let lengths = c.graph.ints(&lengths);
    let attrs = Attrs::new().int("axis", axis as i64);
    let parts = c.graph.op_n("Split", &[Some(dy), Some(lengths)], attrs, count)?;
    wanted.into_iter().for_each(|i| out[i] = Some(parts[i]));
    Ok(out)
}

/// One `Concat` of the parts' gradients, or one `Pad` where only one part is used.
fn split(c: &mut Context) -> Result<Gradients> {
    let (axis, ty) = (c.view().axis_attr(0, 0)?, c.view().ty(0)?.clone());
    let sizes = c.view().split_parts(c.node.outputs.len())?;
    let used: Vec<usize> = (0..sizes.len()).filter(|i| c.dy[*i].is_some()).collect();
    if let ([only], Some(dy)) = (&used[..], used.first().and_then(|i| c.dy[*i])) {
        let (mut before, mut after) = (vec![0; ty.rank()], vec![0; ty.rank()]);
        before[axis] = sizes[..*only].iter().sum::<usize>() as i64;
        after[axis] = sizes[only + 1..].iter().sum::<usize>() as i64;
        return Ok(vec![Some(c.graph.pad_zeros(dy, &before, &after)?)]);
    }
    let mut parts = Vec::with_capacity(sizes.len());
    for (dy, size) in c.dy.clone().into_iter().zip(sizes) {
        let mut shape = ty.shape.clone();
        shape[axis] = size;
        parts.push(match dy {
            Some(dy) => dy,
            None => c.graph.zeros(&TensorType::new(ty.dtype, shape))?,
        });
    }
    Ok(vec![Some(c.graph.concat(&parts, axis)?)])
}

/// Zeros go where elements were left out: between them for steps, around them for all axes in one `Pad`.
fn slice(c: &mut Context) -> Result<Gradients> {
    let cuts = c.view().slice_axes()?;
    if cuts.iter().any(|cut| cut.len == 0) {
        return Ok(vec![None]);
    }
    c.one(|g, x, _, dy| {
        let backward: Vec<usize> = cuts
            .iter()
            .filter(|cut| cut.step < 0)
            .map(|cut| cut.axis)
            .collect();
        let mut dx = g.reversed(dy, &backward)?;
        let shape = g.shape(x).to_vec();
        let (mut before, mut after) = (vec![0; shape.len()], vec![0; shape.len()]);
        for cut in &cuts {
            dx = dilate(g, dx, cut)?;
            let last = cut.start + (cut.len as i64 - 1) * cut.step;
            let first = cut.start.min(last);
            before[cut.axis] = first;
            after[cut.axis] = shape[cut.axis] as i64 - first - g.shape(dx)[cut.axis] as i64;
        }
        g.pad_zeros(dx, &before, &after)
    })
}

/// `a` with `|step| − 1` zeros behind each element along the axis of `cut`.
fn dilate(g: &mut Graph, a: ValueId, cut: &SliceAxis) -> Result<ValueId> {
    let step = cut.step.unsigned_abs() as usize;
    if step == 1 || cut.len == 1 {
        return Ok(a);
    }
    let mut apart = g.shape(a).to_vec();
    let mut joined = apart.clone();
    joined[cut.axis] *= step;
    apart.insert(cut.axis + 1, 1);
    let (before, mut after) = (vec![0; apart.len()], vec![0; apart.len()]);
    after[cut.axis + 1] = step as i64 - 1;
    let a = g.reshape(a, &apart)?;
    let a = g.pad_zeros(a, &before, &after)?;
    g.reshape(a, &joined)
}

/// `SpaceToDepth` undoes the mode DCR; CRD has the channel's own index before that of the block.
fn depth_to_space(c: &mut Context) -> Result<Gradients> {
    let (block, crd) = (c.view().int("blocksize", 1), c.view().str("mode", "DCR") == "CRD");
    c.one(|g, x, _, dy| {
        if !crd {
            return g.op("SpaceToDepth", &[dy], Attrs::new().int("blocksize", block));
        }
        let (b, shape) = (block as usize, g.shape(x).to_vec());
        let [n, channels, h, w] = [shape[0], shape[1] / (b * b), shape[2], shape[3]];
        let apart = g.reshape(dy, &[n, channels, h, b, w, b])?;
        let moved = g.transpose(apart, &[0, 1, 3, 5, 2, 4])?;
        g.reshape(moved, &shape)
    })
}

fn space_to_depth(c: &mut Context) -> Result<Gradients> {
    let attrs = Attrs::new()
        .int("blocksize", c.view().int("blocksize", 1))
        .str("mode", "DCR");
    c.one(|g, _, _, dy| g.op("DepthToSpace", &[dy], attrs))
}

/// Element `j` counts in the sums `i ≥ j`: a sum from the other end.
fn cumulative_sum(c: &mut Context) -> Result<Gradients> {
    let attrs = Attrs::new()
        .int("exclusive", c.view().int("exclusive", 0))
        .int("reverse", 1 - c.view().int("reverse", 0).clamp(0, 1));
    let axis = c.x(1)?;
    c.one(|g, _, _, dy| g.op("CumSum", &[dy, axis], attrs))
}

fn triangle(c: &mut Context) -> Result<Gradients> {
    let attrs = Attrs::new().int("upper", c.view().int("upper", 1));
    let k = c.node.input(1);
    c.one(|g, _, _, dy| match k {
        Some(k) => g.op("Trilu", &[dy, k], attrs),
        None => g.op("Trilu", &[dy], attrs),
    })
}
