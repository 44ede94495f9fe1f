//! A pipeline folder with adapters merged into its weights: `W + s·B·A`, in the weights' own type.
//!
//! Only the networks that an adapter changes are written anew, with open dimensions and everything else as they were.
//! Weight files of the others are hard-linked where the disk allows, small files copied.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::adapters::{AdapterRef, Adapters};
use super::denoiser::{self, Added, Geometry, TIME_IDS};
use crate::fsutil::link_or_copy;
use crate::model_folder::{Component, JsonFile, ModelFolder};
use crate::onnx::{
    Constant, Dims, Graph, Model, Replacement, SpecializeOptions, TensorData, save_patched, specialize,
};
use crate::{Error, Result};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Networks that were changed.
    pub components: Vec<Component>,
    /// Weights that were changed.
    pub weights: usize,
}

/// Networks that adapters can change.
const ADAPTABLE: [Component; 3] = [Component::Unet, Component::TextEncoder, Component::TextEncoder2];

/// Writes `model` with `adapters` merged to `output`, which must be free: all or nothing.
///
/// # Errors
/// An adapter does not fit; the folder is in use; the disk is full.
pub fn merge(model: &ModelFolder, adapters: &[AdapterRef], output: &Path) -> Result<Merged> {
    let adapters = Adapters::read(adapters, model)?;
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
    let merged = write_all(model, &adapters, unfinished.path())?;
    allow_others_to_read(unfinished.path())?;
    fs::rename(unfinished.path(), output).map_err(Error::io(output, "write"))?;
    // What it would remove when dropped has another name now.
    let _ = unfinished.keep();
    Ok(merged)
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

fn write_all(model: &ModelFolder, adapters: &Adapters, output: &Path) -> Result<Merged> {
    let mut merged = Merged {
        components: Vec::new(),
        weights: 0,
    };
    let mut written: Vec<PathBuf> = Vec::new();
    for component in ADAPTABLE {
        if adapters.adapts(component) {
            let network = Network::read(model, component, adapters)?;
            let folder = output.join(component.folder());
            fs::create_dir_all(&folder).map_err(Error::io(&folder, "create the folder"))?;
            merged.weights += network.write(&folder.join("model.onnx"))?;
            merged.components.push(component);
            written.extend(network.files());
        }
    }
    copy_rest(model.root(), output, &written)?;
    Ok(merged)
}

/// Links or copies everything below `from` except the files in `written`.
fn copy_rest(from: &Path, to: &Path, written: &[PathBuf]) -> Result<()> {
    fs::create_dir_all(to).map_err(Error::io(to, "create the folder"))?;
    for entry in fs::read_dir(from).map_err(Error::io(from, "list the folder"))? {
        let path = entry.map_err(Error::io(from, "list the folder"))?.path();
        let Some(name) = path.file_name() else { continue };
        if path.is_dir() {
            copy_rest(&path, &to.join(name), written)?;
        } else if !written.contains(&path) {
            link_or_copy(&path, &to.join(name))?;
        }
    }
    Ok(())
}

/// A network with what adapters make of its weights.
struct Network<'a> {
    model: Model,
    graph: Graph,
    merged: HashMap<String, Replacement<'a>>,
}

impl<'a> Network<'a> {
    fn read(model: &ModelFolder, component: Component, adapters: &'a Adapters) -> Result<Self> {
        let source = Model::read(model.network(component)?)?;
        let split_shared = adapters.replaces(component);
        // Any sizes will do: the weights are the same for all.
        let graph = match component {
            Component::Unet => denoiser::load(&source, &some_geometry(model)?, split_shared)?,
            _ => {
                let mut dims = Dims::default();
                let context = model.config(component)?.number("max_position_embeddings")? as usize;
                for input in source.inputs()? {
                    dims.shapes.insert(input.name, vec![1, context]);
                }
                specialize(&source, &SpecializeOptions { dims, split_shared })?
            }
        };
        let merged = adapters.merged(&graph, component)?;
        Ok(Self {
            merged,
            model: source,
            graph,
        })
    }

    fn write(&self, path: &Path) -> Result<usize> {
        save_patched(&self.model, &self.merged, path)?;
        Ok(self.merged.len())
    }

    /// The network's own files, whose place the merged ones take.
    fn files(&self) -> Vec<PathBuf> {
        let data = self.graph.constants.values().filter_map(data_file);
        let mut files: Vec<PathBuf> = data.chain([self.model.path.clone()]).collect();
        files.sort();
        files.dedup();
        files
    }
}

fn data_file(constant: &Constant) -> Option<PathBuf> {
    match &constant.data {
        TensorData::External { file, .. } => Some(file.to_path_buf()),
        TensorData::Inline(_) => None,
    }
}

/// Sizes that the denoiser of `model` takes.
fn some_geometry(model: &ModelFolder) -> Result<Geometry> {
    let unet = model.config(Component::Unet)?;
    let natural = |config: &JsonFile, key: &str| config.number(key).map(|n| n as usize);
    let side = match unet.get("sample_size").and_then(|v| v.as_array()) {
        Some(sides) => sides.first().and_then(|v| v.as_u64()).unwrap_or(0) as usize,
        None => natural(&unet, "sample_size")?,
    };
    let pooled = match unet.get("projection_class_embeddings_input_dim") {
        None => None,
        Some(_) => Some(
            natural(&unet, "projection_class_embeddings_input_dim")?
                .saturating_sub(TIME_IDS * natural(&unet, "addition_time_embed_dim")?),
        ),
    };
    let text = model.config(Component::TextEncoder)?;
    Ok(Geometry {
        samples: 1,
        latent: [natural(&unet, "in_channels")?, side, side],
        text: [
            natural(&text, "max_position_embeddings")?,
            natural(&unet, "cross_attention_dim")?,
        ],
        added: pooled.map(|pooled| Added {
            pooled,
            size: [8 * side; 2],
        }),
    })
}
