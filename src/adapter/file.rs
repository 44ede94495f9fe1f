//! Safetensors files: written with the same bytes for the same content, read with conversion to 32-bit floats.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
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
    pub values: Box<dyn Fn() -> io::Result<Cow<'a, [f32]>> + 'a>,
}

/// Writes tensors in the order of their names, `metadata` in the order given. The safetensors crate keeps metadata in
/// a map of random order, so that two equal runs would not write equal files; hence the header is made here.
pub fn write(path: &Path, metadata: &[(&str, String)], mut tensors: Vec<NamedTensor<'_>>) -> Result<()> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    write_atomically_with(path, |out| stream(metadata, &tensors, out))
}

/// Writes the bytes of a file with these tensors, which are in the order of their names.
pub(super) fn stream(
    metadata: &[(&str, String)],
    tensors: &[NamedTensor<'_>],
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut header = Map::new();
    let texts: Map<String, Value> = metadata
        .iter()
        .map(|(key, text)| ((*key).to_owned(), text.clone().into()))
        .collect();
    header.insert("__metadata__".into(), Value::Object(texts));
    let mut end = 0;
    for tensor in tensors {
        let begin = end;
        end += tensor.shape.iter().product::<usize>() * tensor.precision.bytes();
        let entry =
            json!({"dtype": tensor.precision.name(), "shape": tensor.shape, "data_offsets": [begin, end]});
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // Values begin at a multiple of 8, which readers that map the file rely on.
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    tensors
        .iter()
        .try_for_each(|tensor| tensor.precision.write(&(tensor.values)()?, out))
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

/// A safetensors file whose tensors are read one by one: all of SDXL's weights take more memory than many machines have.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorFile {
    path: PathBuf,
    entries: Vec<TensorEntry>,
    pub(super) metadata: Map<String, Value>,
}

/// A tensor that was not read yet.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorEntry {
    /// Key in the file.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    dtype: Dtype,
    /// First byte in the file.
    offset: u64,
    bytes: usize,
}

impl TensorEntry {
    /// What its values are stored as, whole numbers counting as 32-bit floats.
    pub fn precision(&self) -> Precision {
        precision_of(self.dtype).unwrap_or_default()
    }

    /// Number of values.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

impl TensorFile {
    /// Reads the header of `path`, with tensors in the order of their names.
    ///
    /// # Errors
    /// It is no safetensors file, is cut off, or holds something else than floats.
    pub fn open(path: &Path) -> Result<Self> {
        let broken = |what: String| {
            let remedy = "Give a safetensors file as diffusers, PEFT or this program write it.";
            Error::bad(path.display().to_string(), what, remedy)
        };
        check_safetensors(path)?;
        let head = read_head(path).map_err(Error::io(path, "read"))?;
        let header: Metadata = serde_json::from_slice(&head[8..])
            .map_err(|error| broken(format!("is not a safetensors file: {error}")))?;
        let mut entries = Vec::new();
        for (name, info) in header.tensors() {
            if precision_of(info.dtype).is_none() {
                return Err(broken(format!(
                    "holds `{name}` as {:?}, which is no float",
                    info.dtype
                )));
            }
            let (begin, end) = info.data_offsets;
            let bits = info
                .shape
                .iter()
                .try_fold(info.dtype.bitsize(), |n, d| n.checked_mul(*d));
            if bits != end.checked_sub(begin).and_then(|bytes| bytes.checked_mul(8)) {
                return Err(broken(format!(
                    "gives `{name}` the shape {:?} and bytes {begin} to {end}, which do not agree",
                    info.shape
                )));
            }
            entries.push(TensorEntry {
                name,
                shape: info.shape.clone(),
                dtype: info.dtype,
                offset: (head.len() + begin) as u64,
                bytes: end - begin,
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let metadata = header.metadata().iter().flatten();
        Ok(Self {
            path: path.to_path_buf(),
            entries,
            metadata: metadata
                .map(|(key, text)| (key.clone(), text.clone().into()))
                .collect(),
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tensors, in the order of their names.
    pub fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    /// Reads one of its tensors.
    ///
    /// # Errors
    /// The file cannot be read any more.
    pub fn read(&self, entry: &TensorEntry) -> Result<ReadTensor> {
        let read = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(entry.offset))?;
            let mut bytes = vec![0; entry.bytes];
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(Error::io(&self.path, "read"))?;
        let (precision, values) =
            floats(entry.dtype, &bytes).expect("files with tensors of other types are not opened");
        Ok(ReadTensor {
            shape: entry.shape.clone(),
            values,
            precision,
        })
    }
}

/// The header with the number in front that says how long it is.
fn read_head(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut head = length.to_vec();
    file.take(u64::from_le_bytes(length)).read_to_end(&mut head)?;
    Ok(head)
}

fn precision_of(dtype: Dtype) -> Option<Precision> {
    match dtype {
        // Some writers keep a LoRA's alpha as a whole number.
        Dtype::F32 | Dtype::I64 => Some(Precision::Fp32),
        Dtype::F16 => Some(Precision::Fp16),
        Dtype::BF16 => Some(Precision::Bf16),
        _ => None,
    }
}

pub(super) fn floats(dtype: Dtype, bytes: &[u8]) -> Option<(Precision, Vec<f32>)> {
    let values = match dtype {
        Dtype::F32 => elements(bytes),
        Dtype::F16 => elements::<f16>(bytes).to_f32_vec(),
        Dtype::BF16 => elements::<bf16>(bytes).to_f32_vec(),
        Dtype::I64 => elements::<i64>(bytes).into_iter().map(|n| n as f32).collect(),
        _ => return None,
    };
    Some((precision_of(dtype)?, values))
}

/// As many whole elements as there are; the bytes may lie anywhere.
fn elements<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    let size = size_of::<T>();
    bytemuck::pod_collect_to_vec(&bytes[..bytes.len() / size * size])
}
