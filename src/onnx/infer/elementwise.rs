//! Operators whose output has the (broadcast) shape of their inputs, and normalisations, which keep their input's shape.

use crate::Result;
use crate::onnx::data::dtype_from_onnx;
use crate::onnx::graph::TensorType;
use crate::onnx::view::{View, broadcast};
use crate::tensor::DType;

pub(super) fn infer(v: &View, outputs: usize) -> Result<Option<Vec<TensorType>>> {
    Ok(Some(
        match v.node.op.as_str() {
            "Identity"
            | "Neg"
            | "Abs"
            | "Sqrt"
            | "Exp"
            | "Log"
            | "Reciprocal"
            | "Erf"
            | "Sin"
            | "Cos"
            | "Tan"
            | "Sinh"
            | "Cosh"
            | "Asin"
            | "Acos"
            | "Atan"
            | "Sigmoid"
            | "Tanh"
            | "Relu"
            | "LeakyRelu"
            | "Elu"
            | "Selu"
            | "Celu"
            | "HardSigmoid"
            | "HardSwish"
            | "Softplus"
            | "Softsign"
            | "Gelu"
            | "Mish"
            | "Swish"
            | "Clip"
            | "Softmax"
            | "LogSoftmax"
            | "Floor"
            | "Ceil"
            | "Round"
            | "Sign"
            | "Not"
            | "CumSum"
            | "Trilu"
            | "BitwiseNot"
            | "Hardmax"
            | "ThresholdedRelu"
            | "PRelu"
            | "LpNormalization"
            | "InstanceNormalization"
            | "GroupNormalization"
            | "RMSNormalization" => vec![v.ty(0)?.clone()],
            "BatchNormalization" => vec![v.ty(0)?.clone()],
            "LayerNormalization" => layer_norm(v)?,
            "Dropout" => vec![v.ty(0)?.clone(), TensorType::new(DType::Bool, v.shape(0)?)],
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Mod" | "Min" | "Max" | "Sum" | "Mean" | "And" | "Or"
            | "Xor" | "BitShift" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => {
                vec![joined(v, 0, v.dtype(0)?)?]
            }
            "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => {
                vec![joined(v, 0, DType::Bool)?]
            }
            "IsNaN" | "IsInf" => vec![TensorType::new(DType::Bool, v.shape(0)?)],
            "Where" => vec![joined(v, 0, v.dtype(1)?)?],
            "Cast" => {
                let to = i32::try_from(v.int("to", 1)).unwrap_or(0);
                vec![TensorType::new(
                    dtype_from_onnx(to, &v.node.place(v.graph))?,
                    v.shape(0)?,
                )]
            }
            "CastLike" => vec![TensorType::new(v.dtype(1)?, v.shape(0)?)],
            _ => return Ok(None),
        }
        .into_iter()
        .take(outputs.max(1))
        .collect(),
    ))
}

/// All inputs from `first` broadcast together.
fn joined(v: &View, first: usize, dtype: DType) -> Result<TensorType> {
    let mut shape: Vec<usize> = v.shape(first)?.to_vec();
    for i in first + 1..v.input_count() {
        let other = v.shape(i)?;
        shape = broadcast(&shape, other)
            .ok_or_else(|| v.error(format!("cannot broadcast {shape:?} with {other:?}")))?;
    }
    Ok(TensorType::new(dtype, shape))
}

/// `LayerNormalization` also gives mean and 1/σ over the normalised axes.
fn layer_norm(v: &View) -> Result<Vec<TensorType>> {
    let x = v.ty(0)?;
    let axis = v.axis_attr(0, -1)?;
    let mut reduced = x.shape.clone();
    reduced[axis..].fill(1);
    let stat = TensorType::new(DType::F32, reduced);
    Ok(vec![x.clone(), stat.clone(), stat])
}
