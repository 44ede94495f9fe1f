//! A pipeline folder with adapters merged into its weights: `W + s·B·A`, in the weights' own type.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use super::adapters::{AdapterRef, Adapters};
use super::derived_folder::{ADAPTABLE, files, read_network, write_folder};
use crate::model_folder::{Component, ModelFolder};
use crate::onnx::save_patched;
use crate::{Error, Result};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Networks that were changed.
    pub components: Vec<Component>,
    /// Weights that were changed.
    pub weights: usize,
}

/// Writes `model` with `adapters` merged to `output`, which must be free: all or nothing.
///
/// # Errors
/// An adapter does not fit, or they change nothing; the folder is in use; the disk is full.
pub fn merge(model: &ModelFolder, adapters: &[AdapterRef], output: &Path) -> Result<Merged> {
    let names: Vec<String> = adapters.iter().map(ToString::to_string).collect();
    let adapters = Adapters::read(adapters, model)?;
    write_folder(model, output, |folder| {
        let (merged, replaced) = write_networks(model, &adapters, folder)?;
        match merged.weights {
            0 => Err(Error::bad(
                names.join(", "),
                format!("changes none of the weights of {}", model.root().display()),
                "Check that these are the adapter and the model that are meant: there is nothing to merge.",
            )),
            _ => Ok((merged, replaced)),
        }
    })
}

fn write_networks(model: &ModelFolder, adapters: &Adapters, output: &Path) -> Result<(Merged, Vec<PathBuf>)> {
    let mut merged = Merged {
        components: Vec::new(),
        weights: 0,
    };
    let mut replaced: Vec<PathBuf> = Vec::new();
    for component in ADAPTABLE {
        if adapters.adapts(component) {
            let (source, graph) = read_network(model, component, adapters.replaces(component))?;
            let changed = Cell::new(0);
            let weights = adapters.merged(&graph, component, &changed)?;
            let folder = output.join(component.folder());
            fs::create_dir_all(&folder).map_err(Error::io(&folder, "create the folder"))?;
            save_patched(&source, &weights, &folder.join("model.onnx"))?;
            merged.weights += changed.get();
            merged.components.push(component);
            replaced.extend(files(&source, &graph));
        }
    }
    Ok((merged, replaced))
}
