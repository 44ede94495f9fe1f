//! Operators that pick elements by index, or put them there.

use crate::Result;
use crate::onnx::graph::TensorType;
use crate::onnx::view::View;
use crate::tensor::DType;

pub(super) fn infer(v: &View, outputs: usize) -> Result<Option<Vec<TensorType>>> {
    let shape = match v.node.op.as_str() {
        "Gather" => {
            let (s, i) = (v.shape(0)?, v.shape(1)?);
            let axis = v.axis_attr(0, 0)?;
            [&s[..axis], i, &s[axis + 1..]].concat()
        }
        "GatherElements" => {
            let (s, i, axis) = (v.shape(0)?, v.shape(1)?, v.axis_attr(0, 0)?);
            if i.len() != s.len() || (0..s.len()).any(|d| d != axis && i[d] > s[d]) {
                return Err(v.error(format!("has indices {i:?} for data {s:?}")));
            }
            i.to_vec()
        }
        "GatherND" => gather_nd(v)?,
        "ScatterND" | "ScatterElements" | "Scatter" => v.shape(0)?.to_vec(),
        "OneHot" => return one_hot(v).map(|ty| Some(vec![ty])),
        "TopK" => {
            let mut s = v.shape(0)?.to_vec();
            let axis = v.axis_attr(0, -1)?;
            s[axis] = match usize::try_from(v.first_int(1, -1)?) {
                Ok(k) if k <= s[axis] => k,
                _ => return Err(v.error(format!("picks more elements than there are in {s:?}"))),
            };
            let both = [
                TensorType::new(v.dtype(0)?, s.clone()),
                TensorType::new(DType::I64, s),
            ];
            return Ok(Some(both.into_iter().take(outputs.max(1)).collect()));
        }
        _ => return Ok(None),
    };
    Ok(Some(vec![TensorType::new(v.dtype(0)?, shape)]))
}

fn gather_nd(v: &View) -> Result<Vec<usize>> {
    let (s, i) = (v.shape(0)?, v.shape(1)?);
    let batch = v.int("batch_dims", 0).max(0) as usize;
    let (last, lists) = i
        .split_last()
        .ok_or_else(|| v.error("has indices without dimensions"))?;
    let fits = batch <= lists.len() && batch <= s.len() && lists[..batch] == s[..batch];
    if !fits || *last > s.len() - batch {
        return Err(v.error(format!(
            "has indices {i:?} for data {s:?} with {batch} batch dimensions"
        )));
    }
    Ok([lists, &s[batch + last..]].concat())
}

fn one_hot(v: &View) -> Result<TensorType> {
    let depth = match v.dtype(1)?.is_float() {
        true => v.floats(1)?.and_then(|d| d.first().map(|d| *d as usize)),
        false => usize::try_from(v.first_int(1, -1)?).ok(),
    };
    let depth = depth.ok_or_else(|| v.error("lacks its depth"))?;
    let mut shape = v.shape(0)?.to_vec();
    let at = v.axis(v.int("axis", -1), shape.len() + 1)?;
    shape.insert(at, depth);
    Ok(TensorType::new(v.dtype(2)?, shape))
}
