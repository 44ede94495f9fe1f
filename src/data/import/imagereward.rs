//! ImageRewardDB (Xu et al. 2023, arXiv 2304.05977; `zai-org/ImageRewardDB`): a record per picture with `prompt_id`, `prompt`,
//! `image_path` and `rank`, 1 being the best; pictures of a prompt may share a rank. The records are in
//! `metadata-SPLIT.parquet`, or in the JSON files that come with the unpacked pictures, `images/SPLIT/SPLIT_1/SPLIT_1.json`.

use std::path::{Path, PathBuf};

use super::groups::{self, Ranked};
use super::listed::{About, Listed};
use super::records::{Fields, records};
use crate::data::shards::entries;
use crate::pairs::Choose;
use crate::{Error, Result};

const REMEDY: &str = "ImageRewardDB has records with prompt_id, prompt, image_path and rank.";
const SPLITS: [&str; 3] = ["train", "validation", "test"];

/// Opens a split; `path` may also be one of the files with records.
pub(super) fn open(path: &Path, split: &str, choose: Choose) -> Result<Listed> {
    let files = match path.is_file() {
        true => vec![path.to_path_buf()],
        false => lists(path, split)?,
    };
    if files.is_empty() {
        return Err(Error::bad(
            path.display().to_string(),
            format!("holds neither metadata-{split}.parquet nor JSON files in images/{split}"),
            "Name the folder of ImageRewardDB, with its pictures unpacked.",
        ));
    }
    let with_base = files.into_iter().map(|file| {
        let base = base(path, &file)?;
        Ok((file, base))
    });
    let about = About {
        salt: format!("imagereward {choose:?}"),
        remedy: REMEDY,
    };
    groups::open(path, with_base.collect::<Result<_>>()?, choose, about, read)
}

/// Splits whose records are there.
pub(super) fn splits(path: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for split in SPLITS {
        if path.is_dir() && !lists(path, split)?.is_empty() {
            found.push(split.to_owned());
        }
    }
    Ok(found)
}

/// Files with the records of a split.
fn lists(folder: &Path, split: &str) -> Result<Vec<PathBuf>> {
    let table = folder.join(format!("metadata-{split}.parquet"));
    if table.is_file() {
        return Ok(vec![table]);
    }
    for place in [folder.join("images").join(split), folder.join(split)] {
        if place.is_dir() {
            let mut files = Vec::new();
            for part in entries(&place)? {
                let inside = if part.is_dir() {
                    entries(&part)?
                } else {
                    vec![part]
                };
                files.extend(
                    inside
                        .into_iter()
                        .filter(|f| f.extension().is_some_and(|x| x == "json")),
                );
            }
            return Ok(files);
        }
    }
    Ok(Vec::new())
}

/// Where the paths of a file's records begin: the first folder above it, or its own, in which the first picture is.
fn base(path: &Path, file: &Path) -> Result<PathBuf> {
    let own = file.parent().unwrap_or(Path::new(""));
    for record in records(file)? {
        let Ok(fields) = record?.fields else { continue };
        if let Ok(name) = fields.text(&["image_path"]) {
            let found = own.ancestors().find(|folder| folder.join(name).is_file());
            return Ok(found
                .unwrap_or(if path.is_dir() { path } else { own })
                .to_path_buf());
        }
    }
    Ok(own.to_path_buf())
}

fn read(fields: &Fields) -> Result<Ranked<'_>, String> {
    let prompt = fields.text(&["prompt"])?;
    Ok(Ranked {
        prompt,
        group: fields.text(&["prompt_id"])?,
        image: fields.text(&["image_path"])?,
        score: -fields.number("rank")?,
    })
}
