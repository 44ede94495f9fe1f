//! YAML files that people write: read strictly, with complaints that name file, line, key and the nearest known name.
//!
//! ```text
//! file ──Document::read──► value ──Schema::check──► the Rust type, by serde
//!                            └── locate: the line of the key that an error is about
//! ```
//!
//! Training configurations lay several sources over each other before they check the result ([`crate::config`]);
//! files that stand alone, such as reward manifests, are [`read`] in one go.

mod locate;
mod schema;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_yaml::Value;

pub use locate::Step;
pub use schema::{Node, Schema, nearest};

use crate::{Error, Result};

/// A file's text and the mapping it holds.
#[derive(Debug, Clone)]
pub struct Document {
    /// Where it was read from.
    pub path: PathBuf,
    /// Always a mapping.
    pub value: Value,
    text: String,
}

impl Document {
    /// Reads a file that holds a mapping; `example` tells where a good one is to be seen.
    ///
    /// # Errors
    /// The file cannot be read, is not YAML or holds something else.
    pub fn read(path: &Path, example: &str) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let value = match serde_yaml::from_str(&text) {
            Ok(Value::Null) => Value::Mapping(Default::default()),
            Ok(value @ Value::Mapping(_)) => value,
            Ok(_) => {
                let remedy = format!("Write one `key: value` a line; {example}");
                return Err(Error::bad(path.display().to_string(), "holds no keys", remedy));
            }
            Err(error) => {
                let line = error
                    .location()
                    .map_or(String::new(), |at| format!(":{}", at.line()));
                let place = format!("{}{line}", path.display());
                let remedy = "Mend the file there.";
                return Err(Error::bad(place, format!("is not YAML: {error}"), remedy));
            }
        };
        Ok(Self {
            path: path.to_path_buf(),
            value,
            text,
        })
    }

    /// How many steps of `path` lead somewhere.
    pub fn known_depth(&self, path: &[Step<'_>]) -> usize {
        known_depth(&self.value, path)
    }

    /// `FILE:LINE: place`, with the line of the deepest part of the dotted path `place` that the file has.
    pub fn place(&self, place: &str) -> String {
        let steps = steps_of(place);
        let depth = self.known_depth(&steps);
        let file = self.path.display();
        match locate::line_of(&self.text, &steps[..depth]) {
            Some(line) => format!("{file}:{line}: {place}"),
            None => format!("{file}: {place}"),
        }
    }

    /// Puts file and line before the key path that an error names.
    pub fn locate(&self, error: Error) -> Error {
        match error {
            Error::BadInput { place, what, remedy } => Error::BadInput {
                place: self.place(&place),
                what,
                remedy,
            },
            other => other,
        }
    }
}

/// Reads a file that stands alone into a type, as strictly as its schema is.
///
/// # Errors
/// The first thing that is wrong, with file, line and key.
pub fn read<T: DeserializeOwned>(path: &Path, schema: &Schema, example: &str) -> Result<(T, Document)> {
    let document = Document::read(path, example)?;
    let value = deserialize(&document.value, schema, example).map_err(|error| document.locate(error))?;
    Ok((value, document))
}

/// A checked value as a type; the error's place is the path of the key.
///
/// # Errors
/// What the schema forbids, and what only the type itself knows to forbid.
pub fn deserialize<T: DeserializeOwned>(value: &Value, schema: &Schema, example: &str) -> Result<T> {
    schema.check(value)?;
    serde_path_to_error::deserialize(value)
        .map_err(|error| Error::bad(error.path().to_string(), error.inner().to_string(), example))
}

/// The steps of a dotted path such as `models[1].name`.
pub fn steps_of(place: &str) -> Vec<Step<'_>> {
    let of_part = |part| {
        let (key, positions): (&str, &str) = match str::find(part, '[') {
            Some(at) => part.split_at(at),
            None => (part, ""),
        };
        let positions = positions.split('[').filter_map(|text| text.strip_suffix(']'));
        let positions = positions.filter_map(|text| text.parse().ok());
        std::iter::once(Step::Key(key)).chain(positions.map(Step::Position))
    };
    place.split('.').flat_map(of_part).collect()
}

/// How many steps of `path` lead somewhere in `values`.
pub fn known_depth(values: &Value, path: &[Step<'_>]) -> usize {
    let mut here = values;
    for (depth, step) in path.iter().enumerate() {
        let below = match step {
            Step::Key(key) => here.get(*key),
            Step::Position(position) => here.get(*position),
        };
        match below {
            Some(below) => here = below,
            None => return depth,
        }
    }
    path.len()
}
