//! Which pictures are scored: a folder, a glob, a JSON-lines file or a parquet file, as a stream of records.

mod files;
mod jsonl;
mod parquet;

use std::path::Path;

use indexmap::IndexMap;
use serde_json::Value;

pub use crate::data::Picture;
use crate::{Error, Result};

/// Name of the list that `ortdpo generate` writes beside its pictures.
const LIST: &str = "images.jsonl";

/// A picture to score, and what is known about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// How the picture is called in results: its path, or `FILE#ROW` in a parquet file without names.
    pub file: String,
    /// The picture itself.
    pub picture: Picture,
    /// The prompt it was made for, if the source says.
    pub prompt: Option<String>,
    /// Whatever else the source says, such as a seed or a category: for grouping, and for the reader of the results.
    pub fields: IndexMap<String, Value>,
}

/// Records, one after the other.
pub type Records<'a> = Box<dyn Iterator<Item = Result<Record>> + Send + 'a>;

/// Records and how many there are.
pub struct Source {
    /// How many records come, where that is known without reading them.
    pub len: Option<usize>,
    /// The records.
    pub records: Records<'static>,
}

/// Opens what the user named: a folder (its `images.jsonl`, or else every PNG, JPEG and WebP file in it and below), a
/// glob, a `.jsonl` or `.parquet` file, or one picture.
///
/// # Errors
/// There is nothing, or it holds no pictures.
pub fn open(named: &str) -> Result<Source> {
    let path = Path::new(named);
    let source = match path.extension().and_then(|e| e.to_str()) {
        _ if path.is_dir() && path.join(LIST).is_file() => jsonl::open(&path.join(LIST))?,
        _ if path.is_dir() => files::folder(path)?,
        Some("jsonl") => jsonl::open(path)?,
        Some("parquet") => parquet::open(path)?,
        _ if path.is_file() => files::one(path),
        _ if named.contains(['*', '?', '[']) => files::glob(named)?,
        _ => {
            return Err(Error::bad(
                named,
                "does not exist",
                "Name a folder, a file, or a glob in quotes such as 'out/*.png'.",
            ));
        }
    };
    match source.len {
        Some(0) => Err(Error::bad(
            named,
            "holds no pictures",
            format!("Name a folder with PNG, JPEG or WebP files or with {LIST}."),
        )),
        _ => Ok(source),
    }
}

/// A source of records that are there already.
fn listed(records: Vec<Record>) -> Source {
    Source {
        len: Some(records.len()),
        records: Box::new(records.into_iter().map(Ok)),
    }
}
