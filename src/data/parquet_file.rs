//! Opening parquet files, with complaints that name the file.

use std::fs::File;
use std::path::Path;

use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int32Type, Int64Type};
use arrow_schema::DataType;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use serde_json::Value;

use crate::{Error, Result};

/// Opens a file and reads its schema.
///
/// # Errors
/// The file cannot be opened or is not parquet.
pub(crate) fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    // Without the writer's Arrow schema there is one way to read a string and one to read binary.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    ParquetRecordBatchReaderBuilder::try_new_with_options(file, options).map_err(|e| unreadable(path, &e))
}

/// The complaint about damage that shows while reading.
pub(crate) fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::bad(
        path.display().to_string(),
        format!("cannot be read as parquet: {error}"),
        "It may be incomplete: copy it again.",
    )
}

/// Whether a column holds image files: bytes, or the `{bytes, path}` structs of Hugging Face's datasets.
pub(crate) fn is_image(data_type: &DataType) -> bool {
    match data_type {
        DataType::Binary => true,
        DataType::Struct(fields) => fields
            .iter()
            .any(|f| f.name() == "bytes" && *f.data_type() == DataType::Binary),
        _ => false,
    }
}

/// Whether a column holds plain values: text, numbers, truth values.
pub(crate) fn is_scalar(data_type: &DataType) -> bool {
    use DataType::{Boolean, Float32, Float64, Int32, Int64, Utf8};
    matches!(data_type, Boolean | Float32 | Float64 | Int32 | Int64 | Utf8)
}

/// A plain value of a column that [`is_scalar`].
pub(crate) fn scalar(column: &dyn Array, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::Float32 => f64::from(column.as_primitive::<Float32Type>().value(row)).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).into(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
        _ => column.as_string::<i32>().value(row).into(),
    }
}
