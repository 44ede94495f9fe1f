//! A model with some of its weights replaced; all else, open dimensions included, stays as the exporter wrote it.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use prost::Message;

use super::data::Constant;
use super::proto::{GraphProto, TensorProto};
use super::read::Model;
use crate::fsutil::{write_atomically, write_atomically_with};
use crate::{Error, Result};

/// What takes a weight's place; of the same type and shape.
pub struct Replacement<'a> {
    /// Its number of bytes.
    pub bytes: usize,
    /// Makes it, when it is written.
    pub make: Box<dyn Fn() -> Result<Constant> + 'a>,
}

/// Weights larger than this, in bytes, go into the data file where there is one.
const EXTERNAL_FROM: usize = 1024;

/// Models larger than this, in bytes, get a data file: protobuf ends at 2 GiB.
const INLINE_UP_TO: u64 = 1 << 30;

/// Weights in a data file begin at multiples of this, so that they can be mapped.
const ALIGNMENT: u64 = 4096;

/// Writes `model` with the weights named in `replacements` to `path`. Large models, and those that had a data file, get
/// one called `path` with `_data` behind.
///
/// # Errors
/// A weight is not a top-level initializer or constant, cannot be read or made, or the disk is full.
pub fn save_patched(model: &Model, replacements: &HashMap<String, Replacement>, path: &Path) -> Result<()> {
    let mut proto = model.proto.clone();
    let graph = proto.graph.as_mut().expect("a model that was read has a graph");
    as_initializers(graph, replacements, model)?;
    let outside = graph.initializer.iter().any(|t| t.data_location == 1);
    let weights = Weights { model, replacements };
    let external = outside || weights.bytes(&graph.initializer) > INLINE_UP_TO;
    match external {
        false => {
            for tensor in &mut graph.initializer {
                if let Some(replacement) = replacements.get(&tensor.name) {
                    *tensor = (replacement.make)()?.to_proto(&tensor.name, None);
                }
            }
        }
        true => weights.write_data(&mut graph.initializer, path)?,
    }
    write_atomically(path, &proto.encode_to_vec())
}

/// Makes every replaced weight an initializer of its own: some are `Constant` nodes, others reach their place through an
/// `Identity` because the exporter stored equal ones once.
fn as_initializers(
    graph: &mut GraphProto,
    replacements: &HashMap<String, Replacement>,
    model: &Model,
) -> Result<()> {
    let mut there: HashSet<String> = graph.initializer.iter().map(|t| t.name.clone()).collect();
    let mut added = Vec::new();
    graph.node.retain(|node| {
        let moved = matches!(node.op_type.as_str(), "Constant" | "Identity")
            && node.output.first().is_some_and(|o| replacements.contains_key(o));
        if moved {
            added.push(node.output[0].clone());
        }
        !moved
    });
    for name in added {
        there.insert(name.clone());
        graph.initializer.push(TensorProto {
            name,
            ..Default::default()
        });
    }
    match replacements.keys().find(|name| !there.contains(*name)) {
        None => Ok(()),
        Some(name) => Err(Error::bad(
            model.path.display().to_string(),
            format!("keeps its weight `{name}` inside a function, where it cannot be replaced"),
            "Export the model with the legacy exporter, or without functions.",
        )),
    }
}

struct Weights<'a> {
    model: &'a Model,
    replacements: &'a HashMap<String, Replacement<'a>>,
}

impl Weights<'_> {
    fn constant(&self, tensor: &TensorProto) -> Result<Constant> {
        match self.replacements.get(&tensor.name) {
            Some(replacement) => (replacement.make)(),
            None => Constant::from_proto(tensor, Some(self.model.folder())),
        }
    }

    /// Bytes of the weights that are inside the model's file, which bound the size of the patched one.
    fn bytes(&self, tensors: &[TensorProto]) -> u64 {
        let kept = tensors
            .iter()
            .filter(|t| !self.replacements.contains_key(&t.name))
            .map(|t| t.raw_data.len() as u64);
        let replaced = self.replacements.values().map(|r| r.bytes as u64);
        kept.chain(replaced).sum()
    }

    /// Writes the data file and lets the tensors name their places in it.
    fn write_data(&self, tensors: &mut [TensorProto], path: &Path) -> Result<()> {
        let mut name = path.as_os_str().to_owned();
        name.push("_data");
        let file = PathBuf::from(name);
        let folder = path.parent();
        let mut failure = None;
        let written = write_atomically_with(&file, |out| {
            let mut at = 0_u64;
            for tensor in tensors.iter_mut() {
                match self.append(tensor, &file, folder, &mut at, out) {
                    Ok(()) => {}
                    Err(Error::Io { source, .. }) => return Err(source),
                    Err(other) => {
                        failure = Some(other);
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                }
            }
            Ok(())
        });
        match failure {
            Some(failure) => Err(failure),
            None => written,
        }
    }

    fn append(
        &self,
        tensor: &mut TensorProto,
        file: &Path,
        folder: Option<&Path>,
        at: &mut u64,
        out: &mut dyn Write,
    ) -> Result<()> {
        let constant = self.constant(tensor)?;
        if constant.byte_len() < EXTERNAL_FROM {
            let bytes = constant.read_bytes()?;
            *tensor = constant.with_bytes(bytes).to_proto(&tensor.name, None);
            return Ok(());
        }
        let bytes = constant.read_bytes()?;
        let start = at.next_multiple_of(ALIGNMENT);
        let padding = vec![0; (start - *at) as usize];
        out.write_all(&padding)
            .and_then(|()| out.write_all(&bytes))
            .map_err(Error::io(file, "write"))?;
        *at = start + bytes.len() as u64;
        *tensor = constant
            .at(file.to_path_buf(), start, bytes.len() as u64)
            .to_proto(&tensor.name, folder);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::onnx::{Dims, Graph, SpecializeOptions, TensorData, TensorType, save, specialize};
    use crate::tensor::DType;

    const SIZE: usize = 512;

    /// `x + kept + changed`, its weights in a data file.
    fn model(folder: &Path) -> Model {
        let file = Arc::new(folder.join("weights.bin"));
        let values: Vec<u8> = (0..2 * SIZE).flat_map(|i| (i as f32).to_le_bytes()).collect();
        std::fs::write(&*file, values).unwrap();
        let mut g = Graph::new("external", 17);
        let mut sum = g.add_input("x", TensorType::new(DType::F32, [SIZE]));
        for (i, name) in ["kept", "changed"].into_iter().enumerate() {
            let data = TensorData::External {
                file: file.clone(),
                offset: (4 * SIZE * i) as u64,
                length: 4 * SIZE as u64,
            };
            let weight = Constant {
                dtype: DType::F32,
                shape: vec![SIZE],
                data,
            };
            let weight = g.add_constant(name, weight);
            sum = g.add(sum, weight).unwrap();
        }
        let y = g.as_output(sum, "y").unwrap();
        g.outputs.push(y);
        let path = folder.join("model.onnx");
        save(&g, &path).unwrap();
        Model::read(path).unwrap()
    }

    #[test]
    fn a_model_with_a_data_file_gets_one_with_the_new_weights() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let model = model(source.path());
        let ones = Constant::floats(DType::F32, &[SIZE], &[1.0; SIZE]);
        let replacement = Replacement {
            bytes: ones.byte_len(),
            make: Box::new(|| Ok(ones.clone())),
        };
        let path = target.path().join("model.onnx");
        save_patched(&model, &HashMap::from([("changed".into(), replacement)]), &path).unwrap();
        drop(source);
        let written = Model::read(&path).unwrap();
        let options = SpecializeOptions {
            dims: Dims::default(),
            split_shared: false,
        };
        let graph = specialize(&written, &options).unwrap();
        let weight = |name: &str| {
            let value = graph.find(name).unwrap();
            let TensorData::External { file, offset, .. } = &graph.constants[&value].data else {
                panic!("{name} is inline")
            };
            assert!(file.starts_with(target.path()) && offset % ALIGNMENT == 0);
            graph.constants[&value].read_floats(name).unwrap()
        };
        assert_eq!(weight("changed"), vec![1.0; SIZE]);
        assert_eq!(weight("kept"), (0..SIZE).map(|i| i as f64).collect::<Vec<_>>());
    }

    #[test]
    fn a_weight_that_is_not_there_is_named() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let replacement = Replacement {
            bytes: 0,
            make: Box::new(|| Ok(Constant::floats(DType::F32, &[0], &[]))),
        };
        let path = target.path().join("model.onnx");
        let other = HashMap::from([("other".into(), replacement)]);
        let error = save_patched(&model(source.path()), &other, &path).unwrap_err();
        assert!(error.to_string().contains("its weight `other`"), "{error}");
        assert_eq!(std::fs::read_dir(target.path()).unwrap().count(), 0);
    }
}
