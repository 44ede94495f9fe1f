//! JSON configs beside a model: typed reading with complaints that name the file and the key.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{Error, Result, placeholder};

/// A JSON object in a file; every complaint about it names the file and the key.
#[derive(Debug, Clone)]
pub struct JsonFile {
    path: PathBuf,
    entries: Map<String, Value>,
}

impl JsonFile {
    /// Reads a file that holds one JSON object.
    ///
    /// # Errors
    /// The file cannot be read or holds something else.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let text = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        placeholder::refuse(&path, text.as_bytes())?;
        let remedy = "Copy the file anew from where the model came from.";
        match serde_json::from_str(&text) {
            Ok(Value::Object(entries)) => Ok(Self { path, entries }),
            Ok(_) => Err(Error::bad(
                path.display().to_string(),
                "is not a JSON object",
                remedy,
            )),
            Err(e) => Err(Error::bad(
                path.display().to_string(),
                format!("is not JSON: {e}"),
                remedy,
            )),
        }
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key; absent and `null` are the same.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).filter(|v| !v.is_null())
    }

    /// A number.
    ///
    /// # Errors
    /// The key is absent or holds something else.
    pub fn number(&self, key: &str) -> Result<f64> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A string.
    ///
    /// # Errors
    /// The key is absent or holds something else.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.typed(key, "a string", Value::as_str)
    }

    fn typed<'a, T>(&'a self, key: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<T> {
        let what = match self.get(key) {
            None => format!("has no \"{key}\", which must be {kind}"),
            Some(value) => match read(value) {
                Some(typed) => return Ok(typed),
                None => format!("\"{key}\" is {value}, which is not {kind}"),
            },
        };
        let remedy = "Compare with the original model's file and mend it.";
        Err(Error::bad(self.path.display().to_string(), what, remedy))
    }
}
