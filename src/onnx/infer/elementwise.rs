//! Operators whose output has the (broadcast) shape of their inputs.

use crate::Result;
use crate::onnx::data::dtype_from_onnx;
use crate::onnx::graph::TensorType;
use crate::onnx::view::{View, broadcast};
use crate::tensor::DType;

/// Operators with one output, of the type of their first input.
#[rustfmt::skip]
const SAME_TYPE: &[&str] = &[
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Clip",
    "Cos", "Cosh", "CumSum", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Hardmax", "Identity", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "Mish", "Neg",
    "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softmax", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Trilu",
];

/// Operators on operands that broadcast, with an output of the element type of the first.
#[rustfmt::skip]
const BROADCASTING: &[&str] = &[
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Max", "Mean", "Min", "Mod", "Mul", "Or",
    "Pow", "Sub", "Sum", "Xor",
];

pub(super) fn infer(v: &View, outputs: usize) -> Result<Option<Vec<TensorType>>> {
    let op = v.node.op.as_str();
    if SAME_TYPE.contains(&op) {
        if op == "Trilu" && v.rank(0)? < 2 {
            return Err(v.error("cuts a triangle from less than two dimensions"));
        }
        return Ok(Some(vec![v.ty(0)?.clone()]));
    }
    let types = match op {
        "Dropout" => vec![v.ty(0)?.clone(), TensorType::new(DType::Bool, v.shape(0)?)],
        _ if BROADCASTING.contains(&op) => vec![joined(v, 0, v.dtype(0)?)?],
        "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => {
            vec![joined(v, 0, DType::Bool)?]
        }
        "IsNaN" | "IsInf" => vec![TensorType::new(DType::Bool, v.shape(0)?)],
        "Where" => vec![joined(v, 0, v.dtype(1)?)?],
        "Cast" => {
            let to = i32::try_from(v.int("to", 1)).unwrap_or(0);
            let dtype = dtype_from_onnx(to, &v.node.place(v.graph))?;
            vec![TensorType::new(dtype, v.shape(0)?)]
        }
        "CastLike" => vec![TensorType::new(v.dtype(1)?, v.shape(0)?)],
        _ => return Ok(None),
    };
    Ok(Some(types.into_iter().take(outputs.max(1)).collect()))
}

/// All inputs from `first` broadcast together.
fn joined(v: &View, first: usize, dtype: DType) -> Result<TensorType> {
    let mut shape: Vec<usize> = v.shape(first)?.to_vec();
    // The condition of a `Where` and the exponent of a `Pow` have types of their own.
    let own_type = |i: usize| matches!((v.node.op.as_str(), i), ("Where", 0) | ("Pow", 1));
    let expected = v.dtype(usize::from(own_type(first)))?;
    for i in first + 1..v.input_count() {
        let other = v.shape(i)?;
        if !own_type(i) && v.dtype(i)? != expected {
            return Err(v.error(format!("mixes {expected} and {}", v.dtype(i)?)));
        }
        shape = broadcast(&shape, other)
            .ok_or_else(|| v.error(format!("cannot broadcast {shape:?} with {other:?}")))?;
    }
    Ok(TensorType::new(dtype, shape))
}
