//! Pairs as parquet files with the columns of Pick-a-Pic that training reads, written as they come.

use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, BooleanArray, Float64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use indexmap::IndexMap;

use crate::data::ShardFiles;
use crate::{Error, Result};

/// Pairs of a row group: so many are in memory at once.
const ROWS_AT_ONCE: usize = 64;

/// What is written of a pair.
pub(super) struct Written {
    pub caption: String,
    pub images: [Vec<u8>; 2],
    /// 1: the first picture is preferred, 0: the second, ½: neither.
    pub label: f64,
    pub scores: Option<[f64; 2]>,
    /// Values of further scores, in the order of their names, for the two pictures.
    pub named_scores: Vec<[f64; 2]>,
}

/// Collects pairs until there are enough for a row group.
pub(super) struct ShardWriter {
    schema: Arc<Schema>,
    /// Pictures of a row.
    sides: usize,
    waiting: IndexMap<String, Vec<Written>>,
    files: ShardFiles,
}

impl ShardWriter {
    /// A writer into `folder`. `sides` is 2, or 1 for single pictures; `names` are those of further scores.
    ///
    /// # Errors
    /// The folder holds parquet files and `replace` is not set, two scores have one name, or it cannot be written to.
    pub fn new(
        folder: &Path,
        sides: usize,
        names: &[String],
        rows_per_file: usize,
        replace: bool,
    ) -> Result<Self> {
        let schema = Arc::new(schema(sides, names)?);
        Ok(Self {
            files: ShardFiles::new(folder, schema.clone(), rows_per_file, replace)?,
            schema,
            sides,
            waiting: IndexMap::new(),
        })
    }

    /// Adds a pair to a split.
    pub fn add(&mut self, split: &str, pair: Written) -> Result<()> {
        let waiting = self.waiting.entry(split.to_owned()).or_default();
        waiting.push(pair);
        if waiting.len() < ROWS_AT_ONCE {
            return Ok(());
        }
        let batch = batch(&self.schema, self.sides, waiting);
        waiting.clear();
        self.files.write(split, batch)
    }

    /// Puts the files in their place and returns how many rows each split has.
    pub fn finish(mut self) -> Result<Vec<(String, u64)>> {
        for (split, rows) in &self.waiting {
            self.files.write(split, batch(&self.schema, self.sides, rows))?;
        }
        self.files.finish()
    }
}

fn schema(sides: usize, names: &[String]) -> Result<Schema> {
    let mut fields = vec![Field::new("caption", DataType::Utf8, false)];
    for side in 0..sides {
        fields.push(Field::new(format!("jpg_{side}"), DataType::Binary, false));
    }
    fields.push(Field::new("label_0", DataType::Float64, false));
    fields.push(Field::new("has_label", DataType::Boolean, false));
    if sides == 2 {
        fields.push(Field::new("label_1", DataType::Float64, false));
        fields.push(Field::new("score_0", DataType::Float64, true));
        fields.push(Field::new("score_1", DataType::Float64, true));
    }
    for name in names {
        for side in 0..sides {
            let column = format!("{name}_{side}");
            if fields.iter().any(|field| *field.name() == column) {
                return Err(Error::bad(
                    format!("score {name}"),
                    format!("would be a second column `{column}` of the pairs"),
                    "Name it once, or give the reward another name in its manifest.",
                ));
            }
            fields.push(Field::new(column, DataType::Float64, false));
        }
    }
    Ok(Schema::new(fields))
}

fn batch(schema: &Arc<Schema>, sides: usize, rows: &[Written]) -> RecordBatch {
    let numbers = |value: &dyn Fn(&Written) -> Option<f64>| {
        Arc::new(Float64Array::from_iter(rows.iter().map(value))) as ArrayRef
    };
    let captions = rows.iter().map(|row| row.caption.as_str());
    let mut columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from_iter_values(captions))];
    for side in 0..sides {
        let files = rows.iter().map(|row| &row.images[side]);
        columns.push(Arc::new(BinaryArray::from_iter_values(files)));
    }
    columns.push(numbers(&|row| Some(row.label)));
    columns.push(Arc::new(BooleanArray::from(vec![true; rows.len()])));
    if sides == 2 {
        columns.push(numbers(&|row| Some(1.0 - row.label)));
        for side in 0..sides {
            columns.push(numbers(&|row| row.scores.map(|scores| scores[side])));
        }
    }
    for score in 0..rows.first().map_or(0, |row| row.named_scores.len()) {
        for side in 0..sides {
            columns.push(numbers(&|row| Some(row.named_scores[score][side])));
        }
    }
    RecordBatch::try_new(schema.clone(), columns).expect("the columns are those of the schema")
}
