//! Operators that arrange, pick or repeat elements.

use crate::Result;
use crate::onnx::attr::Attr;
use crate::onnx::data::dtype_from_onnx;
use crate::onnx::graph::TensorType;
use crate::onnx::view::{View, broadcast};
use crate::tensor::DType;

pub(super) fn infer(v: &View, outputs: usize) -> Result<Option<Vec<TensorType>>> {
    let one = |dtype, shape: Vec<usize>| Ok(Some(vec![TensorType::new(dtype, shape)]));
    let same = |shape: Vec<usize>| one(v.dtype(0)?, shape);
    match v.node.op.as_str() {
        "Reshape" => same(reshape(v)?),
        "Flatten" => {
            let s = v.shape(0)?;
            let axis = v.int("axis", 1);
            let axis = if axis == s.len() as i64 {
                s.len()
            } else {
                v.axis(axis, s.len())?
            };
            same(vec![s[..axis].iter().product(), s[axis..].iter().product()])
        }
        "Squeeze" => {
            let s = v.shape(0)?;
            let axes = v.axes(s.len())?;
            let gone = |i: usize| axes.as_ref().map_or(s[i] == 1, |a| a.contains(&i));
            if (0..s.len()).any(|i| gone(i) && s[i] != 1) {
                return Err(v.error(format!("squeezes a dimension other than 1 of {s:?}")));
            }
            same((0..s.len()).filter(|i| !gone(*i)).map(|i| s[i]).collect())
        }
        "Unsqueeze" => {
            let s = v.shape(0)?;
            let count = match v.ints(1)? {
                Some(a) => a.len(),
                None => v.node.attrs.opt_ints("axes").map_or(0, <[i64]>::len),
            };
            let axes = v
                .axes(s.len() + count)?
                .ok_or_else(|| v.error("lacks its axes"))?;
            let mut rest = s.iter();
            same(
                (0..s.len() + count)
                    .map(|i| {
                        if axes.contains(&i) {
                            1
                        } else {
                            rest.next().copied().unwrap_or(1)
                        }
                    })
                    .collect(),
            )
        }
        "Transpose" => {
            let s = v.shape(0)?;
            same(transpose_perm(v)?.into_iter().map(|p| s[p]).collect())
        }
        "Expand" => {
            let to = dims(v, 1)?;
            let s = v.shape(0)?;
            same(broadcast(s, &to).ok_or_else(|| v.error(format!("cannot expand {s:?} to {to:?}")))?)
        }
        "Tile" => {
            let times = dims(v, 1)?;
            let s = v.shape(0)?;
            if times.len() != s.len() {
                return Err(v.error("has repeats that do not fit its input's dimensions"));
            }
            same(s.iter().zip(times).map(|(d, t)| d * t).collect())
        }
        "Concat" => same(concat(v)?),
        "Split" => {
            let axis = v.axis_attr(0, 0)?;
            let parts = v.split_parts(outputs)?;
            let part = |n| {
                let mut s = v.shape(0)?.to_vec();
                s[axis] = n;
                Ok(TensorType::new(v.dtype(0)?, s))
            };
            Ok(Some(parts.into_iter().map(part).collect::<Result<_>>()?))
        }
        "Slice" => {
            let mut s = v.shape(0)?.to_vec();
            for cut in v.slice_axes()? {
                s[cut.axis] = cut.len;
            }
            same(s)
        }
        "Pad" => {
            let (before, after) = v.pads()?;
            let s = v.shape(0)?.iter().zip(before.iter().zip(&after));
            let s: Vec<i64> = s.map(|(d, (b, a))| *d as i64 + b + a).collect();
            if s.iter().any(|d| *d < 0) {
                return Err(v.error("crops more than there is"));
            }
            same(s.into_iter().map(|d| d as usize).collect())
        }
        "Gather" => {
            let (s, i) = (v.shape(0)?, v.shape(1)?);
            let axis = v.axis_attr(0, 0)?;
            same([&s[..axis], i, &s[axis + 1..]].concat())
        }
        "GatherElements" => same(v.shape(1)?.to_vec()),
        "GatherND" => {
            let (s, i) = (v.shape(0)?, v.shape(1)?);
            let batch = v.int("batch_dims", 0).max(0) as usize;
            let last = *i
                .last()
                .ok_or_else(|| v.error("has indices without dimensions"))?;
            if batch + last > s.len() {
                return Err(v.error("has indices with more coordinates than its data has dimensions"));
            }
            same([&i[..i.len() - 1], &s[batch + last..]].concat())
        }
        "ScatterND" | "ScatterElements" | "Scatter" => same(v.shape(0)?.to_vec()),
        "DepthToSpace" | "SpaceToDepth" => {
            let b = v.int("blocksize", 1).max(1) as usize;
            let s = v.shape(0)?;
            if s.len() != 4 {
                return Err(v.error("needs four dimensions"));
            }
            same(if v.node.op == "DepthToSpace" {
                vec![s[0], s[1] / (b * b), s[2] * b, s[3] * b]
            } else {
                vec![s[0], s[1] * b * b, s[2] / b, s[3] / b]
            })
        }
        "Shape" => {
            let rank = v.rank(0)? as i64;
            let clip = |i: i64| if i < 0 { (i + rank).max(0) } else { i.min(rank) };
            let (start, end) = (clip(v.int("start", 0)), clip(v.int("end", rank)));
            one(DType::I64, vec![(end - start).max(0) as usize])
        }
        "Size" => one(DType::I64, vec![]),
        "ConstantOfShape" => {
            let dtype = match v.node.attrs.get("value") {
                Some(Attr::Tensor(c)) => c.dtype,
                _ => DType::F32,
            };
            one(dtype, dims(v, 0)?)
        }
        "Range" => {
            let at = |i: usize| -> Result<f64> {
                let value = match v.dtype(i)?.is_float() {
                    true => v.floats(i)?.and_then(|x| x.first().copied()),
                    false => v.ints(i)?.and_then(|x| x.first().map(|n| *n as f64)),
                };
                value.ok_or_else(|| v.error(format!("lacks its input {i}")))
            };
            let (start, limit, delta) = (at(0)?, at(1)?, at(2)?);
            same(vec![((limit - start) / delta).ceil().max(0.0) as usize])
        }
        "EyeLike" => {
            let dtype = match v.node.attrs.opt_int("dtype") {
                Some(to) => dtype_from_onnx(i32::try_from(to).unwrap_or(0), &v.node.place(v.graph))?,
                None => v.dtype(0)?,
            };
            one(dtype, v.shape(0)?.to_vec())
        }
        "OneHot" => {
            let depth = match v.dtype(1)?.is_float() {
                true => v.floats(1)?.map(|d| d[0] as usize),
                false => v.ints(1)?.map(|d| d[0].max(0) as usize),
            };
            let depth = depth.ok_or_else(|| v.error("lacks its depth"))?;
            let mut s = v.shape(0)?.to_vec();
            let at = v.axis(v.int("axis", -1), s.len() + 1)?;
            s.insert(at, depth);
            one(v.dtype(2)?, s)
        }
        "ReverseSequence" => same(v.shape(0)?.to_vec()),
        "TopK" => {
            let k = v
                .ints(1)?
                .and_then(|k| k.first().copied())
                .ok_or_else(|| v.error("lacks its k"))?;
            let mut s = v.shape(0)?.to_vec();
            s[v.axis_attr(0, -1)?] = k.max(0) as usize;
            Ok(Some(vec![
                TensorType::new(v.dtype(0)?, s.clone()),
                TensorType::new(DType::I64, s),
            ]))
        }
        _ => Ok(None),
    }
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

fn dims(v: &View, input: usize) -> Result<Vec<usize>> {
    let given = v
        .ints(input)?
        .ok_or_else(|| v.error(format!("lacks its input {input}")))?;
    given
        .into_iter()
        .map(|d| usize::try_from(d).map_err(|_| v.error(format!("has the negative dimension {d}"))))
        .collect()
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
    if let Some(i) = open {
        let rest: usize = shape.iter().product();
        if rest != 0 {
            shape[i] = total / rest;
        }
    }
    if shape.iter().product::<usize>() != total {
        return Err(v.error(format!("cannot give {s:?} the shape {target:?}")));
    }
    Ok(shape)
}

fn concat(v: &View) -> Result<Vec<usize>> {
    let mut shape = v.shape(0)?.to_vec();
    let axis = v.axis_attr(0, 0)?;
    for i in 1..v.input_count() {
        let other = v.shape(i)?;
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
