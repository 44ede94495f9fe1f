//! The layers a configuration is made of, and who set which key.
//!
//! ```text
//! built-in defaults ◄ preset ◄ file ◄ command line          later layers win, key by key
//! ```
//!
//! Where the keys of a section depend on its `kind` (the objective, the anchor, …), a layer that names another
//! kind starts that section anew: keys of the former kind do not leak into it, and its own defaults hold. A layer that
//! freezes the reference also drops the anchor below it, which would have nothing to hold: rows of an ablation are
//! one `--set` away from each other.

use std::path::Path;

use serde::Deserialize;
use serde_yaml::{Mapping, Value};

use super::preset::Preset;
use super::schema::SCHEMA;
use super::{Config, Fragment, Sources};
use crate::yaml::{Document, Node, known_depth, steps_of};
use crate::{Error, Result};

enum Origin {
    BuiltIn,
    Preset(Preset),
    File(Document),
    Fragment(String),
    CommandLine,
}

struct Layer {
    origin: Origin,
    values: Value,
}

/// All layers, the weakest first.
pub struct Layers(Vec<Layer>);

impl Layers {
    /// Reads the file and the command line, and finds the preset they name.
    ///
    /// # Errors
    /// The file cannot be read or is not YAML, an assignment cannot be understood, or the preset is unknown.
    pub fn read(sources: &Sources) -> Result<Self> {
        let mut layers = Self(vec![Layer {
            origin: Origin::BuiltIn,
            values: Config::defaults(),
        }]);
        if let Some(path) = &sources.file {
            layers.0.push(file_layer(path)?);
        }
        layers.0.push(command_line_layer(sources)?);
        layers.with_preset()
    }

    /// The layers of a configuration that stands in parts in another file.
    ///
    /// # Errors
    /// The preset is unknown.
    pub fn of_fragments(fragments: &[Fragment]) -> Result<Self> {
        let layer = |fragment: &Fragment| Layer {
            origin: Origin::Fragment(fragment.place.clone()),
            values: fragment.values.clone(),
        };
        let built_in = Layer {
            origin: Origin::BuiltIn,
            values: Config::defaults(),
        };
        Self(
            std::iter::once(built_in)
                .chain(fragments.iter().map(layer))
                .collect(),
        )
        .with_preset()
    }

    /// Adds the layer of the preset that the others name.
    fn with_preset(mut self) -> Result<Self> {
        if let Some(preset) = self.preset().map_err(|error| self.locate(error))? {
            self.0.insert(
                1,
                Layer {
                    origin: Origin::Preset(preset),
                    values: preset.values(),
                },
            );
        }
        Ok(self)
    }

    fn preset(&self) -> Result<Option<Preset>> {
        let named = self.0.iter().rev().find_map(|layer| layer.values.get("preset"));
        let Some(value) = named else { return Ok(None) };
        SCHEMA.check_key("preset", value)?;
        Ok(Option::deserialize(value).expect("the schema knows the presets' names"))
    }

    /// All layers laid over each other.
    pub fn merged(&self) -> Value {
        let mut merged = Value::Mapping(Mapping::new());
        for layer in &self.0 {
            if freezes_reference(&layer.values) {
                let no_anchor = "reference: {anchor: {kind: none}}";
                let no_anchor = serde_yaml::from_str(no_anchor).expect("this is YAML");
                overlay(&mut merged, no_anchor, Some(SCHEMA.root()));
            }
            overlay(&mut merged, layer.values.clone(), Some(SCHEMA.root()));
        }
        merged
    }

    /// Names, in an error about a key, the file and line or the option that set the key.
    pub fn locate(&self, error: Error) -> Error {
        let Error::BadInput { place, what, remedy } = error else {
            return error;
        };
        let path = steps_of(&place);
        let depth = |layer: &Layer| known_depth(&layer.values, &path);
        // The latest of the layers that know most of the path: the one whose value holds.
        let layer = self.0.iter().max_by_key(|layer| depth(layer));
        let place = match layer.map(|layer| (&layer.origin, depth(layer))) {
            Some((Origin::File(document), depth)) if depth > 0 => document.place(&place),
            Some((Origin::CommandLine, depth)) if depth > 0 => format!("command line: {place}"),
            Some((Origin::Fragment(fragment), depth)) if depth > 0 => format!("{fragment}.{place}"),
            Some((Origin::Preset(preset), depth)) if depth > 0 => {
                format!("preset {}: {place}", preset.name())
            }
            _ => self.anywhere(place),
        };
        Error::BadInput { place, what, remedy }
    }

    /// The place of a key that no layer has: in the file, or in the first part of another file.
    fn anywhere(&self, place: String) -> String {
        let named = self.0.iter().find_map(|layer| match &layer.origin {
            Origin::File(document) => Some(format!("{}: {place}", document.path.display())),
            Origin::Fragment(fragment) => Some(format!("{fragment}.{place}")),
            _ => None,
        });
        named.unwrap_or(place)
    }
}

fn file_layer(path: &Path) -> Result<Layer> {
    let document = Document::read(path, "examples/ holds whole files.")?;
    Ok(Layer {
        values: document.value.clone(),
        origin: Origin::File(document),
    })
}

fn command_line_layer(sources: &Sources) -> Result<Layer> {
    let mut values = Value::Mapping(Mapping::new());
    if let Some(name) = &sources.preset {
        values["preset"] = Value::String(name.clone());
    }
    for assignment in &sources.set {
        overlay(&mut values, parse_assignment(assignment)?, None);
    }
    Ok(Layer {
        origin: Origin::CommandLine,
        values,
    })
}

/// `path.to.key=value` as nested mappings; the value is YAML.
fn parse_assignment(text: &str) -> Result<Value> {
    let malformed = |what: String| {
        let remedy = "Write --set path.to.key=value, such as --set optimizer.lr=1e-4.";
        Error::bad(format!("--set {text}"), what, remedy)
    };
    let (path, value) = text
        .split_once('=')
        .ok_or_else(|| malformed("holds no =".into()))?;
    let value =
        serde_yaml::from_str(value).map_err(|error| malformed(format!("has no YAML value: {error}")))?;
    nested(path, value).ok_or_else(|| malformed("has an empty key".into()))
}

/// `value` below the keys of the dotted `path`; none if one of them is empty.
fn nested(path: &str, value: Value) -> Option<Value> {
    path.split('.')
        .rev()
        .try_fold(value, |value, key| match key.trim() {
            "" => None,
            key => Some(Value::Mapping(Mapping::from_iter([(key.into(), value)]))),
        })
}

impl Fragment {
    /// Assignments to dotted paths, as `--set` makes them.
    ///
    /// # Errors
    /// A path has an empty key.
    pub fn of_assignments<'a>(
        place: String,
        assignments: impl IntoIterator<Item = (&'a String, &'a Value)>,
    ) -> Result<Self> {
        let mut values = Value::Mapping(Mapping::new());
        for (path, value) in assignments {
            let nested = nested(path, value.clone()).ok_or_else(|| {
                let remedy = "Write path.to.key, such as optimizer.lr.";
                Error::bad(
                    &place,
                    format!("holds the path {path:?}, which has an empty key"),
                    remedy,
                )
            })?;
            overlay(&mut values, nested, None);
        }
        Ok(Self { place, values })
    }
}

/// Lays `over` onto `base`. A section that is there but empty, as when all its lines are comments, changes nothing.
fn overlay(base: &mut Value, over: Value, node: Option<Node<'_>>) {
    match (base, over) {
        (Value::Mapping(base), Value::Mapping(over)) => {
            let is_union = node.is_some_and(Node::is_union);
            if is_union
                && over
                    .get("kind")
                    .is_some_and(|kind| base.get("kind") != Some(kind))
            {
                base.clear();
            }
            for (key, value) in over {
                let below = key.as_str().and_then(|key| node?.property(key));
                match base.get_mut(&key) {
                    Some(slot) => overlay(slot, value, below),
                    None => drop(base.insert(key, value)),
                }
            }
        }
        (Value::Mapping(_), Value::Null) => {}
        (base, over) => *base = over,
    }
}

fn freezes_reference(values: &Value) -> bool {
    let update = values.get("reference").and_then(|section| section.get("update"));
    update.and_then(Value::as_str) == Some("frozen")
}
