//! A JSON object a line: `file` (relative to the list), `prompt`, and whatever else; `ortdpo generate` writes such a list.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::Value;

use super::{Picture, Record, Source};
use crate::{Error, Result};

/// Opens a list; its records are read as they are asked for.
pub(super) fn open(path: &Path) -> Result<Source> {
    let lines = |file: File| BufReader::with_capacity(1 << 16, file).lines();
    let open = || File::open(path).map_err(Error::io(path, "open"));
    let len = lines(open()?)
        .map_while(|line| line.ok())
        .filter(|line| !line.trim().is_empty())
        .count();
    let list = path.to_path_buf();
    let records = lines(open()?)
        .enumerate()
        .filter_map(move |(number, line)| match line {
            Ok(line) if line.trim().is_empty() => None,
            Ok(line) => Some(record(&list, number + 1, &line)),
            Err(error) => Some(Err(Error::io(&list, "read")(error))),
        });
    Ok(Source {
        len: Some(len),
        records: Box::new(records),
    })
}

fn record(list: &Path, number: usize, line: &str) -> Result<Record> {
    let place = || format!("{}:{number}", list.display());
    let remedy = "Write one object a line, such as {\"file\": \"00000.png\", \"prompt\": \"a cat\"}.";
    let mut fields: IndexMap<String, Value> = serde_json::from_str(line)
        .map_err(|e| Error::bad(place(), format!("is not a JSON object: {e}"), remedy))?;
    let mut text = |key: &str| match fields.shift_remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(Error::bad(
            place(),
            format!("holds {other} as \"{key}\", which is not text"),
            remedy,
        )),
    };
    let (file, prompt) = (text("file")?, text("prompt")?);
    let Some(file) = file else {
        return Err(Error::bad(place(), "names no \"file\"", remedy));
    };
    let path: PathBuf = list.parent().unwrap_or(Path::new("")).join(&file);
    Ok(Record {
        file,
        picture: Picture::File(path),
        prompt,
        fields,
    })
}
