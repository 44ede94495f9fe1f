//! Prompt files: what images are generated from, with the columns that results are grouped by.
//!
//! | name | content |
//! |---|---|
//! | `.txt` | a prompt a line; blank lines are skipped |
//! | `.tsv` | a header line and tabs, as PartiPrompts; quotes are part of the text |
//! | `.csv` | a header line and commas, quoted where needed |
//! | `.json` | a list of strings or objects, as HPSv2's benchmark; or such lists by name: `{"anime": […], …}` |
//! | `.jsonl` | an object or a string a line, as GenEval |
//! | `.parquet` | a string column, as Pick-a-Pic |
//! | a folder | every such file in the order of their names |
//!
//! Where there are columns, the prompt is in the first one called `prompt`, `prompts`, `caption` or `text`, in any
//! case. All others that hold plain values become [`Prompt::fields`]. Lists by name and files of a folder are told
//! apart by a field of their own, [`SET_FIELD`].

mod columns;
mod delimited;
mod json;
mod parquet;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The field that names the list or the file a prompt is from, where there are several.
pub const SET_FIELD: &str = "set";

const EXTENSIONS: [&str; 6] = ["txt", "tsv", "csv", "json", "jsonl", "parquet"];

/// A prompt and what else its file says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// What the image is to show.
    pub text: String,
    /// Further columns, in the file's order: `Category`, `style`, …
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub fields: IndexMap<String, String>,
}

impl Prompt {
    /// A prompt alone.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            fields: IndexMap::new(),
        }
    }

    fn in_set(mut self, name: &str) -> Self {
        self.fields
            .entry(SET_FIELD.to_owned())
            .or_insert_with(|| name.to_owned());
        self
    }
}

/// Reads a prompt file or a folder of them. Repeated prompts are kept: benchmarks have some.
///
/// # Errors
/// The file cannot be read, is of an unknown kind, lacks a prompt column, or holds no prompt.
pub fn read(path: &Path) -> Result<Vec<Prompt>> {
    let prompts = if path.is_dir() {
        read_folder(path)?
    } else {
        read_file(path)?
    };
    if prompts.is_empty() {
        return Err(Error::bad(
            path.display().to_string(),
            "holds no prompt",
            "Write a prompt a line, or choose another file.",
        ));
    }
    Ok(prompts)
}

fn read_folder(folder: &Path) -> Result<Vec<Prompt>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list the folder"))? {
        let path = entry.map_err(Error::io(folder, "list the folder"))?.path();
        if path.is_file() && EXTENSIONS.contains(&extension(&path).as_str()) {
            files.push(path);
        }
    }
    files.sort();
    let mut prompts = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        prompts.extend(read_file(&file)?.into_iter().map(|prompt| prompt.in_set(&name)));
    }
    Ok(prompts)
}

fn read_file(path: &Path) -> Result<Vec<Prompt>> {
    match extension(path).as_str() {
        "txt" => Ok(text(path)?
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(Prompt::new)
            .collect()),
        "tsv" => delimited::read(&text(path)?, path, delimited::Format::Tabs),
        "csv" => delimited::read(&text(path)?, path, delimited::Format::Commas),
        "json" => json::read(&text(path)?, path),
        "jsonl" => json::read_lines(&text(path)?, path),
        "parquet" => parquet::read(path),
        // Whether the file is there matters more than its name.
        _ => fs::metadata(path).map_err(Error::io(path, "read")).and_then(|_| {
            Err(Error::bad(
                path.display().to_string(),
                "is not a kind of prompt file that is known by its name",
                format!("The name must end in one of .{}.", EXTENSIONS.join(", .")),
            ))
        }),
    }
}

fn extension(path: &Path) -> String {
    path.extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase()
}

/// The file as text, without a byte-order mark.
fn text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        Error::bad(
            format!("{}, line {}", path.display(), line + 1),
            "is not UTF-8",
            "Save the file as UTF-8.",
        )
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}
