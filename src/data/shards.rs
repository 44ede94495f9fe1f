//! Finding the parquet files of a split in a folder.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Parquet files of a split, sorted by name.
pub(super) fn find_shards(folder: &Path, split: &str) -> Result<Vec<PathBuf>> {
    let all = list_parquet(folder, Some(split))?;
    let chosen: Vec<PathBuf> = all
        .iter()
        .filter(|file| split_of(file) == split)
        .cloned()
        .collect();
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let mut others: Vec<&str> = all.iter().map(|file| split_of(file)).collect();
    others.dedup();
    let found = match others.is_empty() {
        true => "no parquet files at all".to_owned(),
        false => format!("these splits: {}", others.join(", ")),
    };
    Err(Error::bad(
        folder.display().to_string(),
        format!("holds no {split}-*.parquet; it has {found}"),
        "Set data.path to the folder with the parquet files, or data.split to one of its splits.",
    ))
}

/// Parquet files in the folder and its `data/`, and those in `SPLIT/`, sorted by name.
pub(super) fn list_parquet(folder: &Path, split: Option<&str>) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        let what = "is neither a folder nor a parquet file";
        return Err(Error::bad(folder.display().to_string(), what, "Check data.path."));
    }
    let mut files = Vec::new();
    let subfolders = ["data"].into_iter().chain(split).map(|name| folder.join(name));
    for place in std::iter::once(folder.to_path_buf()).chain(subfolders) {
        if !place.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&place).map_err(Error::io(&place, "list the folder"))? {
            let path = entry.map_err(Error::io(&place, "list the folder"))?.path();
            if path.extension().is_some_and(|x| x == "parquet") && path.is_file() {
                files.push(path);
            }
        }
    }
    files.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    Ok(files)
}

/// The split a file belongs to: its name up to the first dash, or a subfolder's name if the file's own is a
/// bare number.
pub(super) fn split_of(file: &Path) -> &str {
    let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    match stem.bytes().all(|b| b.is_ascii_digit()) {
        true => file
            .parent()
            .and_then(Path::file_name)
            .and_then(|s| s.to_str())
            .unwrap_or_default(),
        false => stem.split('-').next().unwrap_or_default(),
    }
}
