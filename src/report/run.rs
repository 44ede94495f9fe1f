//! The folder of a training run ([`crate::train::RunFolder`]), finished or not.

use std::path::Path;

use serde_json::Value;

use super::metrics::{Column, Metrics};
use crate::{Error, Result};

/// What a run left.
#[derive(Debug)]
pub struct Run {
    /// What it is called in the report.
    pub name: String,
    pub metrics: Metrics,
    /// `summary.json`; a run that has not finished has none.
    pub summary: Option<Value>,
    /// `manifest.json`.
    pub manifest: Option<Value>,
    /// The resolved configuration, as YAML.
    pub config: Option<String>,
    /// What was found wanting.
    pub notes: Vec<String>,
}

impl Run {
    /// Whether the folder holds a run.
    pub fn is_at(folder: &Path) -> bool {
        folder.join("metrics.jsonl").is_file()
    }

    /// Reads the folder.
    ///
    /// # Errors
    /// One of the files cannot be read or is damaged.
    pub fn read(folder: &Path, name: String) -> Result<Self> {
        let metrics = Metrics::read(&folder.join("metrics.jsonl"))?;
        let summary = json(&folder.join("summary.json"))?;
        let mut notes = Vec::new();
        if metrics.columns.is_empty() {
            notes.push(format!("{name}: the log holds no step yet."));
        }
        if metrics.torn {
            notes.push(format!(
                "{name}: the last line of the log is cut off and left out."
            ));
        }
        if summary.is_none() {
            notes.push(format!(
                "{name}: there is no summary.json; the run has not finished, or was stopped at step {}.",
                metrics.steps
            ));
        }
        Ok(Self {
            name,
            metrics,
            summary,
            manifest: json(&folder.join("manifest.json"))?,
            config: text(&folder.join("config.yaml"))?,
            notes,
        })
    }

    /// A quantity that is measured at evaluations, with its value before the first step from the summary.
    pub fn evaluated(&self, key: &str) -> Column {
        let initial = ["initial", "initial_pictures"]
            .into_iter()
            .find_map(|part| self.fact(&[part, key]).and_then(Value::as_f64));
        let before = initial.map(|value| (0.0, value));
        let points = self.metrics.column(key);
        match points.first() {
            Some(first) if first.0 > 0.0 => before.into_iter().chain(points.iter().copied()).collect(),
            _ => points.to_vec(),
        }
    }

    /// A value of the summary.
    pub fn fact(&self, path: &[&str]) -> Option<&Value> {
        look_up(self.summary.as_ref()?, path)
    }

    /// The configuration's values by dotted key.
    pub fn settings(&self) -> Vec<(String, String)> {
        let parsed = self.config.as_deref().map(serde_yaml::from_str::<Value>);
        let mut flat = Vec::new();
        if let Some(Ok(value)) = parsed {
            flatten(&value, String::new(), &mut flat);
        }
        flat
    }
}

/// The value at a path of keys, unless it is `null`.
pub fn look_up<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    let found = path.iter().try_fold(value, |value, key| value.get(key))?;
    (!found.is_null()).then_some(found)
}

/// Adds every value under its dotted key; lists are one value.
pub fn flatten(value: &Value, key: String, flat: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                flatten(value, key, flat);
            }
        }
        Value::String(text) => flat.push((key, text.clone())),
        other => flat.push((key, other.to_string())),
    }
}

/// A file's text, if there is such a file.
pub fn text(path: &Path) -> Result<Option<String>> {
    match path.exists() {
        true => std::fs::read_to_string(path)
            .map(Some)
            .map_err(Error::io(path, "read")),
        false => Ok(None),
    }
}

/// A JSON file, if there is such a file.
pub fn json(path: &Path) -> Result<Option<Value>> {
    let parse = |text: String| {
        serde_json::from_str(&text).map_err(|error| {
            let place = format!("{}:{}", path.display(), error.line());
            Error::bad(
                place,
                format!("is not JSON: {error}"),
                "Mend the file, or make it anew.",
            )
        })
    };
    text(path)?.map(parse).transpose()
}
