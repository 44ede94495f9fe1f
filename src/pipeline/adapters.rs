//! Adapter files applied to the graphs of a pipeline: no weights are written, a session over the graph reads the
//! model's own file.
//!
//! Every adapted layer gets `y + B(A(x))`. Several adapters become one: their factors side by side, of rank r₁ + r₂ + …,
//! each B multiplied by its scale (alpha / r, times the scale that was asked for).

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tempfile::TempDir;

use super::factors::Factors;
use super::misfit;
use super::replacement::{self, NewWeight, new_weights, replace_weights};
use crate::adapter::content::{self, Content};
use crate::adapter::{ModuleName, TensorFile};
use crate::model_folder::{Component, ModelFolder};
use crate::onnx::{Constant, Graph, Node, Replacement, ValueId};
use crate::traingraph::branch::{self, Weights};
use crate::traingraph::{Layer, Trainables, find_layers};
use crate::{Error, Result};

/// An adapter file and how much it counts.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterRef {
    /// An adapter's file, or the folder of a run or of PEFT.
    pub path: PathBuf,
    /// Factor of the change it makes; 1 as it was trained.
    pub scale: f64,
}

impl FromStr for AdapterRef {
    type Err = String;

    /// `FILE` or `FILE:SCALE`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, scale) = match text.rsplit_once(':') {
            Some((path, scale)) if !Path::new(text).exists() => match scale.parse::<f64>() {
                Ok(scale) if scale.is_finite() => (path, scale),
                Ok(_) => return Err(format!("{scale} is no factor")),
                // A colon can be part of a path: whether there is such a file is seen when it is read.
                Err(_) => (text, 1.0),
            },
            _ => (text, 1.0),
        };
        match path.is_empty() {
            true => Err("names no file".into()),
            false => Ok(Self {
                path: path.into(),
                scale,
            }),
        }
    }
}

impl fmt::Display for AdapterRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scale {
            1.0 => write!(f, "{}", self.path.display()),
            scale => write!(f, "{}:{scale}", self.path.display()),
        }
    }
}

impl AdapterRef {
    /// The file itself: of a run's folder, what the run has trained; of PEFT's, the adapter.
    ///
    /// # Errors
    /// It is a folder without such a file.
    pub fn file(&self) -> Result<PathBuf> {
        content::file_of(&self.path)
    }
}

/// A file that was read.
#[derive(Debug)]
struct Loaded {
    path: PathBuf,
    scale: f64,
    content: Content,
}

/// The adapters of a pipeline; none by default.
#[derive(Debug, Default)]
pub struct Adapters {
    files: Vec<Loaded>,
}

/// A graph with adapters in it.
#[derive(Debug)]
pub struct Adapted {
    /// The graph.
    pub graph: Graph,
    /// Folders of its weights, to be kept until there is a session over it.
    pub folders: Vec<TempDir>,
}

impl Adapters {
    /// Reads adapter files for `model`.
    ///
    /// # Errors
    /// A file is no adapter, or does not fit the model: every kind of difference is counted, and some are named.
    pub fn read(refs: &[AdapterRef], model: &ModelFolder) -> Result<Self> {
        let read = |adapter: &AdapterRef| {
            let path = adapter.file()?;
            let loaded = Loaded {
                content: content::read(&path)?.content,
                scale: adapter.scale,
                path,
            };
            loaded.check(model)?;
            Ok(loaded)
        };
        Ok(Self {
            files: refs.iter().map(read).collect::<Result<_>>()?,
        })
    }

    /// Whether any of them changes `component`.
    pub fn adapts(&self, component: Component) -> bool {
        let of_component = |file: &Loaded| match &file.content {
            Content::Lora(modules) => modules.iter().any(|m| m.component == component),
            Content::Full(_) => component == Component::Unet,
        };
        self.files.iter().any(of_component)
    }

    /// Whether any of them replaces whole weights of `component`: its graph must then keep parameters apart that the
    /// exporter merged because they were equal.
    pub fn replaces(&self, component: Component) -> bool {
        let is_full = |file: &Loaded| matches!(file.content, Content::Full(_));
        component == Component::Unet && self.files.iter().any(is_full)
    }

    /// `graph` of `component` with the adapters in it.
    ///
    /// # Errors
    /// A module is not in the graph.
    pub fn apply(&self, graph: Graph, component: Component) -> Result<Adapted> {
        let Adapted { graph, folders } = self.replaced(graph, component)?;
        let adapted = self.by_layer(&graph, component)?;
        if adapted.is_empty() {
            return Ok(Adapted { graph, folders });
        }
        let (mut out, given) = branch::begin_copy(&graph);
        let mut layers = Vec::new();
        let mut values = Vec::new();
        for (layer, factors) in adapted {
            // Factors work on what the layer reads, in its type.
            let dtype = graph.nodes[layer.node]
                .input(0)
                .map_or(crate::tensor::DType::F32, |x| graph.dtype(x));
            for (side, (shape, numbers)) in [("lora_A", factors.down()), ("lora_B", factors.up())] {
                let numbers: Vec<f64> = numbers.into_iter().map(f64::from).collect();
                let name = format!("{}.{side}", layer.module);
                values.push(out.add_constant(&name, Constant::floats(dtype, &shape, &numbers)));
            }
            layers.push(layer);
        }
        let trainables = Trainables {
            adapted: layers,
            scale: 1.0,
            ..Trainables::default()
        };
        let weights = Weights {
            trainables: &trainables,
            values,
        };
        let graph = branch::finish_copy(out, &graph, &given, Some(&weights))?;
        Ok(Adapted { graph, folders })
    }

    /// The weights of `graph` that the adapters change, by name: each is read and made when it is asked for, and then counted
    /// in `changed` unless it is what it was.
    ///
    /// # Errors
    /// As [`Adapters::apply`]; also when layers share one weight and the adapters differ.
    pub fn merged<'a>(
        &'a self,
        graph: &Graph,
        component: Component,
        changed: &'a Cell<usize>,
    ) -> Result<HashMap<String, Replacement<'a>>> {
        let mut new = self.new_weights(graph, component)?;
        let mut merged: HashMap<String, Replacement<'a>> = HashMap::new();
        for (layer, factors) in self.by_layer(graph, component)? {
            let uses = |node: &&Node| node.inputs.contains(&Some(layer.weight));
            if graph.nodes.iter().filter(uses).count() > 1 {
                let what = format!(
                    "adapts `{}`, which shares its weight with another layer",
                    layer.module
                );
                let remedy = "Use the adapter without merging it.";
                return Err(Error::bad(component.to_string(), what, remedy));
            }
            let (weight, replaced) = (graph.constants[&layer.weight].clone(), new.remove(&layer.weight));
            let name = graph.name(layer.weight);
            let bytes = weight.byte_len();
            let make = move || {
                changed.set(changed.get() + 1);
                match &replaced {
                    Some((new, file)) => factors.added_to(&new.read(file)?, &layer),
                    None => factors.added_to(&weight, &layer),
                }
            };
            let make = Box::new(make);
            merged.insert(name, Replacement { bytes, make });
        }
        for (value, (new, file)) in new {
            let old = graph.constants[&value].clone();
            let make = move || {
                let made = new.read(file)?;
                if made.read_bytes()? != old.read_bytes()? {
                    changed.set(changed.get() + 1);
                }
                Ok(made)
            };
            let replacement = Replacement {
                bytes: graph.constants[&value].byte_len(),
                make: Box::new(make),
            };
            merged.insert(graph.name(value), replacement);
        }
        Ok(merged)
    }

    /// Whole weights of the adapters, by the constants whose place they take; of several for one the last.
    fn new_weights(
        &self,
        graph: &Graph,
        component: Component,
    ) -> Result<BTreeMap<ValueId, (NewWeight, &TensorFile)>> {
        let mut found = BTreeMap::new();
        for file in self.whole_weights(component) {
            let new = new_weights(graph, file)?.into_iter();
            found.extend(new.map(|weight| (weight.value, (weight, file))));
        }
        Ok(found)
    }

    fn whole_weights(&self, component: Component) -> impl Iterator<Item = &TensorFile> {
        let files = self.files.iter().filter(move |_| component == Component::Unet);
        files.filter_map(|file| match &file.content {
            Content::Full(file) => Some(file),
            Content::Lora(_) => None,
        })
    }

    fn replaced(&self, mut graph: Graph, component: Component) -> Result<Adapted> {
        let mut folders = Vec::new();
        for file in self.whole_weights(component) {
            folders.extend(replace_weights(&mut graph, file, replacement::IN_MEMORY)?);
        }
        Ok(Adapted { graph, folders })
    }

    /// The layers that are adapted, each with all its factors.
    fn by_layer(&self, graph: &Graph, component: Component) -> Result<Vec<(Layer, Factors)>> {
        let layers = modules(graph, component);
        let mut found: BTreeMap<usize, Factors> = BTreeMap::new();
        for file in &self.files {
            let Content::Lora(modules) = &file.content else {
                continue;
            };
            let known = Index::new(&layers);
            for module in modules.iter().filter(|m| m.component == component) {
                // Those of the model were looked at when the file was read; this is the same network, made for another use.
                let Some(position) = known.find(&module.module) else {
                    let what = format!(
                        "adapts `{}`, which this use of {component} leaves out",
                        module.module.as_str()
                    );
                    let remedy = "Use the adapter without it, or the model's whole network.";
                    return Err(Error::bad(file.path.display().to_string(), what, remedy));
                };
                let factors = Factors::new(module, &layers[position], file.scale, &file.path)?;
                match found.get_mut(&position) {
                    Some(joined) => joined.join(&factors),
                    None => drop(found.insert(position, factors)),
                }
            }
        }
        let with_layer = |(position, factors): (usize, Factors)| (layers[position].clone(), factors);
        Ok(found.into_iter().map(with_layer).collect())
    }
}

impl Loaded {
    fn check(&self, model: &ModelFolder) -> Result<()> {
        if matches!(self.content, Content::Full(_)) && self.scale != 1.0 {
            let what = format!("holds whole weights, which cannot be scaled by {}", self.scale);
            let remedy = "Give it without a scale.";
            return Err(Error::bad(self.path.display().to_string(), what, remedy));
        }
        misfit::refuse(&self.path, &self.content, model)
    }
}

/// Layers by both spellings of their names.
pub(super) struct Index<'a> {
    paths: HashMap<&'a str, usize>,
    flat: HashMap<String, usize>,
}

impl<'a> Index<'a> {
    pub(super) fn new(layers: &'a [Layer]) -> Self {
        let numbered = || layers.iter().enumerate().map(|(i, l)| (l.module.as_str(), i));
        Self {
            paths: numbered().collect(),
            flat: numbered().map(|(name, i)| (name.replace('.', "_"), i)).collect(),
        }
    }

    pub(super) fn find(&self, name: &ModuleName) -> Option<usize> {
        match name {
            ModuleName::Path(path) => self.paths.get(path.as_str()).copied(),
            ModuleName::Flat(flat) => self.flat.get(flat).copied(),
        }
    }
}

/// The layers of a component under the names that adapters have for them.
pub(super) fn modules(graph: &Graph, component: Component) -> Vec<Layer> {
    let mut layers = find_layers(graph);
    if component != Component::Unet && component != Component::Transformer {
        // Whatever the text encoder was exported in is no part of its names.
        for layer in &mut layers {
            if let Some(start) = layer.module.find("text_model.") {
                layer.module.drain(..start);
            }
        }
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_follows_the_last_colon() {
        let parsed = |text: &str| text.parse::<AdapterRef>().unwrap();
        assert_eq!(parsed("a.safetensors").scale, 1.0);
        assert_eq!(parsed("a.safetensors:0.5").scale, 0.5);
        assert_eq!(parsed("a.safetensors:-2").path, Path::new("a.safetensors"));
        assert_eq!(parsed("C:\\a.safetensors").path, Path::new("C:\\a.safetensors"));
        assert_eq!(parsed("b:0.25").to_string(), "b:0.25");
        assert!("a:inf".parse::<AdapterRef>().is_err());
        assert!(":0.5".parse::<AdapterRef>().is_err());
    }
}
