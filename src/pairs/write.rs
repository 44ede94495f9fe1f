//! Pairs as parquet files with the columns of Pick-a-Pic that training reads ([`crate::data`]), and what is known beyond:
//! `score_0`, `score_1`, and every score under its own name.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, BooleanArray, Float64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;

use super::{Candidate, PreferencePair};
use crate::fsutil::write_atomically_with;
use crate::{Error, Result};

/// Pairs of a file.
const ROWS_PER_FILE: usize = 10_000;
/// Pairs in memory at once, and of a row group.
const ROWS_AT_ONCE: usize = 128;

/// Names of the two splits, in file names.
const SPLITS: [(&str, bool); 2] = [("train", false), ("heldout", true)];

/// Writes `train-*.parquet` and `heldout-*.parquet` into `folder` and returns their paths. `names` are those of the
/// candidates' scores.
///
/// # Errors
/// Two scores have one name, the folder holds pairs already and `replace` is not set, a picture cannot be read, or the disk is full.
pub fn write(
    folder: &Path,
    candidates: &[Candidate],
    names: &[String],
    pairs: &[PreferencePair],
    replace: bool,
) -> Result<Vec<PathBuf>> {
    let schema = Arc::new(schema(names)?);
    fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
    let old = present(folder)?;
    if let (Some(file), false) = (old.first(), replace) {
        return Err(Error::bad(
            file.display().to_string(),
            "is there already",
            "Choose another folder, or allow it with --replace.",
        ));
    }
    let mut written = Vec::new();
    for (split, held_out) in SPLITS {
        let rows: Vec<(usize, &PreferencePair)> = (pairs.iter().enumerate())
            .filter(|(_, pair)| pair.held_out == held_out)
            .collect();
        let files = rows.len().div_ceil(ROWS_PER_FILE);
        for (number, rows) in rows.chunks(ROWS_PER_FILE).enumerate() {
            let path = folder.join(format!("{split}-{number:05}-of-{files:05}.parquet"));
            write_file(&path, &schema, candidates, rows)?;
            written.push(path);
        }
    }
    for path in old.iter().filter(|path| !written.contains(path)) {
        fs::remove_file(path).map_err(Error::io(path, "remove"))?;
    }
    Ok(written)
}

/// Files of either split that a folder holds.
fn present(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list the folder"))? {
        let path = entry.map_err(Error::io(folder, "list the folder"))?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let is_ours = SPLITS
            .iter()
            .any(|(split, _)| name.starts_with(&format!("{split}-")));
        if is_ours && name.ends_with(".parquet") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn schema(names: &[String]) -> Result<Schema> {
    let mut fields = vec![
        Field::new("caption", DataType::Utf8, false),
        Field::new("jpg_0", DataType::Binary, false),
        Field::new("jpg_1", DataType::Binary, false),
        Field::new("label_0", DataType::Float64, false),
        Field::new("label_1", DataType::Float64, false),
        Field::new("has_label", DataType::Boolean, false),
        Field::new("image_0_uid", DataType::Utf8, false),
        Field::new("image_1_uid", DataType::Utf8, false),
        Field::new("best_image_uid", DataType::Utf8, false),
        Field::new("model_0", DataType::Utf8, false),
        Field::new("model_1", DataType::Utf8, false),
        Field::new("score_0", DataType::Float64, false),
        Field::new("score_1", DataType::Float64, false),
    ];
    for name in names {
        let columns = [0, 1].map(|side| format!("{name}_{side}"));
        if fields.iter().any(|field| columns.contains(field.name())) {
            return Err(Error::bad(
                format!("score {name}"),
                format!("would be a second column `{}` of the pairs", columns[0]),
                "Name it once, or give the reward another name in its manifest.",
            ));
        }
        fields.extend(columns.map(|column| Field::new(column, DataType::Float64, false)));
    }
    Ok(Schema::new(fields))
}

fn write_file(
    path: &Path,
    schema: &Arc<Schema>,
    candidates: &[Candidate],
    rows: &[(usize, &PreferencePair)],
) -> Result<()> {
    // What cannot be read is another matter than what cannot be written.
    let mut unreadable = None;
    let result = write_atomically_with(path, |file| {
        let mut writer = ArrowWriter::try_new(file, schema.clone(), None)?;
        for rows in rows.chunks(ROWS_AT_ONCE) {
            let batch = match batch(schema, candidates, rows) {
                Ok(batch) => batch,
                Err(error) => {
                    unreadable = Some(error);
                    return Err(std::io::Error::other("a picture cannot be read"));
                }
            };
            writer.write(&batch)?;
            writer.flush()?;
        }
        writer.close()?;
        Ok(())
    });
    match unreadable {
        Some(error) => Err(error),
        None => result,
    }
}

fn batch(
    schema: &Arc<Schema>,
    candidates: &[Candidate],
    rows: &[(usize, &PreferencePair)],
) -> Result<RecordBatch> {
    let candidate = |side: usize| rows.iter().map(move |(_, pair)| &candidates[pair.images[side]]);
    let text = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
    let numbers = |values: Vec<f64>| Arc::new(Float64Array::from(values)) as ArrayRef;
    let pictures = |side: usize| -> Result<ArrayRef> {
        let bytes = candidate(side).map(|c| fs::read(&c.file).map_err(Error::io(&c.file, "read")));
        Ok(Arc::new(BinaryArray::from_iter_values(
            bytes.collect::<Result<Vec<_>>>()?,
        )))
    };
    let best = rows.iter().map(|(_, pair)| match pair.label {
        1.0 => candidates[pair.images[0]].name.as_str(),
        0.0 => candidates[pair.images[1]].name.as_str(),
        _ => "tie",
    });
    let pairs = || rows.iter().map(|(_, pair)| pair);
    let mut columns = vec![
        text(candidate(0).map(|c| c.prompt.as_str()).collect()),
        pictures(0)?,
        pictures(1)?,
        numbers(pairs().map(|pair| pair.label).collect()),
        numbers(pairs().map(|pair| 1.0 - pair.label).collect()),
        Arc::new(BooleanArray::from(vec![true; rows.len()])) as ArrayRef,
        text(candidate(0).map(|c| c.name.as_str()).collect()),
        text(candidate(1).map(|c| c.name.as_str()).collect()),
        text(best.collect()),
        text(candidate(0).map(|c| c.model.as_str()).collect()),
        text(candidate(1).map(|c| c.model.as_str()).collect()),
        numbers(pairs().map(|pair| pair.scores[0]).collect()),
        numbers(pairs().map(|pair| pair.scores[1]).collect()),
    ];
    let scores = candidates.first().map_or(0, |c| c.scores.len());
    for score in 0..scores {
        for side in [0, 1] {
            columns.push(numbers(candidate(side).map(|c| c.scores[score]).collect()));
        }
    }
    Ok(RecordBatch::try_new(schema.clone(), columns).expect("the columns are those of the schema"))
}
