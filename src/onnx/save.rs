//! Saving a graph as a file that ONNX Runtime loads anywhere: external data comes along.
//!
//! ONNX Runtime reads data files from the model's own folder only. Data that lies below the folder written to is named
//! where it is; other data files are hard-linked beside the model, or copied where the disk is another one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::data::TensorData;
use super::graph::Graph;
use super::write::to_bytes;
use crate::{Error, Result, fsutil};

/// Writes `graph` to `path`, all or nothing: when something fails, data files that were brought along are removed again.
///
/// # Errors
/// A folder that is not there or not writable, a full disk, other files in the way of the data, a model too large for
/// protobuf.
pub fn save(graph: &Graph, path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut graph = graph.clone();
    let missing = name_data_from(&mut graph, folder, path)?;
    let bytes = to_bytes(&graph, Some(folder))?;
    let mut brought = Brought::default();
    for (near, from) in &missing {
        brought.bring(from, near)?;
    }
    fsutil::write_atomically(path, &bytes)?;
    brought.keep();
    Ok(())
}

/// Makes `graph` name its data files as they will lie in or below `folder`. Returns those that are not there yet, with
/// where they come from. `model` is the file that will be written.
fn name_data_from(graph: &mut Graph, folder: &Path, model: &Path) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let home = std::fs::canonicalize(folder).map_err(Error::io(folder, "open the folder"))?;
    let target = model.file_name().map(|name| folder.join(name));
    let mut missing = BTreeMap::new();
    let mut known: BTreeMap<Arc<PathBuf>, Arc<PathBuf>> = BTreeMap::new();
    for constant in graph.constants.values_mut() {
        let TensorData::External { file, .. } = &mut constant.data else {
            continue;
        };
        if let Some(near) = known.get(file) {
            *file = near.clone();
            continue;
        }
        let from = std::fs::canonicalize(file.as_path()).map_err(Error::io(file.as_path(), "open"))?;
        let near = match (from.strip_prefix(&home), from.file_name()) {
            (Ok(below), _) => folder.join(below),
            (Err(_), Some(name)) => {
                let near = folder.join(name);
                let other = missing.get(&near).is_some_and(|other| *other != from);
                if other || !is_free_or_same(&from, &near)? {
                    return Err(in_the_way(&near));
                }
                if !near.exists() {
                    missing.insert(near.clone(), from);
                }
                near
            }
            (Err(_), None) => return Err(in_the_way(file)),
        };
        if target.as_ref() == Some(&near) {
            return Err(in_the_way(&near));
        }
        let near = Arc::new(near);
        known.insert(file.clone(), near.clone());
        *file = near;
    }
    Ok(missing)
}

/// Whether `near` is not there, or is `from` already: linked or copied by an earlier run.
fn is_free_or_same(from: &Path, near: &Path) -> Result<bool> {
    let Ok(there) = std::fs::metadata(near) else {
        return Ok(true);
    };
    let wanted = std::fs::metadata(from).map_err(Error::io(from, "read"))?;
    Ok(there.len() == wanted.len() && there.modified().ok() == wanted.modified().ok())
}

fn in_the_way(near: &Path) -> Error {
    Error::bad(
        near.display().to_string(),
        "is in the way: the model that is written needs its weights under that name",
        "Write the model into another folder, or beside its source.",
    )
}

/// Data files put beside a model; removed again unless kept.
#[derive(Default)]
struct Brought {
    files: Vec<PathBuf>,
}

impl Brought {
    /// Links or copies `from` to `near`.
    fn bring(&mut self, from: &Path, near: &Path) -> Result<()> {
        if std::fs::hard_link(from, near).is_err() {
            copy_whole(from, near).map_err(Error::io(near, "write"))?;
        }
        self.files.push(near.to_path_buf());
        Ok(())
    }

    fn keep(mut self) {
        self.files.clear();
    }
}

impl Drop for Brought {
    fn drop(&mut self) {
        for file in &self.files {
            // Nothing can be done about a file that will not go, and the error on its way says what went wrong.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Copies through a temporary file, so that no partial copy is ever under the name `near`. The time of the last change is
/// copied, too: by it a later run knows the copy again.
fn copy_whole(from: &Path, near: &Path) -> std::io::Result<()> {
    let folder = near.parent().filter(|p| !p.as_os_str().is_empty());
    let temp = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    std::fs::copy(from, temp.path())?;
    temp.as_file()
        .set_modified(std::fs::metadata(from)?.modified()?)?;
    temp.persist_noclobber(near).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Constant, Model, TensorType};
    use crate::tensor::DType;

    /// A graph that adds a weight in `folder/weights.bin` to its input.
    fn with_external_weight(folder: &Path) -> Graph {
        let file = folder.join("weights.bin");
        std::fs::write(&file, [1.0_f32, 2.0].map(f32::to_le_bytes).concat()).unwrap();
        let mut g = Graph::new("external", 17);
        let x = g.add_input("x", TensorType::new(DType::F32, [2]));
        let data = TensorData::External {
            file: Arc::new(file),
            offset: 0,
            length: 8,
        };
        let w = g.add_constant(
            "w",
            Constant {
                dtype: DType::F32,
                shape: vec![2],
                data,
            },
        );
        let y = g.add(x, w).unwrap();
        let y = g.as_output(y, "y").unwrap();
        g.outputs.push(y);
        g
    }

    fn entries(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
        let mut names: Vec<_> = names.map(|n| n.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn weights_come_along_to_another_folder() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let graph = with_external_weight(source.path());
        for _ in 0..2 {
            save(&graph, &target.path().join("model.onnx")).unwrap();
            assert_eq!(entries(target.path()), ["model.onnx", "weights.bin"]);
        }
        let model = Model::read(target.path().join("model.onnx")).unwrap();
        let again = crate::onnx::specialize(&model, &Default::default()).unwrap();
        let weight = again.constants.values().next().unwrap();
        assert_eq!(
            weight.read_bytes().unwrap(),
            std::fs::read(source.path().join("weights.bin")).unwrap()
        );
    }

    #[test]
    fn weights_below_the_folder_stay_where_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("data");
        std::fs::create_dir(&below).unwrap();
        save(&with_external_weight(&below), &folder.path().join("model.onnx")).unwrap();
        assert_eq!(entries(folder.path()), ["data", "model.onnx"]);
        assert!(Model::read(folder.path().join("model.onnx")).is_ok());
    }

    #[test]
    fn other_files_are_not_overwritten() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let graph = with_external_weight(source.path());
        std::fs::write(target.path().join("weights.bin"), "something else").unwrap();
        let error = save(&graph, &target.path().join("model.onnx")).unwrap_err();
        assert!(error.to_string().contains("is in the way"), "{error}");
        assert_eq!(entries(target.path()), ["weights.bin"]);
        let error = save(&graph, &source.path().join("weights.bin")).unwrap_err();
        assert!(error.to_string().contains("is in the way"), "{error}");
    }

    #[test]
    fn nothing_is_left_behind_by_a_failure() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let graph = with_external_weight(source.path());
        // A folder under the model's name makes the last step fail.
        std::fs::create_dir(target.path().join("model.onnx")).unwrap();
        assert!(save(&graph, &target.path().join("model.onnx")).is_err());
        assert_eq!(entries(target.path()), ["model.onnx"]);
    }

    #[test]
    fn a_copy_is_known_again() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        with_external_weight(source.path());
        let (from, near) = (
            source.path().join("weights.bin"),
            target.path().join("weights.bin"),
        );
        copy_whole(&from, &near).unwrap();
        assert!(is_free_or_same(&from, &near).unwrap());
        assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&near).unwrap());
    }
}
