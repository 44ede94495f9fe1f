//! Opening parquet files, with complaints that name the file.

use std::fs::File;
use std::path::Path;

use arrow_schema::DataType;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

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
