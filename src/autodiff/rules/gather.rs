//! Operators that pick elements by index: every element gets the sum of the gradients of its copies.
//!
//! Indices known beforehand and picked once each turn round into a `Pad` or another `Gather`. Others are added up by
//! `ScatterND`/`ScatterElements` with `reduction="add"`, which exist from opset 16 on; before that a product with a
//! one-hot matrix does the same, exactly.

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::{Attrs, Graph, TensorType, ValueId};
use crate::tensor::DType;

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Gather" => gather,
        "GatherElements" => gather_elements,
        "GatherND" => gather_nd,
        "TopK" => top_k,
        _ => return None,
    })
}

/// First operator set whose scatter operators can add.
const ADDING_SCATTER: i64 = 16;

/// `y[.., i.., ..] = x[.., index[i..], ..]` along one axis.
fn gather(c: &mut Context) -> Result<Gradients> {
    let axis = c.view().axis_attr(0, 0)?;
    let (shape, index, dy) = (c.shape(0)?, c.x(1)?, c.dy0()?);
    let g = &mut *c.graph;
    let (n, picked) = (shape[axis], g.ty(index).len());
    if let Some(numbers) = g.constants.get(&index).and_then(|k| k.to_integers()) {
        let places: Vec<usize> = numbers
            .iter()
            .map(|i| if *i < 0 { i + n as i64 } else { *i } as usize)
            .collect();
        if let Some(dx) = pick_back(g, dy, axis, &shape, &places)? {
            return Ok(vec![Some(dx)]);
        }
    }
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let index = g.wrapped_indices(index, n)?;
    let index = g.reshape(index, &[picked])?;
    let updates = g.reshape(dy, &[outer, picked, inner])?;
    let sum = scatter_add(g, n, index, updates)?;
    Ok(vec![Some(g.reshape(sum, &shape)?)])
}

/// The gradient for indices that are known and distinct; `None` where one is picked twice.
fn pick_back(
    g: &mut Graph,
    dy: ValueId,
    axis: usize,
    shape: &[usize],
    places: &[usize],
) -> Result<Option<ValueId>> {
    let n = shape[axis];
    let mut back = vec![None; n];
    for (i, place) in places.iter().enumerate() {
        match back.get_mut(*place) {
            Some(slot @ None) => *slot = Some(i),
            _ => return Ok(None),
        }
    }
    let Some(&first) = places.first() else {
        return Ok(None);
    };
    let mut flat = shape.to_vec();
    flat[axis] = places.len();
    let dy = g.reshape(dy, &flat)?;
    let (mut before, mut after) = (vec![0; shape.len()], vec![0; shape.len()]);
    if places.iter().enumerate().all(|(i, place)| *place == first + i) {
        before[axis] = first as i64;
        after[axis] = (n - first - places.len()) as i64;
        return g.pad_zeros(dy, &before, &after).map(Some);
    }
    // Elements that were not picked read a zero appended to the gradient.
    after[axis] = i64::from(places.len() < n);
    let padded = g.pad_zeros(dy, &before, &after)?;
    let back: Vec<i64> = back.iter().map(|i| i.unwrap_or(places.len()) as i64).collect();
    let back = g.ints(&back);
    g.op("Gather", &[padded, back], Attrs::new().int("axis", axis as i64))
        .map(Some)
}

/// `out[o, index[m], :] += updates[o, m, :]` for `updates` of shape [outer, m, inner] and `n` rows; the index must not be
/// negative.
fn scatter_add(g: &mut Graph, n: usize, index: ValueId, updates: ValueId) -> Result<ValueId> {
    let [outer, picked, inner] = g.shape(updates)[..] else {
        unreachable!("callers reshape the updates to three dimensions")
    };
    if g.opset < ADDING_SCATTER {
        let hot = one_hot(g, index, &[n, 1], g.dtype(updates))?;
        return g.matmul(hot, updates);
    }
    // Rows of all outer elements in one list.
    let firsts: Vec<i64> = (0..outer).map(|o| (o * n) as i64).collect();
    let firsts = g.ints(&firsts);
    let firsts = g.reshape(firsts, &[outer, 1])?;
    let rows = if outer == 1 { index } else { g.add(index, firsts)? };
    let rows = g.reshape(rows, &[outer * picked, 1])?;
    let updates = g.reshape(updates, &[outer * picked, inner])?;
    let zeros = g.zeros(&TensorType::new(g.dtype(updates), vec![outer * n, inner]))?;
    let sum = g.op(
        "ScatterND",
        &[zeros, rows, updates],
        Attrs::new().str("reduction", "add"),
    )?;
    g.reshape(sum, &[outer, n, inner])
}

/// 1 where the index equals the position along the first dimension of `shape`, broadcast against the index.
fn one_hot(g: &mut Graph, index: ValueId, shape: &[usize], dtype: DType) -> Result<ValueId> {
    let positions: Vec<i64> = (0..shape[0] as i64).collect();
    let positions = g.ints(&positions);
    let positions = g.reshape(positions, shape)?;
    let equal = g.binary("Equal", index, positions)?;
    g.cast(equal, dtype)
}

/// `y[.., i, ..] = x[.., index[.., i, ..], ..]`: like `Gather` with an index for every element.
fn gather_elements(c: &mut Context) -> Result<Gradients> {
    let axis = c.view().axis_attr(0, 0)?;
    let (ty, index, dy) = (c.view().ty(0)?.clone(), c.x(1)?, c.dy0()?);
    let g = &mut *c.graph;
    if g.opset >= ADDING_SCATTER {
        let zeros = g.zeros(&ty)?;
        let attrs = Attrs::new().int("axis", axis as i64).str("reduction", "add");
        return Ok(vec![Some(g.op("ScatterElements", &[zeros, index, dy], attrs)?)]);
    }
    // A dimension for the places, before that of the picks, which is then summed.
    let mut apart = g.shape(index).to_vec();
    apart.insert(axis, 1);
    let index = g.wrapped_indices(index, ty.shape[axis])?;
    let (index, dy) = (g.reshape(index, &apart)?, g.reshape(dy, &apart)?);
    let mut places = vec![1; apart.len() - axis];
    places[0] = ty.shape[axis];
    let hot = one_hot(g, index, &places, ty.dtype)?;
    let spread = g.mul(hot, dy)?;
    let sum = g.reduce("ReduceSum", spread, &[axis + 1], false)?;
    // The index may leave out the ends of the other dimensions.
    let rest: Vec<i64> = ty
        .shape
        .iter()
        .zip(g.shape(sum))
        .map(|(n, m)| *n as i64 - *m as i64)
        .collect();
    Ok(vec![Some(g.pad_zeros(sum, &vec![0; rest.len()], &rest)?)])
}

/// `y[b.., i.., :] = x[b.., index[b.., i.., 0], index[b.., i.., 1], …, :]`: the coordinates become one row number.
fn gather_nd(c: &mut Context) -> Result<Gradients> {
    let batch = c.view().int("batch_dims", 0).max(0) as usize;
    let (shape, index_shape, index, dy) = (c.shape(0)?, c.shape(1)?, c.x(1)?, c.dy0()?);
    let g = &mut *c.graph;
    let (lists, coordinates) = (
        &index_shape[..index_shape.len() - 1],
        index_shape[index_shape.len() - 1],
    );
    let dims = &shape[batch..batch + coordinates];
    let inner: usize = shape[batch + coordinates..].iter().product();
    let per_batch: usize = dims.iter().product();
    let as_ints = |v: &[usize]| v.iter().map(|d| *d as i64).collect::<Vec<_>>();
    let strides: Vec<usize> = (0..coordinates).map(|d| dims[d + 1..].iter().product()).collect();

    let index = g.cast(index, DType::I64)?;
    let (dims, zero, strides) = (
        g.ints(&as_ints(dims)),
        g.int_scalar(0),
        g.ints(&as_ints(&strides)),
    );
    let negative = g.binary("Less", index, zero)?;
    let moved = g.add(index, dims)?;
    let index = g.select(negative, moved, index)?;
    let index = g.mul(index, strides)?;
    let mut rows = g.reduce("ReduceSum", index, &[lists.len()], false)?;

    let batches: usize = shape[..batch].iter().product();
    if batches > 1 {
        let firsts: Vec<i64> = (0..batches).map(|b| (b * per_batch) as i64).collect();
        let firsts = g.ints(&firsts);
        let per_list = [&shape[..batch], &vec![1; lists.len() - batch]].concat();
        let firsts = g.reshape(firsts, &per_list)?;
        rows = g.add(rows, firsts)?;
    }
    let picked: usize = lists.iter().product();
    let rows = g.reshape(rows, &[picked])?;
    let updates = g.reshape(dy, &[1, picked, inner])?;
    let sum = scatter_add(g, batches * per_batch, rows, updates)?;
    Ok(vec![Some(g.reshape(sum, &shape)?)])
}

/// The values' gradient goes to the elements that were chosen, each of which was chosen once.
fn top_k(c: &mut Context) -> Result<Gradients> {
    let axis = c.view().axis_attr(0, -1)?;
    let (ty, dy) = (c.view().ty(0)?.clone(), c.dy0()?);
    let index = match c.y(1) {
        Some(index) => index,
        None => c.graph.op_n("TopK", &c.node.inputs, c.node.attrs.clone(), 2)?[1],
    };
    let zeros = c.graph.zeros(&ty)?;
    let attrs = Attrs::new().int("axis", axis as i64);
    Ok(vec![Some(c.graph.op(
        "ScatterElements",
        &[zeros, index, dy],
        attrs,
    )?)])
}
