//! Whole weights of a denoiser, as full fine-tuning leaves them, in place of those of its graph. They are read one by one: SDXL's
//! are 10 GB.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use crate::adapter::content::listed;
use crate::adapter::{TensorEntry, TensorFile};
use crate::onnx::{Constant, Graph, TensorData, ValueId};
use crate::tensor::{DType, transposed};
use crate::traingraph::{Trainable, TrainableKind, Trainables};
use crate::{Error, Result};

/// Bytes of new weights that are kept in memory; more go into a temporary file, whose pages the system may drop. ONNX Runtime
/// takes no more than 2 GiB with a graph in any case.
pub const IN_MEMORY: usize = 256 << 20;

/// Weights in the temporary file begin at multiples of this, which suits every type.
const ALIGNMENT: u64 = 64;

/// A weight of a graph and what takes its place.
#[derive(Debug, Clone)]
pub struct NewWeight {
    /// The constant of the graph.
    pub value: ValueId,
    entry: TensorEntry,
    transposed: bool,
    dtype: DType,
    /// In the graph.
    shape: Vec<usize>,
}

impl NewWeight {
    /// Bytes that it takes in the graph's type.
    pub fn byte_len(&self) -> usize {
        self.entry.count() * self.dtype.size()
    }

    /// Reads it from its file, in the graph's type and layout.
    ///
    /// # Errors
    /// The file cannot be read any more.
    pub fn read(&self, file: &TensorFile) -> Result<Constant> {
        let tensor = file.read(&self.entry)?;
        let values = match (self.transposed, tensor.shape.as_slice()) {
            (true, [rows, columns]) => transposed(&tensor.values, *rows, *columns),
            _ => tensor.values,
        };
        Ok(Constant::singles(self.dtype, &self.shape, &values))
    }
}

/// The weights of `graph` that `file` has, named and laid out as PyTorch does. What it does not have stays.
///
/// # Errors
/// A tensor is not in the graph, or has another shape there.
pub fn new_weights(graph: &Graph, file: &TensorFile) -> Result<Vec<NewWeight>> {
    let known = Trainables::full(graph, &["*".to_owned()])?;
    let by_name: HashMap<&str, &Trainable> = known.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    refuse_unknown(file, &by_name)?;
    let mut found = Vec::new();
    for entry in file.entries() {
        let TrainableKind::Weight {
            constant,
            transposed,
            torch_shape,
        } = &by_name[entry.name.as_str()].kind
        else {
            continue;
        };
        if entry.shape != *torch_shape {
            let what = format!(
                "holds `{}` of shape {:?} instead of {torch_shape:?}",
                entry.name, entry.shape
            );
            let remedy = "Give weights that were trained on this kind of model.";
            return Err(Error::bad(file.path().display().to_string(), what, remedy));
        }
        let old = &graph.constants[constant];
        found.push(NewWeight {
            value: *constant,
            entry: entry.clone(),
            transposed: *transposed,
            dtype: old.dtype,
            shape: old.shape.clone(),
        });
    }
    Ok(found)
}

fn refuse_unknown(file: &TensorFile, known: &HashMap<&str, &Trainable>) -> Result<()> {
    let names = file.entries().iter().map(|entry| entry.name.as_str());
    let unknown: Vec<&str> = names.filter(|name| !known.contains_key(name)).collect();
    let Some(first) = unknown.first() else {
        return Ok(());
    };
    let nearest = known.keys().max_by(|a, b| {
        let likeness = |name: &str| strsim::normalized_damerau_levenshtein(name, first);
        likeness(a).total_cmp(&likeness(b)).then(b.cmp(a))
    });
    Err(Error::bad(
        file.path().display().to_string(),
        format!(
            "holds weights that the denoiser does not have: {}",
            listed(&unknown)
        ),
        match nearest {
            Some(name) => format!("The nearest weight there is: `{name}`."),
            None => "The denoiser has no weight with a known name: export it again.".into(),
        },
    ))
}

/// Puts the tensors of `file` into `graph`. If they take more than `in_memory` bytes, they and all other weights of the graph
/// that are in files come to lie in the folder that is returned: ONNX Runtime wants them in one.
///
/// # Errors
/// As [`new_weights`]; the disk is full.
pub fn replace_weights(graph: &mut Graph, file: &TensorFile, in_memory: usize) -> Result<Option<TempDir>> {
    let new = new_weights(graph, file)?;
    if new.iter().map(NewWeight::byte_len).sum::<usize>() <= in_memory {
        for weight in new {
            graph.constants[&weight.value] = weight.read(file)?;
        }
        return Ok(None);
    }
    let temp = std::env::temp_dir();
    let folder = tempfile::Builder::new()
        .prefix("ortdpo-weights-")
        .tempdir()
        .map_err(Error::io(&temp, "write into the folder"))?;
    let mut spool = Spool::new(&folder.path().join("weights"))?;
    let mut by_value: HashMap<ValueId, NewWeight> = new.into_iter().map(|w| (w.value, w)).collect();
    for (value, constant) in &mut graph.constants {
        let weight = match by_value.remove(value) {
            Some(weight) => weight.read(file)?,
            None if matches!(constant.data, TensorData::External { .. }) => constant.clone(),
            None => continue,
        };
        *constant = spool.add(&weight)?;
    }
    spool.finish()?;
    Ok(Some(folder))
}

/// A file of weights that is being written.
struct Spool {
    path: Arc<std::path::PathBuf>,
    out: BufWriter<File>,
    at: u64,
}

impl Spool {
    fn new(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io(path, "create"))?;
        Ok(Self {
            path: Arc::new(path.to_path_buf()),
            out: BufWriter::with_capacity(1 << 20, file),
            at: 0,
        })
    }

    /// Writes a weight; the same with its bytes where they are now.
    fn add(&mut self, weight: &Constant) -> Result<Constant> {
        let bytes = weight.read_bytes()?;
        let offset = self.at.next_multiple_of(ALIGNMENT);
        let padding = vec![0; (offset - self.at) as usize];
        let written = |out: &mut BufWriter<File>| -> io::Result<()> {
            out.write_all(&padding)?;
            out.write_all(&bytes)
        };
        written(&mut self.out).map_err(Error::io(self.path.as_path(), "write"))?;
        let length = bytes.len() as u64;
        self.at = offset + length;
        Ok(Constant {
            dtype: weight.dtype,
            shape: weight.shape.clone(),
            data: TensorData::External {
                file: self.path.clone(),
                offset,
                length,
            },
        })
    }

    fn finish(mut self) -> Result<()> {
        self.out.flush().map_err(Error::io(self.path.as_path(), "write"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::{NamedTensor, Precision, write_tensors};
    use crate::model_folder::{Component, ModelFolder};
    use crate::pipeline::network::{map_weights, session_over};
    use crate::pipeline::read_network;
    use crate::runtime::{SessionOptions, TensorView};
    use crate::tensor::Tensor;

    /// Whether new weights are in memory or in a temporary file, the network computes the same.
    #[test]
    fn weights_may_lie_in_a_file_of_their_own() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/optimum-sd");
        let (source, graph) =
            read_network(&ModelFolder::open(&root).unwrap(), Component::Unet, true).unwrap();
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("full.safetensors");
        let names = [
            ("conv_in.weight", vec![4, 4, 3, 3]),
            (
                "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
                vec![4, 4],
            ),
        ];
        let tensors = names.into_iter().map(|(name, shape)| {
            let count: usize = shape.iter().product();
            NamedTensor {
                name: name.into(),
                shape,
                precision: Precision::Fp32,
                values: Box::new(move || Ok((0..count).map(|i| (i as f32 * 0.7).sin()).collect())),
            }
        });
        write_tensors(&path, &[], tensors.collect()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        let run = |in_memory: usize| {
            let mut graph = graph.clone();
            let folder = replace_weights(&mut graph, &file, in_memory).unwrap();
            assert_eq!(folder.is_some(), in_memory == 0);
            let options = SessionOptions::default();
            let weights = map_weights(&graph).unwrap();
            let mut session = session_over(&graph, source.folder(), &weights, &options).unwrap();
            let inputs: Vec<(String, Tensor)> = session
                .inputs()
                .iter()
                .map(|input| {
                    let shape: Vec<usize> = input.dims.iter().map(|d| d.unwrap()).collect();
                    let tensor = match input.dtype {
                        DType::I64 => Tensor::I64(ndarray::ArrayD::from_elem(shape, 500)),
                        _ => Tensor::F32(ndarray::ArrayD::from_elem(shape, 0.5)),
                    };
                    (input.name.clone(), tensor)
                })
                .collect();
            let views: Vec<(&str, TensorView)> = inputs
                .iter()
                .map(|(n, t)| (n.as_str(), TensorView::from(t)))
                .collect();
            let output = session.outputs()[0].name.clone();
            let mut made = session.run(&views).unwrap();
            made.take(&output).unwrap().into_f32("unet").unwrap()
        };
        assert_eq!(run(0), run(usize::MAX));
    }
}
