//! Pairs as parquet files with the columns of Pick-a-Pic that training reads ([`crate::data`]), and what is known beyond:
//! `score_0`, `score_1`, and every score under its own name.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, BooleanArray, Float64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};

use super::{Candidate, PreferencePair};
use crate::data::ShardFiles;
use crate::{Error, Result};

/// Pairs of a file.
const ROWS_PER_FILE: usize = 10_000;
/// Pairs in memory at once, and of a row group.
const ROWS_AT_ONCE: usize = 128;

/// Names of the two splits, in file names.
const SPLITS: [(&str, bool); 2] = [("train", false), ("heldout", true)];

/// Writes `train-*.parquet` and `heldout-*.parquet` into `folder`. `names` are those of the candidates' scores.
///
/// # Errors
/// Two scores have one name, the folder holds pairs already and `replace` is not set, a picture cannot be read, or the disk is
/// full; then nothing is written.
pub fn write(
    folder: &Path,
    candidates: &[Candidate],
    names: &[String],
    pairs: &[PreferencePair],
    replace: bool,
) -> Result<()> {
    let schema = Arc::new(schema(names)?);
    let mut files = ShardFiles::new(folder, schema.clone(), ROWS_PER_FILE, replace)?;
    for (split, held_out) in SPLITS {
        let rows: Vec<&PreferencePair> = pairs.iter().filter(|pair| pair.held_out == held_out).collect();
        for rows in rows.chunks(ROWS_AT_ONCE) {
            files.write(split, batch(&schema, candidates, rows)?)?;
        }
    }
    files.finish().map(drop)
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

fn batch(schema: &Arc<Schema>, candidates: &[Candidate], rows: &[&PreferencePair]) -> Result<RecordBatch> {
    let candidate = |side: usize| rows.iter().map(move |pair| &candidates[pair.images[side]]);
    let text = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
    let numbers = |values: Vec<f64>| Arc::new(Float64Array::from(values)) as ArrayRef;
    let pictures = |side: usize| -> Result<ArrayRef> {
        let bytes = candidate(side).map(|c| fs::read(&c.file).map_err(Error::io(&c.file, "read")));
        Ok(Arc::new(BinaryArray::from_iter_values(
            bytes.collect::<Result<Vec<_>>>()?,
        )))
    };
    let best = rows.iter().map(|pair| match pair.label {
        1.0 => candidates[pair.images[0]].name.as_str(),
        0.0 => candidates[pair.images[1]].name.as_str(),
        _ => "tie",
    });
    let pairs = || rows.iter();
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
