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

/// What is missing of a set of files, by the names of those that are there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gap {
    /// The first that is missing; what follows the count, such as a fingerprint, is not known and is `*` where files differ in it.
    pub first: String,
    /// How many are missing.
    pub missing: usize,
    /// How many there should be.
    pub count: usize,
}

/// Sets of files such as `train-00003-of-00014.parquet` that are not whole. Numbers begin with 0 or 1.
pub(super) fn gaps<'a>(files: impl Iterator<Item = &'a Path>) -> Vec<Gap> {
    let mut sets: BTreeMap<Set, Found> = BTreeMap::new();
    for file in files {
        if let Some((set, number, behind)) = numbered(file) {
            let found = sets.entry(set).or_default();
            found.numbers.insert(number.parse().unwrap_or(usize::MAX));
            let shorter = found.digits.is_none_or(|digits| number.len() < digits);
            found.digits = if shorter { Some(number.len()) } else { found.digits };
            found.behind.insert(behind);
        }
    }
    sets.iter().filter_map(|(set, found)| set.gap(found)).collect()
}

/// Files that are one set by their names.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Set {
    folder: PathBuf,
    before: String,
    count: String,
}

#[derive(Default)]
struct Found {
    numbers: BTreeSet<usize>,
    /// Of the shortest number.
    digits: Option<usize>,
    behind: BTreeSet<String>,
}

impl Set {
    fn gap(&self, found: &Found) -> Option<Gap> {
        let count: usize = self.count.parse().ok()?;
        let from = usize::from(!found.numbers.contains(&0) && found.numbers.contains(&count));
        let there = found.numbers.range(from..from.saturating_add(count)).count();
        if there >= count {
            return None;
        }
        let number = (from..).find(|number| !found.numbers.contains(number))?;
        let behind = match found.behind.iter().collect::<Vec<_>>()[..] {
            [one] => one,
            _ => "*",
        };
        let (before, digits, written) = (&self.before, found.digits.unwrap_or(0), &self.count);
        Some(Gap {
            first: format!("{before}{number:0digits$}-of-{written}{behind}"),
            missing: count - there,
            count,
        })
    }
}

/// The set that a file belongs to, its number in it, and what stands behind the count.
fn numbered(file: &Path) -> Option<(Set, &str, String)> {
    let (before, behind) = file.file_name()?.to_str()?.rsplit_once("-of-")?;
    let name = before.trim_end_matches(|c: char| c.is_ascii_digit());
    let ending = behind.trim_start_matches(|c: char| c.is_ascii_digit());
    let (number, count) = (&before[name.len()..], &behind[..behind.len() - ending.len()]);
    let set = Set {
        folder: file.parent()?.to_path_buf(),
        before: name.to_owned(),
        count: count.to_owned(),
    };
    let is_number = !number.is_empty() && count.parse::<usize>().is_ok_and(|count| count > 0);
    is_number.then(|| (set, number, ending.to_owned()))
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

    /// The first file that is missing of each set, and how many are.
    fn absent(names: &[&str]) -> Vec<(String, usize)> {
        let files: Vec<PathBuf> = names.iter().map(|name| Path::new("set").join(name)).collect();
        let gaps = gaps(files.iter().map(PathBuf::as_path));
        gaps.into_iter().map(|gap| (gap.first, gap.missing)).collect()
    }

    #[test]
    fn names_tell_which_files_are_missing() {
        let whole = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"];
        assert_eq!(absent(&whole), []);
        assert_eq!(absent(&whole[1..]), [("train-00000-of-00002.parquet".into(), 1)]);
        let several = ["test-0001-of-3.tar", "train-00000-of-00002.parquet"];
        let found = [
            ("test-0000-of-3.tar".into(), 2),
            ("train-00001-of-00002.parquet".into(), 1),
        ];
        assert_eq!(absent(&several), found);
        assert_eq!(
            absent(&["x-0-of-99999999999.tar"]),
            [("x-1-of-99999999999.tar".into(), 99_999_999_998)]
        );
    }

    /// As `push_to_hub` wrote Pick-a-Pic: every file with a fingerprint of its own.
    #[test]
    fn fingerprints_do_not_part_a_set() {
        let whole = [
            "train-00000-of-00003-b66a.parquet",
            "train-00001-of-00003-c7b3.parquet",
            "train-00002-of-00003-e4f5.parquet",
        ];
        assert_eq!(absent(&whole), []);
        assert_eq!(
            absent(&[whole[0], whole[2]]),
            [("train-00001-of-00003*".into(), 1)]
        );
    }

    #[test]
    fn sets_may_begin_with_one_and_numbers_need_no_zeros() {
        assert_eq!(absent(&["p-1-of-2", "p-2-of-2"]), []);
        let many: Vec<String> = (1..=12).map(|number| format!("p-{number}-of-12")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(absent(&many), []);
        assert_eq!(
            absent(&many[..11]),
            [("p-0-of-12".into(), 1)],
            "it may have begun with 0"
        );
    }

    #[test]
    fn other_names_say_nothing() {
        let names = [
            "pairs.parquet",
            "one-of-us.parquet",
            "train-x-of-9.parquet",
            "画像-of-2",
            "café-of-the-day.jsonl",
            "-of-",
            "a-1-of-0",
        ];
        assert_eq!(absent(&names), []);
        let twice = ["a-of-b-00000-of-00002.parquet"];
        assert_eq!(absent(&twice), [("a-of-b-00001-of-00002.parquet".into(), 1)]);
        assert_eq!(
            absent(&["画像00000-of-00002.parquet"]),
            [("画像00001-of-00002.parquet".into(), 1)]
        );
    }
}
