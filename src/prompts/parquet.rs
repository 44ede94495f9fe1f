//! Prompts in a parquet file. Only the prompt and columns of plain values are read: image columns stay on the disk.

use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch, types};
use arrow_schema::DataType;
use parquet::arrow::ProjectionMask;

use super::{Prompt, columns};
use crate::data::parquet_file;
use crate::{Error, Result};

pub(super) fn read(path: &Path) -> Result<Vec<Prompt>> {
    let builder = parquet_file::open(path)?;
    let schema = builder.schema().clone();
    let names: Vec<&str> = schema
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .collect();
    let prompt = names[columns::require(path, &names)?];
    let wanted = schema.fields().iter().filter(|field| is_plain(field.data_type()));
    let mask = ProjectionMask::columns(
        builder.parquet_schema(),
        wanted.map(|field| field.name().as_str()),
    );
    let batches = builder
        .with_projection(mask)
        .build()
        .map_err(|error| parquet_file::unreadable(path, &error))?;
    let mut prompts = Vec::new();
    for batch in batches {
        let batch = batch.map_err(|error| parquet_file::unreadable(path, &error))?;
        for row in 0..batch.num_rows() {
            prompts.push(prompt_of(&batch, row, prompt).ok_or_else(|| {
                Error::bad(
                    format!("{}, row {}", path.display(), prompts.len()),
                    format!("the column {prompt} holds no text"),
                    "Remove the row, or rename the column if it does not hold the prompts.",
                )
            })?);
        }
    }
    Ok(prompts)
}

fn prompt_of(batch: &RecordBatch, row: usize, prompt: &str) -> Option<Prompt> {
    let text = batch.column_by_name(prompt)?.as_string_opt::<i32>()?;
    if text.is_null(row) {
        return None;
    }
    let schema = batch.schema_ref().fields();
    let others = schema
        .iter()
        .zip(batch.columns())
        .filter(|(field, _)| field.name() != prompt);
    Some(Prompt {
        text: text.value(row).trim().to_owned(),
        fields: others
            .map(|(field, column)| (field.name().clone(), plain(column, row)))
            .collect(),
    })
}

fn is_plain(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Utf8
            | DataType::Boolean
            | DataType::Int32
            | DataType::Int64
            | DataType::Float32
            | DataType::Float64
    )
}

/// The value as text; null is empty.
fn plain(column: &dyn Array, row: usize) -> String {
    if column.is_null(row) {
        return String::new();
    }
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
        DataType::Boolean => column.as_boolean().value(row).to_string(),
        DataType::Int32 => column.as_primitive::<types::Int32Type>().value(row).to_string(),
        DataType::Int64 => column.as_primitive::<types::Int64Type>().value(row).to_string(),
        DataType::Float32 => column.as_primitive::<types::Float32Type>().value(row).to_string(),
        DataType::Float64 => column.as_primitive::<types::Float64Type>().value(row).to_string(),
        other => unreachable!("is_plain() leaves out columns of {other}"),
    }
}
