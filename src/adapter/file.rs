//! Safetensors files: written with the same bytes for the same content, read with conversion to 32-bit floats.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::whole::check_safetensors;
use crate::fsutil::write_atomically_with;
use crate::{Error, Result};

/// Element type of written weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats: nothing is lost.
    #[default]
    Fp32,
    /// 16-bit floats of IEEE 754.
    Fp16,
    /// The upper halves of 32-bit floats, rounded.
    Bf16,
}

impl Precision {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Fp32 => 4,
            Self::Fp16 | Self::Bf16 => 2,
        }
    }

    /// As safetensors files name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "F32",
            Self::Fp16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// `value` as this type has it; infinite where it is too large.
    pub fn rounded(self, value: f32) -> f32 {
        match self {
            Self::Fp32 => value,
            Self::Fp16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }

    /// Whether every value of `other` is one of this type, too.
    pub fn holds(self, other: Self) -> bool {
        self == Self::Fp32 || self == other
    }

    pub(super) fn write(self, values: &[f32], out: &mut dyn Write) -> io::Result<()> {
        /// Values converted at a time.
        const BLOCK: usize = 1 << 14;
        match self {
            Self::Fp32 => out.write_all(bytemuck::cast_slice(values)),
            Self::Fp16 => values.chunks(BLOCK).try_for_each(|block| {
                let mut halves = vec![f16::ZERO; block.len()];
                halves.convert_from_f32_slice(block);
                out.write_all(bytemuck::cast_slice(&halves))
            }),
            Self::Bf16 => values.chunks(BLOCK).try_for_each(|block| {
                let mut halves = vec![bf16::ZERO; block.len()];
                halves.convert_from_f32_slice(block);
                out.write_all(bytemuck::cast_slice(&halves))
            }),
        }
    }
}

/// A tensor to be written.
pub struct NamedTensor<'a> {
    /// Key in the file.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Element type in the file.
    pub precision: Precision,
    /// Gives the values, row-major. Called once, when they are written, so that not all need to be in memory at once.
    pub values: Box<dyn Fn() -> Cow<'a, [f32]> + 'a>,
}

/// Writes tensors in the order of their names, `metadata` in the order given. The safetensors crate keeps metadata in
/// a map of random order, so that two equal runs would not write equal files; hence the header is made here.
pub fn write(path: &Path, metadata: &[(&str, String)], mut tensors: Vec<NamedTensor<'_>>) -> Result<()> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut header = Map::new();
    let texts: Map<String, Value> = metadata
        .iter()
        .map(|(key, text)| ((*key).to_owned(), text.clone().into()))
        .collect();
    header.insert("__metadata__".into(), Value::Object(texts));
    let mut end = 0;
    for tensor in &tensors {
        let begin = end;
        end += tensor.shape.iter().product::<usize>() * tensor.precision.bytes();
        let entry =
            json!({"dtype": tensor.precision.name(), "shape": tensor.shape, "data_offsets": [begin, end]});
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // Values begin at a multiple of 8, which readers that map the file rely on.
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomically_with(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        tensors
            .iter()
            .try_for_each(|tensor| tensor.precision.write(&(tensor.values)(), out))
    })
}

/// A tensor that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadTensor {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
    /// What they were stored as.
    pub precision: Precision,
}

/// All tensors of a safetensors file, and its metadata.
pub struct ReadFile {
    pub tensors: Vec<(String, ReadTensor)>,
    pub metadata: Map<String, Value>,
}

/// Reads a whole file, with tensors in the order of their names.
pub fn read(path: &Path) -> Result<ReadFile> {
    let broken = |what: String| {
        let remedy = "Give a safetensors file as diffusers, PEFT or this program write it.";
        Error::bad(path.display().to_string(), what, remedy)
    };
    check_safetensors(path)?;
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let no_safetensors = |error| broken(format!("is not a safetensors file: {error}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(no_safetensors)?;
    let content = SafeTensors::deserialize(&bytes).map_err(no_safetensors)?;
    let mut tensors = Vec::new();
    for (name, view) in content.iter() {
        let (precision, values) = floats(view.dtype(), view.data())
            .ok_or_else(|| broken(format!("holds `{name}` as {:?}, which is no float", view.dtype())))?;
        let tensor = ReadTensor {
            shape: view.shape().to_vec(),
            values,
            precision,
        };
        tensors.push((name.to_owned(), tensor));
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let metadata = header.metadata().iter().flatten();
    Ok(ReadFile {
        tensors,
        metadata: metadata
            .map(|(key, text)| (key.clone(), text.clone().into()))
            .collect(),
    })
}

pub(super) fn floats(dtype: Dtype, bytes: &[u8]) -> Option<(Precision, Vec<f32>)> {
    match dtype {
        Dtype::F32 => Some((Precision::Fp32, elements(bytes))),
        Dtype::F16 => Some((Precision::Fp16, elements::<f16>(bytes).to_f32_vec())),
        Dtype::BF16 => Some((Precision::Bf16, elements::<bf16>(bytes).to_f32_vec())),
        // Some writers keep a LoRA's alpha as a whole number.
        Dtype::I64 => {
            let numbers = elements::<i64>(bytes).into_iter();
            Some((Precision::Fp32, numbers.map(|n| n as f32).collect()))
        }
        _ => None,
    }
}

/// As many whole elements as there are; the bytes may lie anywhere.
fn elements<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    let size = size_of::<T>();
    bytemuck::pod_collect_to_vec(&bytes[..bytes.len() / size * size])
}
