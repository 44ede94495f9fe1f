//! Pictures in a parquet file: a column of image bytes, or of paths, and columns for everything else.

use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Schema};
use indexmap::IndexMap;
use serde_json::Value;

use super::{Picture, Record, Source};
use crate::data::parquet_file;
use crate::{Error, Result};

/// Rows held in memory at once.
const ROWS_AT_ONCE: usize = 32;

/// Columns that may hold pictures, as bytes or as Hugging Face's struct of bytes and path; the first that is there.
const PICTURES: [&str; 5] = ["image", "jpg", "png", "webp", "bytes"];
/// Columns that may hold prompts.
const PROMPTS: [&str; 3] = ["prompt", "caption", "text"];

/// Opens a file; its rows are read as they are asked for.
pub(super) fn open(path: &Path) -> Result<Source> {
    let builder = parquet_file::open(path)?;
    let len = builder.metadata().file_metadata().num_rows() as usize;
    let columns = Columns::of(path, builder.schema())?;
    let reader = builder
        .with_batch_size(ROWS_AT_ONCE)
        .build()
        .map_err(|e| parquet_file::unreadable(path, &e))?;
    let (mut row, path) = (0, path.to_path_buf());
    let records = reader.flat_map(move |batch| match batch {
        Ok(batch) => {
            let records: Vec<Result<Record>> = (0..batch.num_rows())
                .map(|i| Ok(columns.record(&path, &batch, i, row + i)))
                .collect();
            row += records.len();
            records
        }
        Err(e) => vec![Err(parquet_file::unreadable(&path, &e))],
    });
    Ok(Source {
        len: Some(len),
        records: Box::new(records),
    })
}

/// Where in the schema things are.
struct Columns {
    picture: usize,
    /// The picture column holds paths.
    is_path: bool,
    name: Option<usize>,
    prompt: Option<usize>,
    others: Vec<(String, usize)>,
}

impl Columns {
    fn of(path: &Path, schema: &Schema) -> Result<Self> {
        let find = |names: &[&str], fits: fn(&DataType) -> bool| {
            names.iter().find_map(|name| {
                let index = schema.index_of(name).ok()?;
                fits(schema.field(index).data_type()).then_some(index)
            })
        };
        let name = find(&["file"], |t| *t == DataType::Utf8);
        let bytes = find(&PICTURES, parquet_file::is_image);
        let Some(picture) = bytes.or(name) else {
            let present: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
            return Err(Error::bad(
                path.display().to_string(),
                format!("has no column of pictures; it has {}", present.join(", ")),
                format!(
                    "Name a column with image bytes {}, or one with paths `file`.",
                    PICTURES.join(", ")
                ),
            ));
        };
        let prompt = find(&PROMPTS, |t| *t == DataType::Utf8);
        let used = [Some(picture), name, prompt];
        let others = schema.fields().iter().enumerate();
        let others = others.filter(|(index, field)| {
            !used.contains(&Some(*index)) && parquet_file::is_scalar(field.data_type())
        });
        Ok(Self {
            picture,
            is_path: bytes.is_none(),
            name,
            prompt,
            others: others
                .map(|(index, field)| (field.name().clone(), index))
                .collect(),
        })
    }

    fn record(&self, path: &Path, batch: &RecordBatch, row: usize, number: usize) -> Record {
        let text = |column: usize| {
            let column = batch.column(column);
            column
                .is_valid(row)
                .then(|| column.as_string::<i32>().value(row).to_owned())
        };
        let name = self.name.and_then(text);
        let picture = match self.is_path {
            true => Picture::File(
                path.parent()
                    .unwrap_or(Path::new(""))
                    .join(name.clone().unwrap_or_default()),
            ),
            // No bytes are reported like any other picture that cannot be decoded.
            false => Picture::Bytes(image_bytes(batch.column(self.picture), row).unwrap_or_default()),
        };
        let fields: IndexMap<String, Value> = self
            .others
            .iter()
            .map(|(name, column)| (name.clone(), parquet_file::scalar(batch.column(*column), row)))
            .collect();
        Record {
            file: name.unwrap_or_else(|| format!("{}#{number}", path.display())),
            picture,
            prompt: self.prompt.and_then(text),
            fields,
        }
    }
}

fn image_bytes(column: &dyn Array, row: usize) -> Option<Vec<u8>> {
    let bytes = match column.as_struct_opt() {
        Some(image) => image.is_valid(row).then(|| image.column_by_name("bytes"))??,
        None => {
            return column
                .is_valid(row)
                .then(|| column.as_binary::<i32>().value(row).to_vec());
        }
    };
    bytes
        .is_valid(row)
        .then(|| bytes.as_binary::<i32>().value(row).to_vec())
}
