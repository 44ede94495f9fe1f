//! Hugging Face's `imagefolder`: pictures and a `metadata.jsonl` (or `.csv`) beside them, in the folder itself or one a split.
//!
//! Two forms are preference data: a record a pair, with `chosen_file_name`, `rejected_file_name` and `prompt`; or a record a
//! picture, with `file_name`, `prompt`, and `score` (higher is better) or `rank` (lower is better).

use std::path::{Path, PathBuf};

use super::ONLY_SPLIT;
use super::groups::{self, Ranked};
use super::list::{self, Comparison, Format};
use super::listed::{About, Listed};
use super::records::{Fields, records};
use crate::data::pair::Preference;
use crate::pairs::Choose;
use crate::{Error, Result};

const REMEDY: &str =
    "Give every line prompt, and chosen_file_name and rejected_file_name, or file_name and a score or rank.";
const PROMPT: [&str; 3] = ["prompt", "caption", "text"];

/// The list in a folder.
pub(super) fn metadata(folder: &Path) -> Option<PathBuf> {
    let names = ["metadata.jsonl", "metadata.csv"];
    names
        .map(|name| folder.join(name))
        .into_iter()
        .find(|path| path.is_file())
}

/// Opens a folder, or the one in it that is called as the split; `path` may also be the list.
pub(super) fn open(path: &Path, split: &str, choose: Choose) -> Result<Listed> {
    let own = || metadata(path).filter(|_| split == ONLY_SPLIT);
    let below = || metadata(&path.join(split)).or_else(|| metadata(&path.join("data").join(split)));
    let file = match path.is_file() {
        true => Some(path.to_path_buf()),
        false => below().or_else(own),
    };
    let Some(file) = file else {
        return Err(Error::bad(
            path.display().to_string(),
            format!("holds no metadata.jsonl, and no {split}/metadata.jsonl"),
            "Name the folder with the list, or a split that has one.",
        ));
    };
    if !has_scores(&file)? {
        let format = Format {
            name: "imagefolder",
            remedy: REMEDY,
            choose,
            read: pair,
        };
        return list::open(path, vec![file], split, format);
    }
    let base = file.parent().unwrap_or(Path::new("")).to_path_buf();
    let about = About {
        salt: format!("imagefolder {choose:?}"),
        remedy: REMEDY,
    };
    groups::open(path, vec![(file, base)], choose, about, ranked)
}

/// Whether the first record is of a picture with a score.
fn has_scores(file: &Path) -> Result<bool> {
    match records(file)?.next() {
        Some(record) => Ok(record?.fields.is_ok_and(|f| f.has("file_name"))),
        None => Ok(false),
    }
}

fn pair(fields: &Fields, _: Choose) -> Result<Vec<Comparison<'_>>, String> {
    Ok(vec![Comparison {
        caption: fields.text(&PROMPT)?,
        images: [
            fields.text(&["chosen_file_name"])?,
            fields.text(&["rejected_file_name"])?,
        ],
        preference: Some(Preference::First),
        scores: None,
    }])
}

fn ranked(fields: &Fields) -> Result<Ranked<'_>, String> {
    let prompt = fields.text(&PROMPT)?;
    let score = match fields.number_if_any("score")? {
        Some(score) => score,
        None if fields.has("rank") => -fields.number("rank")?,
        None => return Err("lacks score or rank".into()),
    };
    Ok(Ranked {
        prompt,
        group: prompt,
        image: fields.text(&["file_name"])?,
        score,
    })
}
