//! The little protobuf that the tests need beside the program's own: stored tensors, and two changes to a model.

use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};
use ortdpo::tensor::Tensor;
use prost::Message;

/// `TensorProto`.
#[derive(Clone, PartialEq, Message)]
pub struct StoredTensor {
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
    #[prost(double, repeated, tag = "10")]
    pub double_data: Vec<f64>,
}

impl StoredTensor {
    /// As a tensor, or the number of an element type that tensors here do not have.
    pub fn tensor(&self) -> Result<Tensor, i32> {
        let shape: Vec<usize> = self.dims.iter().map(|d| *d as usize).collect();
        let shape = IxDyn(&shape);
        macro_rules! raw {
            ($kind:ty) => {
                self.raw_data
                    .chunks_exact(size_of::<$kind>())
                    .map(|c| <$kind>::from_le_bytes(c.try_into().unwrap()))
            };
        }
        macro_rules! array {
            ($kind:ty, $typed:expr) => {{
                let values: Vec<$kind> = if self.raw_data.is_empty() {
                    $typed.collect()
                } else {
                    raw!($kind).collect()
                };
                ArrayD::from_shape_vec(shape, values).unwrap()
            }};
        }
        let ints = || self.int32_data.iter().copied();
        Ok(match self.data_type {
            1 => Tensor::F32(array!(f32, self.float_data.iter().copied())),
            2 => Tensor::U8(array!(u8, ints().map(|v| v as u8))),
            6 => Tensor::I32(array!(i32, ints())),
            7 => Tensor::I64(array!(i64, self.int64_data.iter().copied())),
            9 => {
                let bytes: Vec<bool> = match self.raw_data.is_empty() {
                    true => ints().map(|v| v != 0).collect(),
                    false => self.raw_data.iter().map(|v| *v != 0).collect(),
                };
                Tensor::Bool(ArrayD::from_shape_vec(shape, bytes).unwrap())
            }
            10 => Tensor::F16(array!(f16, ints().map(|v| f16::from_bits(v as u16)))),
            11 => Tensor::F64(array!(f64, self.double_data.iter().copied())),
            16 => Tensor::BF16(array!(bf16, ints().map(|v| bf16::from_bits(v as u16)))),
            other => return Err(other),
        })
    }
}

/// The parts of a model that tell what its inputs and outputs are.
#[derive(Clone, PartialEq, Message)]
pub struct Interface {
    #[prost(message, repeated, tag = "8")]
    pub opsets: Vec<Opset>,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphInterface>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Opset {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct GraphInterface {
    #[prost(message, repeated, tag = "11")]
    pub inputs: Vec<Named>,
    #[prost(message, repeated, tag = "12")]
    pub outputs: Vec<Named>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Named {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<Type>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Type {
    /// The tensor type's own bytes; `None` for sequences and optionals.
    #[prost(bytes = "vec", optional, tag = "1")]
    pub tensor: Option<Vec<u8>>,
}

/// The model with the versions of its standard operators set to `version`.
pub fn with_opset(model: &[u8], version: i64) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), model);
    while !rest.is_empty() {
        let before = rest;
        let (tag, wire) = prost::encoding::decode_key(&mut rest).unwrap();
        let context = prost::encoding::DecodeContext::default();
        let start = rest;
        prost::encoding::skip_field(wire, tag, &mut rest, context).unwrap();
        if tag == 8 {
            let length = prost::encoding::decode_varint(&mut &start[..]).unwrap() as usize;
            let body = &start[start.len() - rest.len() - length..][..length];
            let mut opset = Opset::decode(body).unwrap();
            if opset.domain.is_empty() {
                opset.version = version;
            }
            prost::encoding::message::encode(8, &opset, &mut out);
        } else {
            out.extend_from_slice(&before[..before.len() - rest.len()]);
        }
    }
    out
}

/// The model with the value of its input `name` fixed: protobuf joins messages that come in two parts, so an initializer
/// can be appended.
pub fn with_initializer(model: &mut Vec<u8>, name: &str, tensor: &StoredTensor) {
    #[derive(Clone, PartialEq, Message)]
    struct Graph {
        #[prost(message, repeated, tag = "5")]
        initializers: Vec<StoredTensor>,
    }
    let tensor = StoredTensor {
        name: name.to_owned(),
        ..tensor.clone()
    };
    prost::encoding::message::encode(
        7,
        &Graph {
            initializers: vec![tensor],
        },
        model,
    );
}
