//! Host tensors in ONNX Runtime's hands and back.

use half::{bf16, f16};
use ndarray::{ArrayD, ArrayViewD, CowArray, IxDyn};
use ort::AsPointer;
use ort::memory::{Allocator, MemoryInfo};
use ort::session::SessionInputValue;
use ort::value::{DynValue, TensorElementType, TensorRef, Value, ValueType};

use crate::tensor::{DType, Tensor, each_array};
use crate::{Error, Result};

/// A borrowed tensor: what a session reads. Row-major views are read in place, others are copied once.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum TensorView<'a> {
    F32(ArrayViewD<'a, f32>),
    F64(ArrayViewD<'a, f64>),
    F16(ArrayViewD<'a, f16>),
    BF16(ArrayViewD<'a, bf16>),
    I32(ArrayViewD<'a, i32>),
    I64(ArrayViewD<'a, i64>),
    U8(ArrayViewD<'a, u8>),
    Bool(ArrayViewD<'a, bool>),
}

macro_rules! each_view {
    ($view:expr, $array:ident => $body:expr) => {
        match $view {
            TensorView::F32($array) => $body,
            TensorView::F64($array) => $body,
            TensorView::F16($array) => $body,
            TensorView::BF16($array) => $body,
            TensorView::I32($array) => $body,
            TensorView::I64($array) => $body,
            TensorView::U8($array) => $body,
            TensorView::Bool($array) => $body,
        }
    };
}

impl TensorView<'_> {
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

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        each_view!(self, a => a.shape())
    }

    /// A copy that owns its values.
    pub fn to_tensor(&self) -> Tensor {
        match self {
            Self::F32(a) => Tensor::F32(a.to_owned()),
            Self::F64(a) => Tensor::F64(a.to_owned()),
            Self::F16(a) => Tensor::F16(a.to_owned()),
            Self::BF16(a) => Tensor::BF16(a.to_owned()),
            Self::I32(a) => Tensor::I32(a.to_owned()),
            Self::I64(a) => Tensor::I64(a.to_owned()),
            Self::U8(a) => Tensor::U8(a.to_owned()),
            Self::Bool(a) => Tensor::Bool(a.to_owned()),
        }
    }
}

impl<'a> TensorView<'a> {
    /// 32-bit floats that lie row-major in a slice.
    ///
    /// # Panics
    /// If `values` does not hold as many elements as `shape` says; callers build both together.
    pub fn f32(shape: &[usize], values: &'a [f32]) -> Self {
        Self::F32(ArrayViewD::from_shape(IxDyn(shape), values).expect("shape and values are built together"))
    }

    /// The values as they lie in memory, if that is row by row.
    pub(super) fn bytes(&self) -> Option<&'a [u8]> {
        each_view!(self, a => Some(bytemuck::cast_slice(a.to_slice()?)))
    }

    pub(super) fn to_input(&self) -> ort::Result<SessionInputValue<'a>> {
        each_view!(self, a => {
            if a.is_standard_layout() {
                Ok(TensorRef::from_array_view(a.clone())?.into())
            } else {
                Ok(ort::value::Tensor::from_array(a.as_standard_layout().into_owned())?.into())
            }
        })
    }
}

impl<'a> From<&'a Tensor> for TensorView<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        match tensor {
            Tensor::F32(a) => Self::F32(a.view()),
            Tensor::F64(a) => Self::F64(a.view()),
            Tensor::F16(a) => Self::F16(a.view()),
            Tensor::BF16(a) => Self::BF16(a.view()),
            Tensor::I32(a) => Self::I32(a.view()),
            Tensor::I64(a) => Self::I64(a.view()),
            Tensor::U8(a) => Self::U8(a.view()),
            Tensor::Bool(a) => Self::Bool(a.view()),
        }
    }
}

macro_rules! view_from_array {
    ($($variant:ident($element:ty)),+) => {$(
        impl<'a, D: ndarray::Dimension> From<&'a ndarray::Array<$element, D>> for TensorView<'a> {
            fn from(array: &'a ndarray::Array<$element, D>) -> Self {
                Self::$variant(array.view().into_dyn())
            }
        }
        impl<'a, D: ndarray::Dimension> From<ndarray::ArrayView<'a, $element, D>> for TensorView<'a> {
            fn from(array: ndarray::ArrayView<'a, $element, D>) -> Self {
                Self::$variant(array.into_dyn())
            }
        }
    )+};
}
view_from_array!(
    F32(f32),
    F64(f64),
    F16(f16),
    BF16(bf16),
    I32(i32),
    I64(i64),
    U8(u8),
    Bool(bool)
);

/// Gives a tensor to ONNX Runtime without copying it.
pub(super) fn into_value(tensor: Tensor) -> ort::Result<DynValue> {
    each_array!(tensor, a => Ok(ort::value::Tensor::from_array(row_major(a))?.into_dyn()))
}

fn row_major<T: Clone>(array: ArrayD<T>) -> ArrayD<T> {
    if array.is_standard_layout() {
        array
    } else {
        CowArray::from(array.view()).as_standard_layout().into_owned()
    }
}

/// Reads a value in place; `place` names it in the error when its type has no counterpart here.
pub(super) fn view<'a>(place: &str, value: &'a DynValue) -> Result<TensorView<'a>> {
    let array = match value.dtype().tensor_type() {
        Some(TensorElementType::Float32) => value.try_extract_array().map(TensorView::F32),
        Some(TensorElementType::Float64) => value.try_extract_array().map(TensorView::F64),
        Some(TensorElementType::Float16) => value.try_extract_array().map(TensorView::F16),
        Some(TensorElementType::Bfloat16) => value.try_extract_array().map(TensorView::BF16),
        Some(TensorElementType::Int32) => value.try_extract_array().map(TensorView::I32),
        Some(TensorElementType::Int64) => value.try_extract_array().map(TensorView::I64),
        Some(TensorElementType::Uint8) => value.try_extract_array().map(TensorView::U8),
        Some(TensorElementType::Bool) => value.try_extract_array().map(TensorView::Bool),
        _ => {
            return Err(Error::bad(
                place,
                format!("is of type {}, which is not read here", value.dtype()),
                "Export the model with float, integer or bool outputs.",
            ));
        }
    };
    array.map_err(|e| super::failure::failure(place, e))
}

/// Our name of an element type of ONNX Runtime, if it has one.
pub(super) fn dtype_of(ty: &ValueType) -> Option<DType> {
    Some(match ty.tensor_type()? {
        TensorElementType::Float32 => DType::F32,
        TensorElementType::Float64 => DType::F64,
        TensorElementType::Float16 => DType::F16,
        TensorElementType::Bfloat16 => DType::BF16,
        TensorElementType::Int8 => DType::I8,
        TensorElementType::Int16 => DType::I16,
        TensorElementType::Int32 => DType::I32,
        TensorElementType::Int64 => DType::I64,
        TensorElementType::Uint8 => DType::U8,
        TensorElementType::Uint16 => DType::U16,
        TensorElementType::Uint32 => DType::U32,
        TensorElementType::Uint64 => DType::U64,
        TensorElementType::Bool => DType::Bool,
        TensorElementType::String => DType::String,
        _ => return None,
    })
}

/// ONNX Runtime's name of an element type.
pub(super) fn element_type(dtype: DType) -> TensorElementType {
    match dtype {
        DType::F32 => TensorElementType::Float32,
        DType::F64 => TensorElementType::Float64,
        DType::F16 => TensorElementType::Float16,
        DType::BF16 => TensorElementType::Bfloat16,
        DType::I8 => TensorElementType::Int8,
        DType::I16 => TensorElementType::Int16,
        DType::I32 => TensorElementType::Int32,
        DType::I64 => TensorElementType::Int64,
        DType::U8 => TensorElementType::Uint8,
        DType::U16 => TensorElementType::Uint16,
        DType::U32 => TensorElementType::Uint32,
        DType::U64 => TensorElementType::Uint64,
        DType::Bool => TensorElementType::Bool,
        DType::String => TensorElementType::String,
    }
}

/// A tensor over memory that lies at `start` in `memory`, without copying it.
///
/// # Safety
/// The memory must hold `bytes` bytes, outlive the value and every session it is given to, and be aligned for `dtype`. It is
/// written to if the value is given to a run as an output.
pub(super) unsafe fn tensor_over(
    start: *const u8,
    bytes: usize,
    dtype: DType,
    dims: &[usize],
    memory: &MemoryInfo<'_>,
) -> ort::Result<DynValue> {
    let shape: Vec<i64> = dims.iter().map(|d| *d as i64).collect();
    let mut raw = std::ptr::null_mut();
    // SAFETY: the caller keeps the memory. On success `raw` is a fresh value, handed to `from_ptr`, which releases it once.
    unsafe {
        let status = (ort::api().CreateTensorWithDataAsOrtValue)(
            memory.ptr(),
            start.cast_mut().cast(),
            bytes,
            shape.as_ptr(),
            shape.len(),
            element_type(dtype).into(),
            &mut raw,
        );
        ort::Error::result_from_status(status)?;
        let raw = std::ptr::NonNull::new(raw).ok_or_else(|| ort::Error::new("no tensor was created"))?;
        // It frees nothing of what it did not allocate.
        Ok(Value::from_ptr(raw, Some(&Allocator::default())))
    }
}
