//! Lists of anything as records with named fields: JSON arrays, JSON lines, CSV, parquet tables of plain values.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use parquet::arrow::ProjectionMask;
use serde_json::{Map, Value};

use super::json_items::JsonItems;
use crate::data::pair::{At, Place};
use crate::data::parquet_file;
use crate::{Error, Result};

/// One record; what is wrong with it where it cannot be read.
pub(super) struct Record {
    pub place: Place,
    pub fields: Result<Fields, String>,
}

/// The named values of a record.
pub(super) struct Fields(Map<String, Value>);

/// Rows of a parquet file that are read at once.
const ROWS_AT_ONCE: usize = 1024;

type Records = Box<dyn Iterator<Item = Result<Record>> + Send>;

/// How the names of lists end: those that are looked for are those that are read.
pub(super) const LISTS: [&str; 4] = ["json", "jsonl", "ndjson", "csv"];

/// Streams the records of a file; what it holds is told by how its name ends.
///
/// # Errors
/// The file cannot be opened, or is damaged as a whole.
pub(super) fn records(path: &Path) -> Result<Records> {
    match path.extension().and_then(|x| x.to_str()) {
        Some("csv") => csv(path),
        Some("parquet") => parquet(path),
        _ => json(path),
    }
}

fn json(path: &Path) -> Result<Records> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let path: Arc<Path> = path.into();
    let items = JsonItems::new(BufReader::with_capacity(1 << 16, file));
    Ok(Box::new(items.map(move |item| {
        let (line, text) = item.map_err(|e| unreadable(&path, &e))?;
        Ok(Record {
            place: place(&path, At::Line(line)),
            fields: Fields::from_json(&text),
        })
    })))
}

fn csv(path: &Path) -> Result<Records> {
    let mut reader = ::csv::Reader::from_path(path).map_err(|e| unreadable(path, &e))?;
    let headers = reader.headers().map_err(|e| unreadable(path, &e))?.clone();
    let path: Arc<Path> = path.into();
    let rows = reader.into_records().enumerate();
    Ok(Box::new(rows.map(move |(number, row)| {
        let fields = match row {
            Ok(row) => {
                let named = headers.iter().zip(row.iter());
                let text = |(name, value): (&str, &str)| (name.trim().to_owned(), value.trim().into());
                Ok(Fields(named.map(text).collect()))
            }
            Err(e) if e.is_io_error() => return Err(unreadable(&path, &e)),
            Err(e) => Err(format!("is no row of the table: {e}")),
        };
        Ok(Record {
            place: place(&path, At::Row(number as u64)),
            fields,
        })
    })))
}

fn parquet(path: &Path) -> Result<Records> {
    let builder = parquet_file::open(path)?;
    let plain = builder.schema().fields().iter();
    let plain = plain.filter(|field| parquet_file::is_scalar(field.data_type()));
    let plain: Vec<&str> = plain.map(|field| field.name().as_str()).collect();
    let mask = ProjectionMask::columns(builder.parquet_schema(), plain);
    let batches = builder
        .with_projection(mask)
        .with_batch_size(ROWS_AT_ONCE)
        .build();
    let batches = batches.map_err(|e| parquet_file::unreadable(path, &e))?;
    let path: Arc<Path> = path.into();
    let mut next = 0;
    Ok(Box::new(batches.flat_map(move |batch| {
        let batch = match batch {
            Ok(batch) => batch,
            Err(e) => return vec![Err(parquet_file::unreadable(&path, &e))],
        };
        let schema = batch.schema();
        let rows = (0..batch.num_rows()).map(|row| {
            let columns = schema.fields().iter().zip(batch.columns());
            let value = |(field, column): (&Arc<arrow_schema::Field>, &arrow_array::ArrayRef)| {
                (field.name().clone(), parquet_file::scalar(column, row))
            };
            Ok(Record {
                place: place(&path, At::Row(next + row as u64)),
                fields: Ok(Fields(columns.map(value).collect())),
            })
        });
        let rows: Vec<Result<Record>> = rows.collect();
        next += rows.len() as u64;
        rows
    })))
}

fn place(file: &Arc<Path>, at: At) -> Place {
    Place {
        file: file.clone(),
        at,
    }
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::bad(
        path.display().to_string(),
        format!("cannot be read: {error}"),
        "It may be incomplete: copy it again.",
    )
}

impl Fields {
    /// The fields of a JSON object; why it is none.
    pub fn from_json(text: &[u8]) -> Result<Self, String> {
        let fields = serde_json::from_slice(text).map(Self);
        fields.map_err(|e| format!("is no JSON object: {e}"))
    }

    /// Whether the first of `names` that is there is null.
    pub fn is_null(&self, names: &[&str]) -> bool {
        let found = names.iter().find_map(|name| self.0.get(*name));
        found.is_some_and(Value::is_null)
    }

    /// Whether there is a value.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0
            .get(name)
            .filter(|value| !value.is_null() && value.as_str() != Some(""))
    }

    fn first(&self, names: &[&str]) -> Result<(String, &Value), String> {
        let found = names
            .iter()
            .find_map(|name| Some(((*name).to_owned(), self.get(name)?)));
        found.ok_or_else(|| format!("lacks {}", names.join(" or ")))
    }

    /// The text of the first of `names` that is there.
    pub fn text(&self, names: &[&str]) -> Result<&str, String> {
        let (name, value) = self.first(names)?;
        value
            .as_str()
            .ok_or_else(|| format!("holds {value} as {name}, which is no text"))
    }

    /// The texts of the first of `names` that is there: one or a list of them.
    pub fn texts(&self, names: &[&str]) -> Result<Vec<&str>, String> {
        let (name, value) = self.first(names)?;
        let texts = match value {
            Value::Array(values) => values.iter().map(Value::as_str).collect(),
            value => value.as_str().map(|text| vec![text]),
        };
        texts.ok_or_else(|| format!("holds {value} as {name}, which is no list of texts"))
    }

    /// The number called `name`: a number, a truth value, or text that is one.
    pub fn number(&self, name: &str) -> Result<f64, String> {
        let (_, value) = self.first(&[name])?;
        number(value).ok_or_else(|| format!("holds {value} as {name}, which is no number"))
    }

    /// The number called `name`, if there is one.
    pub fn number_if_any(&self, name: &str) -> Result<Option<f64>, String> {
        self.has(name).then(|| self.number(name)).transpose()
    }

    /// The numbers in the list called `name`.
    pub fn numbers(&self, name: &str) -> Result<Vec<f64>, String> {
        let (_, value) = self.first(&[name])?;
        let numbers = value
            .as_array()
            .and_then(|values| values.iter().map(number).collect());
        numbers.ok_or_else(|| format!("holds {value} as {name}, which is no list of numbers"))
    }
}

fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Bool(truth) => f64::from(u8::from(*truth)),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" => 1.0,
            "false" => 0.0,
            text => text.parse().ok()?,
        },
        value => value.as_f64()?,
    };
    number.is_finite().then_some(number)
}
