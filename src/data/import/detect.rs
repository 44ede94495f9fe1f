//! Which kind of data set lies at a path, by its names and by the columns of its first file.

use std::path::{Path, PathBuf};

use super::list::Format;
use super::records::{Fields, LISTS, records};
use super::{folders, imagefolder};
use crate::config::data::DataKind;
use crate::data::parquet_file;
use crate::data::shards::entries;
use crate::{Error, Result};

/// Finds out what a file or folder is.
///
/// # Errors
/// There is nothing, or nothing that is known.
pub fn detect(path: &Path) -> Result<DataKind> {
    let found = match path {
        path if path.is_file() => of_file(path)?,
        path if path.is_dir() => of_folder(path)?,
        _ => {
            let what = "is neither a file nor a folder";
            return Err(Error::bad(path.display().to_string(), what, "Check the path."));
        }
    };
    found.ok_or_else(|| {
        Error::bad(
            path.display().to_string(),
            "is no data set of a kind that is known by its look",
            "Name its kind (--from); docs/data.md shows what each looks like.",
        )
    })
}

fn of_folder(folder: &Path) -> Result<Option<DataKind>> {
    if folders::is_one(folder) {
        return Ok(Some(DataKind::Folders));
    }
    if imagefolder::metadata(folder).is_some() {
        return Ok(Some(DataKind::Imagefolder));
    }
    let (below, files): (Vec<PathBuf>, Vec<PathBuf>) =
        entries(folder)?.into_iter().partition(|path| path.is_dir());
    for file in &files {
        // Other lists may lie beside those of the data set, such as prompts.
        if let Ok(Some(kind)) = of_file(file) {
            return Ok(Some(kind));
        }
    }
    for folder in below {
        if let Some(kind) = of_folder(&folder)? {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

fn of_file(path: &Path) -> Result<Option<DataKind>> {
    match path.extension().and_then(|x| x.to_str()) {
        Some("tar") => Ok(Some(DataKind::Webdataset)),
        Some("parquet") => {
            let builder = parquet_file::open(path)?;
            let has = |name: &str| builder.schema().field_with_name(name).is_ok();
            Ok(match () {
                () if has("jpg_0") && has("jpg_1") => Some(DataKind::Pickapic),
                () if has("jpg_0") => Some(DataKind::Rated),
                () if has("chosen") && has("rejected") => Some(DataKind::ChosenRejected),
                () if has("image_path") && has("rank") => Some(DataKind::Imagereward),
                () => None,
            })
        }
        Some(list) if LISTS.contains(&list) => match records(path)?.next() {
            Some(record) => Ok(record?.fields.ok().and_then(|fields| of_fields(&fields))),
            None => Ok(None),
        },
        _ => Ok(None),
    }
}

/// Records in which to look for one of the kind.
const LOOKED_AT: usize = 16;

/// Whether a list has records of the kind `kind` among its first, or such that are broken. Lists of other things, such as
/// HPDv2's prompts for benchmarks, lie beside those of the data set.
pub(super) fn is_list_of(path: &Path, kind: DataKind, format: &Format) -> bool {
    let Ok(records) = records(path) else { return false };
    let fields = records
        .take(LOOKED_AT)
        .filter_map(|record| record.ok()?.fields.ok());
    fields
        .into_iter()
        .any(|fields| of_fields(&fields) == Some(kind) || (format.read)(&fields, format.choose).is_ok())
}

fn of_fields(fields: &Fields) -> Option<DataKind> {
    let has = |name| fields.has(name);
    let images = || {
        fields
            .texts(&["file_path", "image_path"])
            .map_or(0, |names| names.len())
    };
    match () {
        () if has("path1") && has("path2") => Some(DataKind::Hpdv3),
        () if has("prompt_id") && has("image_path") && has("rank") => Some(DataKind::Imagereward),
        () if (has("human_preference") || has("rank")) && images() > 1 => Some(DataKind::Hpdv2),
        () if has("chosen") || has("image_0") || has("images") => Some(DataKind::Jsonl),
        () if has("chosen_file_name") => Some(DataKind::Imagefolder),
        () if has("label") => Some(DataKind::Rated),
        () if has("file_name") => Some(DataKind::Imagefolder),
        () => None,
    }
}
