//! Where the elements of a tensor are when they are not in the model file, and whether they are all there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::data::dtype_from_onnx;
use super::proto::{self, AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use super::read;
use crate::tensor::DType;
use crate::{Error, Result, placeholder};

/// A place in an external data file.
pub(super) struct Location {
    /// Path of the file as found from the model's folder.
    pub file: PathBuf,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl Location {
    /// What `t` says of where its `wanted` bytes are; `folder` is the model's. Nothing is opened.
    pub fn of(t: &TensorProto, folder: Option<&Path>, wanted: Option<u64>) -> Result<Self> {
        let damaged = |what: String| Error::bad(place(&t.name), what, "Export the model again.");
        let entry = |key: &str| {
            let found = t.external_data.iter().find(|e| e.key == key);
            found.map(|e| e.value.as_str())
        };
        let (Some(folder), Some(location)) = (folder, entry("location")) else {
            return Err(damaged("has external data without a location".into()));
        };
        let number = |key: &str| entry(key).map(str::parse::<u64>).transpose();
        let (Ok(offset), Ok(length)) = (number("offset"), number("length")) else {
            return Err(damaged("has an unreadable offset or length".into()));
        };
        if let (Some(length), Some(wanted)) = (length, wanted)
            && length != wanted
        {
            let what = format!("has {length} bytes of external data where its shape needs {wanted}");
            return Err(damaged(what));
        }
        Ok(Self {
            file: folder.join(location),
            offset: offset.unwrap_or(0),
            length: length.or(wanted).unwrap_or(0),
        })
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// Checks that the file is there and long enough for `tensor`, which lies here.
    pub fn check(&self, tensor: &str) -> Result<()> {
        let file = || self.file.display().to_string();
        let found = std::fs::metadata(&self.file).map_err(|e| {
            Error::bad(
                file(),
                format!("external data of {} is missing ({e})", place(tensor)),
                "Put the data file beside the model, download it again, or export the model again.",
            )
        })?;
        if self.end() <= found.len() {
            return Ok(());
        }
        placeholder::check(&self.file)?;
        Err(Error::bad(
            file(),
            format!(
                "is {} bytes long, too short for {} (bytes {} to {})",
                found.len(),
                place(tensor),
                self.offset,
                self.end()
            ),
            "The file is incomplete; copy or download it again, or export the model again.",
        ))
    }
}

fn place(tensor: &str) -> String {
    format!("tensor `{tensor}`")
}

/// Checks that the model at `path` is an ONNX file and that the data files beside it hold every tensor which points into
/// them. No weights are read, and the operator set does not matter.
///
/// # Errors
/// The file is something else, or a part is missing.
pub fn check_files(path: &Path) -> Result<()> {
    let model = read::decode(read::map(path)?, path)?;
    let folder = read::folder_of(path);
    // Of the tensors in a file, the one that ends last says how long the file must be.
    let mut last: BTreeMap<PathBuf, (&str, Location)> = BTreeMap::new();
    for tensor in tensors(&model).into_iter().filter(|t| t.data_location == 1) {
        let location = Location::of(tensor, Some(folder), bytes(tensor)).map_err(|error| match error {
            Error::BadInput { place, what, remedy } => {
                Error::bad(format!("{}: {place}", path.display()), what, remedy)
            }
            other => other,
        })?;
        if last
            .get(&location.file)
            .is_none_or(|(_, known)| location.end() > known.end())
        {
            last.insert(location.file.clone(), (&tensor.name, location));
        }
    }
    last.values()
        .try_for_each(|(tensor, location)| location.check(tensor))
}

/// Bytes of a tensor, if its type has a size that is known here.
pub(super) fn bytes(t: &TensorProto) -> Option<u64> {
    let dtype = dtype_from_onnx(t.data_type, "")
        .ok()
        .filter(|dtype| *dtype != DType::String)?;
    let sizes = t.dims.iter().map(|d| u64::try_from(*d).ok());
    sizes
        .chain([Some(dtype.size() as u64)])
        .try_fold(1_u64, |product, size| product.checked_mul(size?))
}

/// Every tensor of a model, those of nodes and of graphs within nodes too.
fn tensors(model: &ModelProto) -> Vec<&TensorProto> {
    let mut found = Vec::new();
    model.graph.iter().for_each(|graph| of_graph(graph, &mut found));
    let functions = model
        .functions
        .iter()
        .flat_map(|f: &proto::FunctionProto| &f.node);
    of_nodes(functions, &mut found);
    found
}

fn of_graph<'a>(graph: &'a GraphProto, found: &mut Vec<&'a TensorProto>) {
    found.extend(&graph.initializer);
    of_nodes(&graph.node, found);
}

fn of_nodes<'a>(nodes: impl IntoIterator<Item = &'a NodeProto>, found: &mut Vec<&'a TensorProto>) {
    for attribute in nodes.into_iter().flat_map(|node| &node.attribute) {
        let AttributeProto { t, g, .. } = attribute;
        found.extend(t);
        g.iter().for_each(|graph| of_graph(graph, found));
    }
}
