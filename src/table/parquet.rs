//! Tables as parquet files: text as strings, whole numbers as 64-bit integers, numbers as doubles; no value is null.

use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::{Cell, Column, Kind, Table};
use crate::Result;
use crate::fsutil::write_atomically_with;

impl Table {
    /// Writes the table as a parquet file: the whole file or none.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_parquet(&self, path: &Path) -> Result<()> {
        let fields: Vec<Field> = self.columns.iter().map(field).collect();
        let schema = Arc::new(Schema::new(fields));
        let arrays = (0..self.columns.len()).map(|index| self.array(index)).collect();
        let batch =
            RecordBatch::try_new(schema.clone(), arrays).expect("the arrays were made for these fields");
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .build();
        write_atomically_with(path, |file| {
            let mut writer = ArrowWriter::try_new(file, schema, Some(properties))?;
            writer.write(&batch)?;
            writer.close()?;
            Ok(())
        })
    }

    fn array(&self, index: usize) -> ArrayRef {
        let cells = self.rows.iter().map(|row| &row[index]);
        match self.columns[index].kind {
            Kind::Text => Arc::new(StringArray::from_iter(cells.map(|cell| match cell {
                Cell::Text(text) => Some(text),
                _ => None,
            }))),
            Kind::Integer => Arc::new(Int64Array::from_iter(cells.map(|cell| match cell {
                Cell::Integer(number) => Some(*number),
                _ => None,
            }))),
            Kind::Real { .. } => Arc::new(Float64Array::from_iter(cells.map(|cell| match cell {
                Cell::Real(number) => Some(*number),
                _ => None,
            }))),
        }
    }
}

fn field(column: &Column) -> Field {
    let data_type = match column.kind {
        Kind::Text => DataType::Utf8,
        Kind::Integer => DataType::Int64,
        Kind::Real { .. } => DataType::Float64,
    };
    Field::new(&column.name, data_type, true)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use arrow_array::Array;
    use arrow_array::cast::AsArray;
    use arrow_array::types::{Float64Type, Int64Type};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    #[test]
    fn types_values_and_nulls_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.parquet");
        super::super::tests::example().write_parquet(&path).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
        let batch = reader.build().unwrap().next().unwrap().unwrap();
        assert_eq!(batch.column(0).as_string::<i32>().value(0), "base");
        let counts = batch.column(1).as_primitive::<Int64Type>();
        assert_eq!((counts.value(1), counts.is_null(2)), (-1, true));
        let scores = batch.column(2).as_primitive::<Float64Type>();
        assert_eq!((scores.value(1), scores.is_null(2)), (1.0 / 3.0, true));
    }
}
