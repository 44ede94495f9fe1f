//! Weights that several sessions read from one place in memory.
//!
//! A training step may need three sessions over the same base model: policy, reference, anchor. Here the files
//! are mapped once, read-only, and every session is given the same addresses. Pages come in from the file when a
//! kernel first touches them and can be dropped again under memory pressure, since the file still has them.
//!
//! Measured with ONNX Runtime 1.31.1, three sessions over 227 MB of weights, prepacking and constant folding off:
//!
//! | way | anonymous memory | mapped file memory |
//! |---|---|---|
//! | `AddInitializer` over one mapping (this module) | none for weights | 227 MB |
//! | external data opened by each session | none for weights | 681 MB: mapped three times |
//! | `AddExternalInitializers` over one mapping | 681 MB: copied three times | 227 MB |
//!
//! ONNX Runtime folds constants from the file that the model names, not from what it is given here, so the two
//! must be the same; that is why weights come from files only.
//!
//! What the sessions add by themselves comes on top: a packed copy of each matrix and convolution weight
//! ([`SessionOptions::prepack`]; [`PackedWeights`] shares those of matrices), and whatever constant folding and
//! the layout rewriting of [`OptLevel::All`](super::OptLevel::All) make of weights, such as transposes.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use memmap2::Mmap;
use ort::memory::MemoryInfo;
use ort::session::builder::{PrepackedWeights, SessionBuilder};
use ort::value::DynValue;

use super::device::{DeviceBuffer, DeviceTensor};
use super::environment::{RuntimeOptions, init};
use super::failure::failure;
use super::value::{tensor_over, view};
use super::{ExecutionProvider, SessionOptions};
use crate::tensor::DType;
use crate::{Error, Result};

/// Where a weight's bytes are: little-endian, row-major, as ONNX external data has them.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightSource {
    /// The initializer's name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub dims: Vec<usize>,
    /// The file that holds it.
    pub file: PathBuf,
    /// First byte in the file.
    pub offset: u64,
}

/// Weights held in memory once, for as many sessions on the CPU as want them, or once in the memory of another device. Cloning
/// shares them.
#[derive(Debug, Clone, Default)]
pub struct SharedWeights {
    values: IndexMap<String, Arc<DynValue>>,
    // Dropped after `values`, which point into these.
    files: Vec<Arc<Mmap>>,
    copies: Vec<Arc<[u64]>>,
    buffers: Vec<DeviceBuffer>,
}

/// A weight in the host's memory.
#[derive(Debug, Clone)]
pub struct HostWeight<'a> {
    /// The initializer's name.
    pub name: &'a str,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub dims: Vec<usize>,
    /// Its values, row by row.
    pub bytes: &'a [u8],
}

/// Second copies of weights in the layout of the matrix kernels, shared by sessions over the same
/// [`SharedWeights`]. Cloning shares them.
#[derive(Clone)]
pub struct PackedWeights(PrepackedWeights);

impl std::fmt::Debug for PackedWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PackedWeights")
    }
}

impl PackedWeights {
    /// An empty store, filled by the first session that is built with it.
    ///
    /// # Errors
    /// When ONNX Runtime is not to be found.
    pub fn new() -> Result<Self> {
        init(&RuntimeOptions::default())?;
        Ok(Self(PrepackedWeights::new()))
    }
}

impl SharedWeights {
    /// Maps every file that `sources` name, once each. Weights that are not aligned for their type are copied.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be opened; [`Error::BadInput`] when it ends before a weight does, naming
    /// both.
    pub fn map(sources: impl IntoIterator<Item = WeightSource>) -> Result<Self> {
        init(&RuntimeOptions::default())?;
        let mut files: HashMap<PathBuf, Arc<Mmap>> = HashMap::new();
        let mut weights = Self::default();
        for source in sources {
            if !files.contains_key(&source.file) {
                files.insert(source.file.clone(), Arc::new(map_file(&source.file)?));
            }
            let mut bytes = slice_of(&source, &files[&source.file])?;
            let copy;
            if bytes.as_ptr().align_offset(source.dtype.size().max(1)) != 0 {
                copy = aligned(bytes);
                bytes = &bytemuck::cast_slice(&copy)[..bytes.len()];
                weights.copies.push(copy.clone());
            }
            // SAFETY: `weights` holds the file or the copy as long as the value, and sessions hold a clone of it.
            let value = unsafe { value_over(bytes, &source) }.map_err(|e| failure(&source.name, e))?;
            weights.values.insert(source.name, Arc::new(value));
        }
        weights.files = files.into_values().collect();
        Ok(weights)
    }

    /// The weights of these names only, sharing the memory: a session takes no more than its graph declares.
    pub fn subset(&self, mut wanted: impl FnMut(&str) -> bool) -> Self {
        let mut subset = self.clone();
        subset.values.retain(|name, _| wanted(name));
        subset
    }

    /// Weights that lie in a device's memory, for sessions on that device. ONNX Runtime takes them as they are if it wants
    /// them there, and reads what it wants on the host from the model's files.
    pub fn of_device(tensors: impl IntoIterator<Item = (String, DeviceTensor)>) -> Self {
        let mut weights = Self::default();
        for (name, tensor) in tensors {
            weights.values.insert(name, Arc::new(tensor.value));
            weights.buffers.push(tensor.buffer);
        }
        weights
    }

    /// What [`SharedWeights::map`] mapped, of the types that are read here.
    pub fn on_host(&self) -> impl Iterator<Item = HostWeight<'_>> {
        let is_on_host = self.buffers.is_empty();
        let values = self.values.iter().filter(move |_| is_on_host);
        values.filter_map(|(name, value)| {
            let view = view(name, value).ok()?;
            Some(HostWeight {
                name,
                dtype: view.dtype(),
                dims: view.shape().to_vec(),
                bytes: view.bytes()?,
            })
        })
    }

    /// Names in the order they were added.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    pub(super) fn add_to(
        &self,
        mut builder: SessionBuilder,
        options: &SessionOptions,
    ) -> ort::Result<SessionBuilder> {
        for (name, value) in &self.values {
            builder = match options.ep {
                _ if !self.buffers.is_empty() => builder.with_initializer(name, value.clone())?,
                ExecutionProvider::Cpu => builder.with_initializer(name, value.clone())?,
                // Kernels elsewhere cannot read this memory: these are copied to the device.
                _ => builder.with_external_initializer(name, value.clone())?,
            };
        }
        if let Some(packed) = &options.packed {
            builder = builder.with_prepacked_weights(&packed.0)?;
        }
        Ok(builder)
    }
}

fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    // SAFETY: the mapping is read-only and private to us. A model file that another program cuts short while we
    // train would end this process with a bus error: the price of not holding gigabytes a second time.
    unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map into memory"))
}

fn slice_of<'a>(source: &WeightSource, file: &'a Mmap) -> Result<&'a [u8]> {
    let length = source.dims.iter().product::<usize>() * source.dtype.size();
    usize::try_from(source.offset)
        .ok()
        .and_then(|start| file.get(start..start.checked_add(length)?))
        .ok_or_else(|| {
            Error::bad(
                source.file.display().to_string(),
                format!(
                    "is too short: weight `{}` needs {length} bytes from {}, the file has {}",
                    source.name,
                    source.offset,
                    file.len()
                ),
                "Copy or download the file again.",
            )
        })
}

/// A copy at an address that suits every element type.
fn aligned(bytes: &[u8]) -> Arc<[u64]> {
    let mut words = vec![0; bytes.len().div_ceil(size_of::<u64>())];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    words.into()
}

/// Wraps bytes without copying them.
///
/// # Safety
/// `bytes` must outlive the value and every session it is given to, and be aligned for the source's type. ONNX Runtime does not
/// write to initializers, so that it may be given memory that is read-only.
unsafe fn value_over(bytes: &[u8], source: &WeightSource) -> ort::Result<DynValue> {
    let (dtype, dims) = (source.dtype, &source.dims);
    // SAFETY: the caller keeps `bytes`.
    unsafe { tensor_over(bytes.as_ptr(), bytes.len(), dtype, dims, &MemoryInfo::default()) }
}
