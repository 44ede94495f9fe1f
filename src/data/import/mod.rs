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
mod rated;
mod records;
#[cfg(test)]
mod tests;
mod webdataset;

use std::path::{Path, PathBuf};

use super::pair::PairSource;
use super::pickapic::{Images, PickAPic};
use super::shards::{self, PARQUET};
use crate::Result;
use crate::config::data::DataKind;
use crate::pairs::Choose;

pub use detect::detect;

/// The whole of a set that has no splits.
const ONLY_SPLIT: &str = "train";

/// Opens a split of a data set. Sets without splits have `train` alone.
///
/// # Errors
/// There is no such split, or its files are not what the kind says.
pub fn open(kind: DataKind, path: &Path, split: &str, choose: Choose) -> Result<Box<dyn PairSource>> {
    let parquet =
        |images| -> Result<Box<dyn PairSource>> { Ok(Box::new(PickAPic::open(path, split, images)?)) };
    let files = |extensions: &[&str]| match path.is_file() {
        true => Ok(vec![path.to_path_buf()]),
        false => shards::find(path, split, extensions),
    };
    let listed = match kind {
        DataKind::Pickapic => return parquet(Images::Pairs),
        DataKind::ChosenRejected => return parquet(Images::Chosen),
        DataKind::Rated if !rated::is_listed(path, split)? => return parquet(Images::Single),
        DataKind::Rated => list::open(path, files(&rated::EXTENSIONS)?, split, rated::FORMAT)?,
        DataKind::Hpdv2 => list::open(path, files(&JSON)?, split, hpdv2::format(choose))?,
        DataKind::Hpdv3 => list::open(path, files(&JSON)?, split, hpdv3::FORMAT)?,
        DataKind::Jsonl => list::open(path, files(&JSON)?, split, jsonl::format(choose))?,
        DataKind::Imagereward => imagereward::open(path, split, choose)?,
        DataKind::Imagefolder => imagefolder::open(path, split, choose)?,
        DataKind::Folders => folders::open(path, split)?,
        DataKind::Webdataset => webdataset::open(path, files(&webdataset::EXTENSIONS)?)?,
    };
    Ok(Box::new(listed))
}

/// Splits that a data set has, by name; a single file, or a folder that is not divided, has none.
///
/// # Errors
/// The folder cannot be listed.
pub fn splits(kind: DataKind, path: &Path) -> Result<Vec<String>> {
    match kind {
        DataKind::Pickapic | DataKind::ChosenRejected => shards::splits(path, &PARQUET),
        DataKind::Rated => {
            let parquet = shards::splits(path, &PARQUET)?;
            match parquet.is_empty() {
                true => shards::splits(path, &rated::EXTENSIONS),
                false => Ok(parquet),
            }
        }
        DataKind::Hpdv2 | DataKind::Hpdv3 | DataKind::Jsonl => shards::splits(path, &JSON),
        DataKind::Webdataset => shards::splits(path, &webdataset::EXTENSIONS),
        DataKind::Imagereward => imagereward::splits(path),
        DataKind::Imagefolder => subfolders(path, |folder| imagefolder::metadata(folder).is_some()),
        DataKind::Folders => subfolders(path, folders::is_one),
    }
}

/// How the names of lists end.
const JSON: [&str; 3] = ["json", "jsonl", "ndjson"];

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
