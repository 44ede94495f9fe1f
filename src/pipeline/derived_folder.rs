//! A pipeline folder made of another one: some networks are written anew, with open dimensions and everything else as it
//! was; weight files of the others are hard-linked where the disk allows, small files copied.

use std::fs;
use std::path::{Path, PathBuf};

use super::{denoiser, geometry};
use crate::fsutil::link_or_copy;
use crate::model_folder::{Component, ModelFolder};
use crate::onnx::{Constant, Dims, Graph, Model, SpecializeOptions, TensorData, specialize};
use crate::{Error, Result};

/// Networks that adapters can change.
pub const ADAPTABLE: [Component; 3] = [Component::Unet, Component::TextEncoder, Component::TextEncoder2];

/// Writes a pipeline folder to `output`, which must be free: all or nothing. `write_new` puts the new networks into the
/// folder it is given and tells which files of `model` they replace; all others are linked or copied.
///
/// # Errors
/// The folder is in use; the disk is full; what `write_new` says.
pub fn write_folder<T>(
    model: &ModelFolder,
    output: &Path,
    write_new: impl FnOnce(&Path) -> Result<(T, Vec<PathBuf>)>,
) -> Result<T> {
    let is_free = match fs::read_dir(output) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => !output.exists(),
    };
    if !is_free {
        let remedy = "Choose another folder with --output, or delete this one.";
        return Err(Error::bad(output.display().to_string(), "is in use", remedy));
    }
    let parent = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(Error::io(parent, "create the folder"))?;
    let unfinished = tempfile::Builder::new()
        .prefix(".unfinished-")
        .tempdir_in(parent)
        .map_err(Error::io(parent, "write into the folder"))?;
    let (made, replaced) = write_new(unfinished.path())?;
    copy_rest(model.root(), unfinished.path(), &replaced)?;
    allow_others_to_read(unfinished.path())?;
    fs::rename(unfinished.path(), output).map_err(Error::io(output, "write"))?;
    // What it would remove when dropped has another name now.
    let _ = unfinished.keep();
    Ok(made)
}

/// `model.onnx` of a component as it was exported, and as a static graph of some sizes: layers and weights are the same
/// for all. `split_shared` makes parameters that the exporter merged separate again.
///
/// # Errors
/// The network is missing or no network of such a pipeline.
pub fn read_network(model: &ModelFolder, component: Component, split_shared: bool) -> Result<(Model, Graph)> {
    let source = Model::read(model.network(component)?)?;
    let graph = match component {
        Component::Unet => denoiser::load(&source, &geometry::declared(model, 1, None)?, split_shared)?,
        _ => {
            let mut dims = Dims::default();
            let context = model.config(component)?.number("max_position_embeddings")? as usize;
            for input in source.inputs()? {
                dims.shapes.insert(input.name, vec![1, context]);
            }
            specialize(&source, &SpecializeOptions { dims, split_shared })?
        }
    };
    Ok((source, graph))
}

/// The files that a network consists of: its model and the data files of its weights.
pub fn files(source: &Model, graph: &Graph) -> Vec<PathBuf> {
    let data = graph.constants.values().filter_map(data_file);
    let mut files: Vec<PathBuf> = data.chain([source.path.clone()]).collect();
    files.sort();
    files.dedup();
    files
}

/// Temporary folders are private; what is kept has the usual permissions.
fn allow_others_to_read(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder, mode).map_err(Error::io(folder, "write"))?;
    }
    Ok(())
}

/// Links or copies everything below `from` except the files in `replaced`.
fn copy_rest(from: &Path, to: &Path, replaced: &[PathBuf]) -> Result<()> {
    fs::create_dir_all(to).map_err(Error::io(to, "create the folder"))?;
    for entry in fs::read_dir(from).map_err(Error::io(from, "list the folder"))? {
        let path = entry.map_err(Error::io(from, "list the folder"))?.path();
        let Some(name) = path.file_name() else { continue };
        if path.is_dir() {
            copy_rest(&path, &to.join(name), replaced)?;
        } else if !replaced.contains(&path) {
            link_or_copy(&path, &to.join(name))?;
        }
    }
    Ok(())
}

fn data_file(constant: &Constant) -> Option<PathBuf> {
    match &constant.data {
        TensorData::External { file, .. } => Some(file.to_path_buf()),
        TensorData::Inline(_) => None,
    }
}
