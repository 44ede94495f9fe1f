//! Finding the files of a split in a folder, and telling whether files changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::model_folder::ContentHash;
use crate::{Error, Result};

/// How the names of parquet files end.
pub(super) const PARQUET: [&str; 1] = ["parquet"];

/// Files of a split whose names end so, sorted by name: `SPLIT-*.EXT` or `SPLIT.EXT` in the folder or in its `data/`, and
/// those in `SPLIT/`.
///
/// # Errors
/// There are none; the message lists the splits that are there.
pub(super) fn find(folder: &Path, split: &str, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let all = list(folder, Some(split), extensions)?;
    let chosen: Vec<PathBuf> = all
        .iter()
        .filter(|file| split_of(file) == split || is_in(file, folder, split))
        .cloned()
        .collect();
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let others: BTreeSet<&str> = all.iter().map(|file| split_of(file)).collect();
    let ending = extensions.join(" or ");
    let found = match others.is_empty() {
        true => format!("no {ending} files at all"),
        false => format!(
            "these splits: {}",
            others.into_iter().collect::<Vec<_>>().join(", ")
        ),
    };
    Err(Error::bad(
        folder.display().to_string(),
        format!("holds no {split}-*.{ending}; it has {found}"),
        "Name the folder with the files, or one of its splits, or a single file (data.path, data.split, data.kind).",
    ))
}

/// Files that names such as `train-00003-of-00014.parquet` say there are, beside those given, in the order of their names.
pub(super) fn missing<'a>(files: impl Iterator<Item = &'a Path>) -> Vec<PathBuf> {
    let mut sets: BTreeMap<Numbered, BTreeSet<usize>> = BTreeMap::new();
    for (set, number) in files.filter_map(numbered) {
        sets.entry(set).or_default().insert(number);
    }
    let gaps = sets.iter().flat_map(|(set, there)| {
        let absent = (0..set.count).filter(|number| !there.contains(number));
        absent.map(|number| set.file(number))
    });
    gaps.collect()
}

/// Files that are one set by their names.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Numbered {
    folder: PathBuf,
    /// What stands before the number, and behind the count.
    around: [String; 2],
    /// Digits of the number and of the count.
    digits: [usize; 2],
    count: usize,
}

impl Numbered {
    fn file(&self, number: usize) -> PathBuf {
        let ([before, behind], [wide, wide_count]) = (&self.around, self.digits);
        let count = self.count;
        self.folder
            .join(format!("{before}{number:0wide$}-of-{count:0wide_count$}{behind}"))
    }
}

/// The set that a file belongs to, and its number in it, counted from 0. Sets of absurd counts are none.
fn numbered(file: &Path) -> Option<(Numbered, usize)> {
    const MOST: usize = 100_000;
    let (before, behind) = file.file_name()?.to_str()?.split_once("-of-")?;
    let end = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, ending) = behind.split_at(end(behind));
    let start = before.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    let (name, number) = before.split_at(start);
    let set = Numbered {
        folder: file.parent()?.to_path_buf(),
        around: [name.to_owned(), ending.to_owned()],
        digits: [number.len(), count.len()],
        count: count.parse().ok().filter(|count| *count <= MOST)?,
    };
    Some((set, number.parse().ok()?))
}

/// Names of the splits in a folder, sorted; of a single file none.
///
/// # Errors
/// The folder cannot be listed.
pub(super) fn splits(folder: &Path, extensions: &[&str]) -> Result<Vec<String>> {
    if folder.is_file() {
        return Ok(Vec::new());
    }
    let mut found: BTreeSet<String> = list(folder, None, extensions)?
        .iter()
        .map(|file| split_of(file).to_owned())
        .collect();
    for path in entries(folder)? {
        if path.is_dir() && !files_in(&path, extensions)?.is_empty() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name != DATA {
                found.insert(name.into_owned());
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// Subfolder in which Hugging Face keeps the files of all splits.
const DATA: &str = "data";

/// Files in the folder and its `data/`, and those in `SPLIT/`, sorted by name.
fn list(folder: &Path, split: Option<&str>, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        let what = "is neither a folder nor a file";
        return Err(Error::bad(folder.display().to_string(), what, "Check the path."));
    }
    let mut files = files_in(folder, extensions)?;
    for name in [DATA].into_iter().chain(split) {
        let place = folder.join(name);
        if place.is_dir() {
            files.extend(files_in(&place, extensions)?);
        }
    }
    files.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    files.dedup();
    Ok(files)
}

fn files_in(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let fits = |path: &PathBuf| {
        let extension = path.extension().and_then(|x| x.to_str());
        extension.is_some_and(|x| extensions.contains(&x)) && path.is_file()
    };
    Ok(entries(folder)?.into_iter().filter(fits).collect())
}

/// Everything in a folder, sorted by name.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list the folder"))? {
        paths.push(entry.map_err(Error::io(folder, "list the folder"))?.path());
    }
    paths.sort();
    Ok(paths)
}

fn is_in(file: &Path, folder: &Path, split: &str) -> bool {
    split != DATA && file.parent() == Some(&folder.join(split))
}

/// The split a file belongs to: its name up to the first dash, or a subfolder's name if the file's own is a
/// bare number.
fn split_of(file: &Path) -> &str {
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

/// Hash over names, sizes and times of files, and over `salt`: whatever else shapes what is read from them.
///
/// # Errors
/// A file has gone.
pub(super) fn stamp<'a>(salt: &str, files: impl Iterator<Item = &'a Path>) -> Result<ContentHash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(salt.as_bytes());
    for path in files {
        let metadata = fs::metadata(path).map_err(Error::io(path, "look at"))?;
        let modified = metadata
            .modified()
            .map_err(Error::io(path, "read the modification time of"))?;
        let age = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        hasher
            .update(path.file_name().unwrap_or_default().as_encoded_bytes())
            .update(&[0]);
        hasher
            .update(&metadata.len().to_le_bytes())
            .update(&age.as_nanos().to_le_bytes());
    }
    Ok(ContentHash(*hasher.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_which_files_are_missing() {
        let absent = |names: &[&str]| -> Vec<String> {
            let files: Vec<PathBuf> = names.iter().map(|name| Path::new("set").join(name)).collect();
            let missing = missing(files.iter().map(PathBuf::as_path));
            missing.iter().map(|path| path.display().to_string()).collect()
        };
        let whole = [
            "train-00000-of-00002-8aa1.parquet",
            "train-00001-of-00002-8aa1.parquet",
        ];
        assert!(absent(&whole).is_empty());
        assert_eq!(absent(&whole[1..]), ["set/train-00000-of-00002-8aa1.parquet"]);
        let others = [
            "test-0001-of-3.tar",
            "pairs.parquet",
            "one-of-us.parquet",
            "train-x-of-9.parquet",
        ];
        assert_eq!(
            absent(&others),
            ["set/test-0000-of-3.tar", "set/test-0002-of-3.tar"]
        );
        assert!(absent(&["train-00000-of-99999999.parquet"]).is_empty());
    }
}
