//! Reading a model file.

use std::path::{Path, PathBuf};

use prost::Message;
use prost::bytes::Bytes;

use super::data::dtype_from_onnx;
use super::location;
use super::proto::{self, DimensionValue, ModelProto};
use crate::tensor::DType;
use crate::{Error, Result, placeholder};

/// Operator sets whose meaning ortdpo knows.
pub const OPSETS: std::ops::RangeInclusive<i64> = 13..=23;

/// A dimension as a model declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// A number.
    Fixed(usize),
    /// A name, to be fixed with `--dim NAME=N`.
    Named(String),
    /// Neither, to be fixed with `--shape INPUT=…`.
    Unknown,
}

/// An input as a model declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputInfo {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, or `None` where the model does not even say how many.
    pub dims: Option<Vec<Dim>>,
}

/// A model as read from a file: structure, inline weights, and where the external ones are.
#[derive(Debug, Clone)]
pub struct Model {
    pub(super) proto: ModelProto,
    /// The file it came from.
    pub path: PathBuf,
    /// Version of the standard operator set.
    pub opset: i64,
}

impl Model {
    /// Reads `path`. Inline weights stay in the mapped file; external data files are not opened.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(map(path)?, path)
    }

    /// Parses the bytes of a model; `path` says where it lies, for its external data and for errors.
    pub fn parse(bytes: Bytes, path: &Path) -> Result<Self> {
        let proto = decode(bytes, path)?;
        let opset = proto
            .opset_import
            .iter()
            .find(|o| o.domain.is_empty() || o.domain == "ai.onnx")
            .map_or(1, |o| o.version);
        if !OPSETS.contains(&opset) {
            return Err(Error::bad(
                path.display().to_string(),
                format!(
                    "uses operator set {opset}; ortdpo reads {} to {}",
                    OPSETS.start(),
                    OPSETS.end()
                ),
                "Export the model again with a supported opset_version (17 is a good choice).",
            ));
        }
        Ok(Self {
            proto,
            path: path.to_path_buf(),
            opset,
        })
    }

    /// Bytes of the weights, wherever they are stored.
    pub fn weight_bytes(&self) -> u64 {
        let tensors = self.graph().initializer.iter();
        tensors.filter_map(location::bytes).sum()
    }

    pub(super) fn graph(&self) -> &proto::GraphProto {
        self.proto
            .graph
            .as_ref()
            .expect("parse refuses models without a graph")
    }

    /// Folder that external data is relative to.
    pub fn folder(&self) -> &Path {
        folder_of(&self.path)
    }

    /// The inputs a caller feeds (initializers listed as inputs are not among them).
    pub fn inputs(&self) -> Result<Vec<InputInfo>> {
        let graph = self.graph();
        let fed = graph
            .input
            .iter()
            .filter(|i| !graph.initializer.iter().any(|t| t.name == i.name));
        fed.map(|i| self.input_info(i)).collect()
    }

    fn input_info(&self, info: &proto::ValueInfoProto) -> Result<InputInfo> {
        let place = format!("{}: input `{}`", self.path.display(), info.name);
        let tensor = info
            .r#type
            .as_ref()
            .and_then(|t| t.tensor_type.as_ref())
            .ok_or_else(|| {
                Error::bad(
                    place.clone(),
                    "is not a tensor",
                    "Export the model with tensor inputs only.",
                )
            })?;
        let dims = tensor.shape.as_ref().map(|s| {
            s.dim
                .iter()
                .map(|d| match &d.value {
                    Some(DimensionValue::Value(n)) if *n >= 0 => Dim::Fixed(*n as usize),
                    Some(DimensionValue::Param(name)) if !name.is_empty() => Dim::Named(name.clone()),
                    _ => Dim::Unknown,
                })
                .collect()
        });
        Ok(InputInfo {
            name: info.name.clone(),
            dtype: dtype_from_onnx(tensor.elem_type, &place)?,
            dims,
        })
    }
}

/// Folder that external data of the model at `path` is relative to.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// The bytes of a model file, mapped.
pub(super) fn map(path: &Path) -> Result<Bytes> {
    let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
    let meta = file.metadata().map_err(Error::io(path, "read"))?;
    if meta.is_dir() {
        return Err(Error::bad(
            path.display().to_string(),
            "is a folder, not an ONNX file",
            "Name the .onnx file inside it.",
        ));
    }
    if meta.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is read-only. A file that another process shortens meanwhile could fault, as with any
    // mapped file; models are not written in place by anything this program works with.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
    Ok(Bytes::from_owner(map))
}

/// The message that the bytes of a model hold, which has a graph.
pub(super) fn decode(bytes: Bytes, path: &Path) -> Result<ModelProto> {
    const WHOLE: &str = "Check that the file is an .onnx file and was copied completely.";
    let place = || path.display().to_string();
    placeholder::refuse(path, &bytes)?;
    let size = bytes.len();
    let model = ModelProto::decode(bytes).map_err(|e| {
        let what = format!("is not an ONNX model, or only part of one ({size} bytes read: {e})");
        Error::bad(place(), what, WHOLE)
    })?;
    let is_empty = |g: &proto::GraphProto| g.node.is_empty() && g.output.is_empty();
    match model.graph.as_ref().is_none_or(is_empty) {
        true => Err(Error::bad(
            place(),
            "is not an ONNX model: it holds no graph",
            WHOLE,
        )),
        false => Ok(model),
    }
}
