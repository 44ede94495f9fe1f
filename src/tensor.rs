//! Element types and host tensors: the common currency of graph constants, sessions and state.

use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};

use crate::{Error, Result};

/// Element type of a tensor, as ONNX names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum DType {
    F32,
    F64,
    F16,
    BF16,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
    String,
}

impl DType {
    /// Bytes per element; 0 for strings, which have no fixed size.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::String => 0,
        }
    }

    /// Whether gradients can flow through values of this type.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }

    /// Whether this is a float of 16 bits.
    pub fn is_half(self) -> bool {
        matches!(self, Self::F16 | Self::BF16)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = format!("{self:?}").to_lowercase();
        f.write_str(&name)
    }
}

/// A tensor in host memory, row-major.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Tensor {
    F32(ArrayD<f32>),
    F64(ArrayD<f64>),
    F16(ArrayD<f16>),
    BF16(ArrayD<bf16>),
    I32(ArrayD<i32>),
    I64(ArrayD<i64>),
    U8(ArrayD<u8>),
    Bool(ArrayD<bool>),
}

/// Runs `$body` with `$array` bound to the array inside, whatever its element type.
macro_rules! each_array {
    ($tensor:expr, $array:ident => $body:expr) => {
        match $tensor {
            $crate::tensor::Tensor::F32($array) => $body,
            $crate::tensor::Tensor::F64($array) => $body,
            $crate::tensor::Tensor::F16($array) => $body,
            $crate::tensor::Tensor::BF16($array) => $body,
            $crate::tensor::Tensor::I32($array) => $body,
            $crate::tensor::Tensor::I64($array) => $body,
            $crate::tensor::Tensor::U8($array) => $body,
            $crate::tensor::Tensor::Bool($array) => $body,
        }
    };
}
pub(crate) use each_array;

impl Tensor {
    /// A tensor of 32-bit floats from row-major values.
    ///
    /// # Panics
    /// If `values` does not hold as many elements as `shape` says; callers build both together.
    pub fn f32(shape: &[usize], values: Vec<f32>) -> Self {
        Self::F32(ArrayD::from_shape_vec(IxDyn(shape), values).expect("shape and values are built together"))
    }

    /// A tensor of 64-bit integers from row-major values.
    ///
    /// # Panics
    /// If `values` does not hold as many elements as `shape` says; callers build both together.
    pub fn i64(shape: &[usize], values: Vec<i64>) -> Self {
        Self::I64(ArrayD::from_shape_vec(IxDyn(shape), values).expect("shape and values are built together"))
    }

    /// 32-bit floats as the float type that an input takes; other types are an error that names `place`.
    pub fn from_floats(place: &str, values: ArrayD<f32>, dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Self::F32(values)),
            DType::F16 => Ok(Self::F16(values.mapv(f16::from_f32))),
            DType::BF16 => Ok(Self::BF16(values.mapv(bf16::from_f32))),
            other => Err(wrong_input_type(place, other)),
        }
    }

    /// Integers as the integer type that an input takes; other types are an error that names `place`.
    pub fn from_integers(place: &str, values: ArrayD<i64>, dtype: DType) -> Result<Self> {
        match dtype {
            DType::I64 => Ok(Self::I64(values)),
            DType::I32 => Ok(Self::I32(values.mapv(|v| v as i32))),
            other => Err(wrong_input_type(place, other)),
        }
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        each_array!(self, a => a.shape())
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
            Self::F16(_) => DType::F16,
            Self::BF16(_) => DType::BF16,
            Self::I32(_) => DType::I32,
            Self::I64(_) => DType::I64,
            Self::U8(_) => DType::U8,
            Self::Bool(_) => DType::Bool,
        }
    }

    /// Values as 32-bit floats, converting other float types; integers are an error that names `what`.
    pub fn into_f32(self, what: &str) -> Result<ArrayD<f32>> {
        match self {
            Self::F32(a) => Ok(a),
            Self::F64(a) => Ok(a.mapv(|v| v as f32)),
            Self::F16(a) => Ok(a.mapv(f16::to_f32)),
            Self::BF16(a) => Ok(a.mapv(bf16::to_f32)),
            other => Err(Error::bad(
                what,
                format!("holds {} where floats are needed", other.dtype()),
                "Check that the model is the right one.",
            )),
        }
    }
}

fn wrong_input_type(place: &str, dtype: DType) -> Error {
    Error::bad(
        place,
        format!("takes {dtype} as its input"),
        "Export it with fp32 or fp16 and integer tokens.",
    )
}

/// A matrix of `rows` × `columns`, row by row, turned.
pub fn transposed<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    let at = |i: usize| values[(i % rows) * columns + i / rows];
    (0..values.len()).map(at).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_turned_matrix_has_columns_for_rows() {
        assert_eq!(super::transposed(&[1, 2, 3, 4, 5, 6], 2, 3), [1, 4, 2, 5, 3, 6]);
    }
}
