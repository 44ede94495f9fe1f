//! Resizing and pooling.

use crate::Result;
use crate::onnx::graph::TensorType;
use crate::onnx::view::View;
use crate::tensor::DType;

pub(super) fn infer(v: &View, outputs: usize) -> Result<Option<Vec<TensorType>>> {
    let one = |shape: Vec<usize>| Ok(Some(vec![TensorType::new(v.dtype(0)?, shape)]));
    match v.node.op.as_str() {
        "Resize" => one(resize(v)?),
        "Upsample" => {
            let scales = v.floats(1)?.ok_or_else(|| v.error("lacks its scales"))?;
            v.expect_rank(0, scales.len())?;
            one(v
                .shape(0)?
                .iter()
                .zip(scales)
                .map(|(d, s)| (*d as f32 * s as f32).floor() as usize)
                .collect())
        }
        "AveragePool" | "LpPool" => one(pool(v)?),
        "MaxPool" => {
            let shape = pool(v)?;
            let both = vec![
                TensorType::new(v.dtype(0)?, shape.clone()),
                TensorType::new(DType::I64, shape),
            ];
            Ok(Some(both.into_iter().take(outputs.max(1)).collect()))
        }
        "GlobalAveragePool" | "GlobalMaxPool" => {
            let s = v.shape(0)?;
            if s.len() < 2 {
                return Err(v.error(format!("pools a shape without room: {s:?}")));
            }
            one([&s[..2], &vec![1; s.len() - 2]].concat())
        }
        _ => Ok(None),
    }
}

fn pool(v: &View) -> Result<Vec<usize>> {
    let s = v.shape(0)?;
    let w = v.window(None)?;
    let mut shape = s[..2].to_vec();
    for i in 0..s.len() - 2 {
        let room = s[i + 2] + w.pads_begin[i] + w.pads_end[i];
        let steps = room
            .checked_sub(w.span(i))
            .ok_or_else(|| v.error("has a window larger than its input"))?;
        let mut out = if w.ceil_mode {
            steps.div_ceil(w.strides[i])
        } else {
            steps / w.strides[i]
        } + 1;
        // A window may not start in the padding behind the input.
        if w.ceil_mode && (out - 1) * w.strides[i] >= s[i + 2] + w.pads_begin[i] {
            out -= 1;
        }
        shape.push(out);
    }
    Ok(shape)
}

fn resize(v: &View) -> Result<Vec<usize>> {
    let s = v.shape(0)?;
    let axes: Vec<usize> = match v.node.attrs.opt_ints("axes") {
        Some(a) => v.distinct_axes(a, s.len())?,
        None => (0..s.len()).collect(),
    };
    let mut shape = s.to_vec();
    let sizes = v.ints(3)?.filter(|x| !x.is_empty());
    let scales = if sizes.is_none() {
        v.floats(2)?.filter(|x| !x.is_empty())
    } else {
        None
    };
    let count = sizes.as_ref().map(Vec::len).or(scales.as_ref().map(Vec::len));
    if count != Some(axes.len()) {
        return Err(v.error("has neither sizes nor scales that fit its axes"));
    }
    let policy = v.str("keep_aspect_ratio_policy", "stretch");
    for (i, axis) in axes.iter().enumerate() {
        shape[*axis] = match (&sizes, &scales) {
            (Some(sizes), _) => sizes[i].max(0) as usize,
            // In single precision, as ONNX Runtime rounds it.
            (None, Some(scales)) => (s[*axis] as f32 * scales[i] as f32).floor() as usize,
            (None, None) => s[*axis],
        };
    }
    if let (Some(sizes), false) = (&sizes, policy == "stretch") {
        let ratios = axes.iter().zip(sizes).map(|(a, n)| *n as f64 / s[*a] as f64);
        let scale = match policy {
            "not_larger" => ratios.fold(f64::INFINITY, f64::min),
            _ => ratios.fold(0.0, f64::max),
        };
        for axis in &axes {
            shape[*axis] = (s[*axis] as f64 * scale).round() as usize;
        }
    }
    if s.iter().zip(&shape).any(|(from, to)| *from == 0 && *to != 0) {
        return Err(v.error(format!("cannot make {shape:?} out of {s:?}")));
    }
    Ok(shape)
}
