//! Normalisations: the output has the input's type, and scales, biases and statistics have to fit it.

use crate::Result;
use crate::onnx::graph::TensorType;
use crate::onnx::view::{View, broadcast};
use crate::tensor::DType;

pub(super) fn infer(v: &View, outputs: usize) -> Result<Option<Vec<TensorType>>> {
    let x = match v.node.op.as_str() {
        "BatchNormalization" => {
            let channels = channels(v)?;
            (1..5).try_for_each(|i| expect(v, i, &[channels]))?;
            v.ty(0)?.clone()
        }
        "InstanceNormalization" => {
            let channels = channels(v)?;
            (1..3).try_for_each(|i| expect(v, i, &[channels]))?;
            v.ty(0)?.clone()
        }
        "GroupNormalization" => group_norm(v)?,
        "RMSNormalization" => {
            v.axis_attr(0, -1)?;
            spreads(v, 1)?;
            v.ty(0)?.clone()
        }
        "LayerNormalization" => return layer_norm(v, outputs).map(Some),
        "PRelu" => {
            spreads(v, 1)?;
            v.ty(0)?.clone()
        }
        _ => return Ok(None),
    };
    Ok(Some(vec![x]))
}

/// Size of dimension 1 of the data.
fn channels(v: &View) -> Result<usize> {
    let shape = v.shape(0)?;
    let channels = shape.get(1).copied();
    channels.ok_or_else(|| v.error(format!("has data without channels: {shape:?}")))
}

/// Input `i` must have the shape `wanted`.
fn expect(v: &View, i: usize, wanted: &[usize]) -> Result<()> {
    let found = v.shape(i)?;
    if found == wanted {
        return Ok(());
    }
    Err(v.error(format!(
        "has the shape {found:?} instead of {wanted:?} in input {i}"
    )))
}

/// Input `i` must broadcast to the shape of the data.
fn spreads(v: &View, i: usize) -> Result<()> {
    let (x, found) = (v.shape(0)?, v.shape(i)?);
    if broadcast(x, found).as_deref() == Some(x) {
        return Ok(());
    }
    Err(v.error(format!("cannot broadcast input {i}, {found:?}, to {x:?}")))
}

/// Scale and bias are per channel from opset 21 on, and per group before.
fn group_norm(v: &View) -> Result<TensorType> {
    let channels = channels(v)?;
    let groups = usize::try_from(v.int("num_groups", 0)).unwrap_or(0);
    if groups == 0 || channels % groups != 0 {
        return Err(v.error(format!("cannot divide {channels} channels into {groups} groups")));
    }
    let scales = if v.graph.opset >= 21 { channels } else { groups };
    (1..3).try_for_each(|i| expect(v, i, &[scales]))?;
    Ok(v.ty(0)?.clone())
}

/// `LayerNormalization` also gives mean and 1/σ over the normalised axes.
fn layer_norm(v: &View, outputs: usize) -> Result<Vec<TensorType>> {
    let (x, axis) = (v.ty(0)?, v.axis_attr(0, -1)?);
    spreads(v, 1)?;
    if v.has(2) {
        spreads(v, 2)?;
    }
    let mut reduced = x.shape.clone();
    reduced[axis..].fill(1);
    let stat = TensorType::new(DType::F32, reduced);
    let all = vec![x.clone(), stat.clone(), stat];
    Ok(all.into_iter().take(outputs.max(1)).collect())
}
