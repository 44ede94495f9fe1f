//! Data sets in other forms than Pick-a-Pic's parquet files, one file each. `docs/data.md` shows what they look like.
//!
//! ```text
//! JSON, JSON lines, CSV, parquet ─► records ─► one function per format ─► comparisons by file name ─┐
//! ranked pictures ───────────────► groups by prompt ─► Choose ──────────────────────────────────────┤─► Listed ─► rows
//! folders, tar archives ─────────► comparisons by place ────────────────────────────────────────────┘
//! ```
//!
//! Nothing here holds a picture: rows say where it is, and whoever needs it reads it ([`super::Picture`]).

mod detect;
mod folders;
mod groups;
mod hpdv2;
mod hpdv3;
mod imagefolder;
mod imagereward;
mod json_items;
mod jsonl;
mod list;
mod listed;
mod parquet_pairs;
#[cfg(test)]
mod parquet_tests;
mod rated;
mod records;
#[cfg(test)]
mod tests;
mod webdataset;

use std::path::{Path, PathBuf};

use super::pair::PairSource;
use super::shards::{self, PARQUET};
use crate::Result;
use crate::config::data::DataKind;
use crate::pairs::Choose;

pub use detect::detect;
use detect::is_list_of;
use list::Format;
use listed::Listed;
pub use parquet_pairs::{Images, ParquetPairs};
use records::LISTS;

/// The whole of a set that has no splits.
const ONLY_SPLIT: &str = "train";

/// Opens a split of a data set. Sets without splits have `train` alone.
///
/// # Errors
/// There is no such split, or its files are not what the kind says.
pub fn open(kind: DataKind, path: &Path, split: &str, choose: Choose) -> Result<Box<dyn PairSource>> {
    let parquet =
        |images| -> Result<Box<dyn PairSource>> { Ok(Box::new(ParquetPairs::open(path, split, images)?)) };
    let files = |extensions: &[&str]| match path.is_file() {
        true => Ok(vec![path.to_path_buf()]),
        false => shards::find(path, split, extensions),
    };
    let lists = |format: Format| -> Result<Listed> {
        let all = files(&LISTS)?;
        let own: Vec<PathBuf> = all
            .iter()
            .filter(|f| is_list_of(f, kind, &format))
            .cloned()
            .collect();
        // If none of them is of the kind, what is wrong with the first is worth telling.
        list::open(path, if own.is_empty() { all } else { own }, split, format)
    };
    let listed = match kind {
        DataKind::Pickapic => return parquet(Images::Pairs),
        DataKind::ChosenRejected => return parquet(Images::Chosen),
        DataKind::Rated if !rated::is_listed(path, split)? => return parquet(Images::Single),
        DataKind::Rated | DataKind::Hpdv2 | DataKind::Hpdv3 | DataKind::Jsonl => lists(format(kind, choose))?,
        DataKind::Imagereward => imagereward::open(path, split, choose)?,
        DataKind::Imagefolder => imagefolder::open(path, split, choose)?,
        DataKind::Folders => folders::open(path, split)?,
        DataKind::Webdataset => webdataset::open(path, files(&webdataset::EXTENSIONS)?)?,
    };
    Ok(Box::new(listed))
}

/// How lists of this kind are read.
fn format(kind: DataKind, choose: Choose) -> Format {
    match kind {
        DataKind::Hpdv2 => hpdv2::format(choose),
        DataKind::Hpdv3 => hpdv3::FORMAT,
        DataKind::Rated => rated::FORMAT,
        _ => jsonl::format(choose),
    }
}

/// Splits of a data set.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Splits {
    /// Their names; a single file, or a folder that is not divided, has none.
    pub names: Vec<String>,
    /// Lists of other things that lie between those of the data set.
    pub passed_over: Vec<PathBuf>,
}

/// Splits that a data set has.
///
/// # Errors
/// The folder cannot be listed.
pub fn splits(kind: DataKind, path: &Path) -> Result<Splits> {
    let names = match kind {
        DataKind::Pickapic | DataKind::ChosenRejected => shards::splits(path, &PARQUET)?,
        DataKind::Rated => match shards::splits(path, &PARQUET)? {
            parquet if parquet.is_empty() => return listed_splits(kind, path),
            parquet => parquet,
        },
        DataKind::Hpdv2 | DataKind::Hpdv3 | DataKind::Jsonl => return listed_splits(kind, path),
        DataKind::Webdataset => shards::splits(path, &webdataset::EXTENSIONS)?,
        DataKind::Imagereward => imagereward::splits(path)?,
        DataKind::Imagefolder => subfolders(path, |folder| imagefolder::metadata(folder).is_some())?,
        DataKind::Folders => subfolders(path, folders::is_one)?,
    };
    Ok(Splits {
        names,
        passed_over: Vec::new(),
    })
}

/// Splits of which at least one list is of the kind.
fn listed_splits(kind: DataKind, path: &Path) -> Result<Splits> {
    let all = shards::splits(path, &LISTS)?;
    // Only whether records are of the kind is asked for here.
    let format = format(kind, Choose::All);
    let mut found = Splits::default();
    for name in &all {
        let files = shards::find(path, name, &LISTS)?;
        let (own, other): (Vec<PathBuf>, Vec<PathBuf>) = files
            .into_iter()
            .partition(|file| is_list_of(file, kind, &format));
        if !own.is_empty() {
            found.names.push(name.clone());
        }
        found.passed_over.extend(other);
    }
    found.passed_over.dedup();
    match found.names.is_empty() {
        // What is wrong with them is told when they are opened.
        true => Ok(Splits {
            names: all,
            passed_over: Vec::new(),
        }),
        false => Ok(found),
    }
}

/// Names of the subfolders that are data sets themselves; none if the folder is one.
fn subfolders(path: &Path, is_one: impl Fn(&Path) -> bool) -> Result<Vec<String>> {
    if !path.is_dir() || is_one(path) {
        return Ok(Vec::new());
    }
    let below = shards::entries(path)?;
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(below
        .iter()
        .filter(|path| path.is_dir() && is_one(path))
        .filter_map(name)
        .collect())
}
