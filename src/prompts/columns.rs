//! Which column is the prompt.

use std::path::Path;

use crate::{Error, Result};

/// Names of a prompt column, the likeliest first.
const NAMES: [&str; 4] = ["prompt", "prompts", "caption", "text"];

/// The position of the prompt among column names.
pub(super) fn prompt_column(names: &[&str]) -> Option<usize> {
    NAMES.iter().find_map(|known| {
        names
            .iter()
            .position(|name| name.trim().eq_ignore_ascii_case(known))
    })
}

/// The complaint about columns without a prompt.
pub(super) fn missing(place: impl Into<String>, names: &[&str]) -> Error {
    let found = match names {
        [] => "no column at all".to_owned(),
        _ => format!("only {}", names.join(", ")),
    };
    Error::bad(
        place,
        format!("has no column with prompts, {found}"),
        format!("Name the column {}.", NAMES.join(", or ")),
    )
}

/// [`prompt_column`] of a file that must have one.
pub(super) fn require(path: &Path, names: &[&str]) -> Result<usize> {
    prompt_column(names).ok_or_else(|| missing(path.display().to_string(), names))
}
