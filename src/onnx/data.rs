//! Constant tensors: bytes inside the model file, or a place in an external data file that nobody has read yet.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use prost::bytes::Bytes;

use super::graph::TensorType;
use super::location::Location;
use super::proto;
use crate::tensor::DType;
use crate::{Error, Result};

/// Where the elements are, always little-endian and row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// In memory (usually a slice of the mapped model file).
    Inline(Bytes),
    /// In another file; read by whoever runs the graph, never to derive one.
    External {
        /// Path of the data file as found from the model's folder.
        file: Arc<PathBuf>,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
}

/// A constant: an initializer, or the value of a `Constant` node.
#[derive(Debug, Clone, PartialEq)]
pub struct Constant {
    /// Element type.
    pub dtype: DType,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: TensorData,
}

/// Element types by their number in `TensorProto.DataType`.
const DTYPES: [(i32, DType); 14] = [
    (1, DType::F32),
    (2, DType::U8),
    (3, DType::I8),
    (4, DType::U16),
    (5, DType::I16),
    (6, DType::I32),
    (7, DType::I64),
    (8, DType::String),
    (9, DType::Bool),
    (10, DType::F16),
    (11, DType::F64),
    (12, DType::U32),
    (13, DType::U64),
    (16, DType::BF16),
];

/// Element type from its ONNX number.
pub fn dtype_from_onnx(number: i32, place: &str) -> Result<DType> {
    DTYPES
        .iter()
        .find(|(n, _)| *n == number)
        .map(|(_, d)| *d)
        .ok_or_else(|| {
            Error::bad(
                place,
                format!("element type number {number} is not supported"),
                "Export the model in fp32, fp16 or bf16.",
            )
        })
}

/// ONNX number of an element type.
pub fn dtype_to_onnx(dtype: DType) -> i32 {
    DTYPES
        .iter()
        .find(|(_, d)| *d == dtype)
        .map(|(n, _)| *n)
        .expect("the table holds every DType")
}

impl Constant {
    /// From floats, stored as `dtype` (a float type).
    pub fn floats(dtype: DType, shape: &[usize], values: &[f64]) -> Self {
        let bytes: Vec<u8> = match dtype {
            DType::F64 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::F16 => values
                .iter()
                .flat_map(|v| f16::from_f64(*v).to_le_bytes())
                .collect(),
            DType::BF16 => values
                .iter()
                .flat_map(|v| bf16::from_f64(*v).to_le_bytes())
                .collect(),
            _ => values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
        };
        Self {
            dtype,
            shape: shape.to_vec(),
            data: TensorData::Inline(bytes.into()),
        }
    }

    /// As [`Constant::floats`], from single precision.
    pub fn singles(dtype: DType, shape: &[usize], values: &[f32]) -> Self {
        let bytes: Vec<u8> = match dtype {
            DType::F64 => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
            DType::F16 => values
                .iter()
                .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                .collect(),
            DType::BF16 => values
                .iter()
                .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                .collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Self {
            dtype,
            shape: shape.to_vec(),
            data: TensorData::Inline(bytes.into()),
        }
    }

    /// From integers, stored as `dtype` (an integer type or bool).
    pub fn integers(dtype: DType, shape: &[usize], values: &[i64]) -> Self {
        let bytes: Vec<u8> = match dtype.size() {
            8 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            4 => values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect(),
            2 => values.iter().flat_map(|v| (*v as i16).to_le_bytes()).collect(),
            _ => values.iter().map(|v| *v as u8).collect(),
        };
        Self {
            dtype,
            shape: shape.to_vec(),
            data: TensorData::Inline(bytes.into()),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements as `f64`, if they are floats in memory.
    pub fn to_floats(&self) -> Option<Vec<f64>> {
        let TensorData::Inline(b) = &self.data else {
            return None;
        };
        Some(match self.dtype {
            DType::F32 => b
                .chunks_exact(4)
                .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]) as f64)
                .collect(),
            DType::F64 => b
                .chunks_exact(8)
                .map(|c| f64::from_le_bytes(c.try_into().expect("chunks of 8")))
                .collect(),
            DType::F16 => b
                .chunks_exact(2)
                .map(|c| f16::from_le_bytes([c[0], c[1]]).to_f64())
                .collect(),
            DType::BF16 => b
                .chunks_exact(2)
                .map(|c| bf16::from_le_bytes([c[0], c[1]]).to_f64())
                .collect(),
            _ => return None,
        })
    }

    /// Elements as `i64`, if they are integers or booleans in memory.
    pub fn to_integers(&self) -> Option<Vec<i64>> {
        let TensorData::Inline(b) = &self.data else {
            return None;
        };
        Some(match self.dtype {
            DType::I64 | DType::U64 => b
                .chunks_exact(8)
                .map(|c| i64::from_le_bytes(c.try_into().expect("chunks of 8")))
                .collect(),
            DType::I32 => b
                .chunks_exact(4)
                .map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]]) as i64)
                .collect(),
            DType::U32 => b
                .chunks_exact(4)
                .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]) as i64)
                .collect(),
            DType::I16 => b
                .chunks_exact(2)
                .map(|c| i16::from_le_bytes([c[0], c[1]]) as i64)
                .collect(),
            DType::U16 => b
                .chunks_exact(2)
                .map(|c| u16::from_le_bytes([c[0], c[1]]) as i64)
                .collect(),
            DType::I8 => b.iter().map(|v| *v as i8 as i64).collect(),
            DType::U8 | DType::Bool => b.iter().map(|v| *v as i64).collect(),
            _ => return None,
        })
    }

    /// Number of bytes of the elements.
    pub fn byte_len(&self) -> usize {
        self.len() * self.dtype.size()
    }

    /// The same type and shape with other elements in memory.
    pub(super) fn with_bytes(&self, bytes: Bytes) -> Self {
        self.with_data(TensorData::Inline(bytes))
    }

    /// The same type and shape with its elements in a file.
    pub(super) fn at(&self, file: PathBuf, offset: u64, length: u64) -> Self {
        self.with_data(TensorData::External {
            file: Arc::new(file),
            offset,
            length,
        })
    }

    fn with_data(&self, data: TensorData) -> Self {
        Self {
            dtype: self.dtype,
            shape: self.shape.clone(),
            data,
        }
    }

    /// All elements as `f64`, read from the external file if need be; `name` is the weight's, for the error.
    pub fn read_floats(&self, name: &str) -> Result<Vec<f64>> {
        let inline = self.with_bytes(self.read_bytes()?);
        inline.to_floats().ok_or_else(|| {
            Error::bad(
                format!("weight `{name}`"),
                format!("is stored as {}", self.dtype),
                "Export the model in fp32, fp16 or bf16.",
            )
        })
    }

    /// All elements as bytes, read from the external file if need be.
    pub fn read_bytes(&self) -> Result<Bytes> {
        match &self.data {
            TensorData::Inline(bytes) => Ok(bytes.clone()),
            TensorData::External { file, offset, length } => {
                use std::io::{Read, Seek, SeekFrom};
                let mut f = std::fs::File::open(file.as_path()).map_err(Error::io(file.as_path(), "open"))?;
                let mut bytes = vec![0; *length as usize];
                f.seek(SeekFrom::Start(*offset))
                    .map_err(Error::io(file.as_path(), "read"))?;
                f.read_exact(&mut bytes)
                    .map_err(Error::io(file.as_path(), "read"))?;
                Ok(bytes.into())
            }
        }
    }

    /// Reads a `TensorProto`. `folder` is where external data lies; `None` refuses external data.
    pub(super) fn from_proto(t: &proto::TensorProto, folder: Option<&Path>) -> Result<Self> {
        let place = || format!("tensor `{}`", t.name);
        let dtype = dtype_from_onnx(t.data_type, &place())?;
        let shape = t
            .dims
            .iter()
            .map(|d| usize::try_from(*d))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| {
                Error::bad(
                    place(),
                    "has a negative dimension",
                    "The file is damaged; export it again.",
                )
            })?;
        if !TensorType::new(dtype, shape.clone()).is_countable() {
            return Err(Error::bad(
                place(),
                format!("has the impossibly large shape {shape:?}"),
                "The file is damaged; export it again.",
            ));
        }
        let wanted = shape.iter().product::<usize>() * dtype.size();
        let data = if t.data_location == 1 {
            let location = Location::of(t, folder, Some(wanted as u64))?;
            location.check(&t.name)?;
            TensorData::External {
                file: Arc::new(location.file),
                offset: location.offset,
                length: location.length,
            }
        } else if !t.raw_data.is_empty() || dtype == DType::String {
            TensorData::Inline(t.raw_data.clone())
        } else {
            TensorData::Inline(typed_fields(t, dtype))
        };
        if let TensorData::Inline(bytes) = &data
            && bytes.len() != wanted
            && dtype != DType::String
        {
            return Err(Error::bad(
                place(),
                format!(
                    "holds {} bytes where its shape {shape:?} needs {wanted}",
                    bytes.len()
                ),
                "The file is damaged; export it again.",
            ));
        }
        Ok(Self { dtype, shape, data })
    }

    /// Writes a `TensorProto`; external data files are named relative to `folder`.
    pub(super) fn to_proto(&self, name: &str, folder: Option<&Path>) -> proto::TensorProto {
        let mut t = proto::TensorProto {
            name: name.to_owned(),
            data_type: dtype_to_onnx(self.dtype),
            dims: self.shape.iter().map(|d| *d as i64).collect(),
            ..Default::default()
        };
        match &self.data {
            TensorData::Inline(bytes) => t.raw_data = bytes.clone(),
            TensorData::External { file, offset, length } => {
                let location = folder
                    .and_then(|f| file.strip_prefix(f).ok())
                    .unwrap_or(file.as_path());
                let entry = |key: &str, value: String| proto::StringStringEntryProto {
                    key: key.to_owned(),
                    value,
                };
                t.data_location = 1;
                t.external_data = vec![
                    entry("location", location.to_string_lossy().into_owned()),
                    entry("offset", offset.to_string()),
                    entry("length", length.to_string()),
                ];
            }
        }
        t
    }
}

/// Elements kept in the typed fields of the message instead of `raw_data`.
fn typed_fields(t: &proto::TensorProto, dtype: DType) -> Bytes {
    let bytes: Vec<u8> = match dtype {
        DType::F32 => t.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F64 => t.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::I64 => t.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::U64 => t.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::U32 => t
            .uint64_data
            .iter()
            .flat_map(|v| (*v as u32).to_le_bytes())
            .collect(),
        DType::I32 => t.int32_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 | DType::BF16 | DType::I16 | DType::U16 => t
            .int32_data
            .iter()
            .flat_map(|v| (*v as u16).to_le_bytes())
            .collect(),
        DType::I8 | DType::U8 | DType::Bool => t.int32_data.iter().map(|v| *v as u8).collect(),
        DType::String => Vec::new(),
    };
    bytes.into()
}
