//! Tables as text: tab-separated and comma-separated.

use std::path::Path;

use super::{Prompt, columns};
use crate::{Error, Result};

/// How cells are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Tabs, and nothing is quoted: PartiPrompts has prompts that begin with a quotation mark.
    Tabs,
    /// Commas; cells may be in double quotes.
    Commas,
}

pub(super) fn read(text: &str, path: &Path, format: Format) -> Result<Vec<Prompt>> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(if format == Format::Tabs { b'\t' } else { b',' })
        .quoting(format == Format::Commas)
        .from_reader(text.as_bytes());
    let damaged = |error: csv::Error| {
        Error::bad(
            path.display().to_string(),
            error.to_string(),
            "Give every line as many cells as the header has.",
        )
    };
    let header = reader.headers().map_err(damaged)?.clone();
    let names: Vec<&str> = header.iter().collect();
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let prompt = columns::require(path, &names)?;
    let mut prompts = Vec::new();
    for row in reader.records() {
        let row = row.map_err(damaged)?;
        let mut cells = names.iter().zip(row.iter()).enumerate();
        let fields = cells.by_ref().filter(|(column, _)| *column != prompt);
        let fields = fields.map(|(_, (name, cell))| (name.trim().to_owned(), cell.trim().to_owned()));
        prompts.push(Prompt {
            fields: fields.collect(),
            text: row[prompt].trim().to_owned(),
        });
    }
    Ok(prompts)
}
