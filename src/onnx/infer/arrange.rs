//! Operators that arrange or repeat elements.

use crate::Result;
use crate::onnx::graph::TensorType;
use crate::onnx::view::{View, broadcast};

pub(super) fn infer(v: &View, outputs: usize) -> Result<Option<Vec<TensorType>>> {
    let shape = match v.node.op.as_str() {
        "Reshape" => reshape(v)?,
        "Flatten" => flatten(v)?,
        "Squeeze" => squeeze(v)?,
        "Unsqueeze" => unsqueeze(v)?,
        "Transpose" => {
            let s = v.shape(0)?;
            transpose_perm(v)?.into_iter().map(|p| s[p]).collect()
        }
        "Expand" => {
            let (s, to) = (v.shape(0)?, dims(v, 1)?);
            broadcast(s, &to).ok_or_else(|| v.error(format!("cannot expand {s:?} to {to:?}")))?
        }
        "Tile" => {
            let (s, times) = (v.shape(0)?, dims(v, 1)?);
            if times.len() != s.len() {
                return Err(v.error(format!("has repeats {times:?} for a shape {s:?}")));
            }
            s.iter().zip(times).map(|(d, t)| d.saturating_mul(t)).collect()
        }
        "Concat" => concat(v)?,
        "Split" => return split(v, outputs).map(Some),
        "Slice" => {
            let mut s = v.shape(0)?.to_vec();
            for cut in v.slice_axes()? {
                s[cut.axis] = cut.len;
            }
            s
        }
        "Pad" => pad(v)?,
        "DepthToSpace" | "SpaceToDepth" => blocks(v)?,
        "ReverseSequence" => v.shape(0)?.to_vec(),
        _ => return Ok(None),
    };
    Ok(Some(vec![TensorType::new(v.dtype(0)?, shape)]))
}

/// The permutation of a `Transpose` node (reversal when it has none).
pub fn transpose_perm(v: &View) -> Result<Vec<usize>> {
    let rank = v.rank(0)?;
    let perm: Vec<usize> = match v.node.attrs.opt_ints("perm") {
        Some(p) => p.iter().map(|a| v.axis(*a, rank)).collect::<Result<_>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    if sorted != (0..rank).collect::<Vec<_>>() {
        return Err(v.error(format!("has perm {perm:?} for {rank} dimensions")));
    }
    Ok(perm)
}

/// The constant input `input` as dimensions.
pub(super) fn dims(v: &View, input: usize) -> Result<Vec<usize>> {
    let given = v
        .ints(input)?
        .ok_or_else(|| v.error(format!("lacks its input {input}")))?;
    given
        .into_iter()
        .map(|d| usize::try_from(d).map_err(|_| v.error(format!("has the negative dimension {d}"))))
        .collect()
}

fn flatten(v: &View) -> Result<Vec<usize>> {
    let s = v.shape(0)?;
    let axis = match v.int("axis", 1) {
        all if all == s.len() as i64 => s.len(),
        axis => v.axis(axis, s.len())?,
    };
    Ok(vec![s[..axis].iter().product(), s[axis..].iter().product()])
}

fn squeeze(v: &View) -> Result<Vec<usize>> {
    let s = v.shape(0)?;
    let axes = v.axes(s.len())?;
    let gone = |i: usize| axes.as_ref().map_or(s[i] == 1, |a| a.contains(&i));
    if (0..s.len()).any(|i| gone(i) && s[i] != 1) {
        return Err(v.error(format!("squeezes a dimension other than 1 of {s:?}")));
    }
    Ok((0..s.len()).filter(|i| !gone(*i)).map(|i| s[i]).collect())
}

fn unsqueeze(v: &View) -> Result<Vec<usize>> {
    let s = v.shape(0)?;
    let count = match v.ints(1)? {
        Some(a) => a.len(),
        None => v.node.attrs.opt_ints("axes").map_or(0, <[i64]>::len),
    };
    let rank = s.len() + count;
    let axes = v.axes(rank)?.ok_or_else(|| v.error("lacks its axes"))?;
    let mut rest = s.iter();
    let dim = |i| {
        if axes.contains(&i) {
            1
        } else {
            *rest
                .next()
                .expect("axes are distinct, so as many dimensions remain as there were")
        }
    };
    Ok((0..rank).map(dim).collect())
}

fn split(v: &View, outputs: usize) -> Result<Vec<TensorType>> {
    let (axis, ty) = (v.axis_attr(0, 0)?, v.ty(0)?);
    let part = |n| {
        let mut shape = ty.shape.clone();
        shape[axis] = n;
        TensorType::new(ty.dtype, shape)
    };
    Ok(v.split_parts(outputs)?.into_iter().map(part).collect())
}

fn pad(v: &View) -> Result<Vec<usize>> {
    let (before, after) = v.pads()?;
    let padded = v.shape(0)?.iter().zip(before.iter().zip(&after));
    padded
        .map(|(d, (b, a))| {
            usize::try_from(*d as i64 + b + a).map_err(|_| v.error("crops more than there is"))
        })
        .collect()
}

fn blocks(v: &View) -> Result<Vec<usize>> {
    v.expect_rank(0, 4)?;
    let s = v.shape(0)?;
    let b = match u16::try_from(v.int("blocksize", 0)) {
        Ok(b) if b > 0 => usize::from(b),
        _ => return Err(v.error("has an impossible blocksize")),
    };
    let deep = v.node.op == "DepthToSpace";
    if (deep && s[1] % (b * b) != 0) || (!deep && (s[2] % b != 0 || s[3] % b != 0)) {
        return Err(v.error(format!("cannot arrange {s:?} in blocks of {b}")));
    }
    Ok(if deep {
        vec![s[0], s[1] / (b * b), s[2] * b, s[3] * b]
    } else {
        vec![s[0], s[1] * b * b, s[2] / b, s[3] / b]
    })
}

fn reshape(v: &View) -> Result<Vec<usize>> {
    let s = v.shape(0)?;
    let total: usize = s.iter().product();
    let target = v.ints(1)?.ok_or_else(|| v.error("lacks its target shape"))?;
    let copy_zero = v.int("allowzero", 0) == 0;
    let mut shape = Vec::with_capacity(target.len());
    let mut open = None;
    for (i, d) in target.iter().enumerate() {
        shape.push(match *d {
            -1 => {
                open = Some(i);
                1
            }
            0 if copy_zero => *s
                .get(i)
                .ok_or_else(|| v.error("copies a dimension that is not there"))?,
            d if d >= 0 => d as usize,
            d => return Err(v.error(format!("has the negative dimension {d}"))),
        });
    }
    let count = |shape: &[usize]| shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
    if let (Some(i), Some(rest)) = (open, count(&shape)) {
        shape[i] = total.checked_div(rest).unwrap_or(0);
    }
    if count(&shape) != Some(total) {
        return Err(v.error(format!("cannot give {s:?} the shape {target:?}")));
    }
    Ok(shape)
}

fn concat(v: &View) -> Result<Vec<usize>> {
    let mut shape = v.shape(0)?.to_vec();
    let axis = v.axis_attr(0, 0)?;
    for i in 1..v.input_count() {
        let other = v.shape(i)?;
        if v.dtype(i)? != v.dtype(0)? {
            return Err(v.error(format!("joins {} and {}", v.dtype(0)?, v.dtype(i)?)));
        }
        let fits = other.len() == shape.len() && (0..shape.len()).all(|d| d == axis || other[d] == shape[d]);
        if !fits {
            return Err(v.error(format!(
                "cannot join {shape:?} and {other:?} along dimension {axis}"
            )));
        }
        shape[axis] += other[axis];
    }
    Ok(shape)
}
