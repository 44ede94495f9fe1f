//! Operators that make tensors from shapes and numbers, and tell shapes.

use super::arrange::dims;
use crate::Result;
use crate::onnx::attr::Attr;
use crate::onnx::data::dtype_from_onnx;
use crate::onnx::graph::TensorType;
use crate::onnx::view::View;
use crate::tensor::DType;

pub(super) fn infer(v: &View, _outputs: usize) -> Result<Option<Vec<TensorType>>> {
    let (dtype, shape) = match v.node.op.as_str() {
        "Shape" => {
            let rank = v.rank(0)? as i64;
            let clip = |i: i64| if i < 0 { (i + rank).max(0) } else { i.min(rank) };
            let (start, end) = (clip(v.int("start", 0)), clip(v.int("end", rank)));
            (DType::I64, vec![(end - start).max(0) as usize])
        }
        "Size" => (DType::I64, vec![]),
        "ConstantOfShape" => {
            let dtype = match v.node.attrs.get("value") {
                Some(Attr::Tensor(c)) => c.dtype,
                _ => DType::F32,
            };
            (dtype, dims(v, 0)?)
        }
        "Range" => (v.dtype(0)?, vec![range_length(v)?]),
        "EyeLike" => {
            v.expect_rank(0, 2)?;
            let dtype = match v.node.attrs.opt_int("dtype") {
                Some(to) => dtype_from_onnx(i32::try_from(to).unwrap_or(0), &v.node.place(v.graph))?,
                None => v.dtype(0)?,
            };
            (dtype, v.shape(0)?.to_vec())
        }
        _ => return Ok(None),
    };
    Ok(Some(vec![TensorType::new(dtype, shape)]))
}

fn range_length(v: &View) -> Result<usize> {
    let at = |i: usize| -> Result<f64> {
        let value = match v.dtype(i)?.is_float() {
            true => v.floats(i)?.and_then(|x| x.first().copied()),
            false => v.ints(i)?.and_then(|x| x.first().map(|n| *n as f64)),
        };
        value.ok_or_else(|| v.error(format!("lacks its input {i}")))
    };
    let (start, limit, delta) = (at(0)?, at(1)?, at(2)?);
    Ok(((limit - start) / delta).ceil().max(0.0) as usize)
}
