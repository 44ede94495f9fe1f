//! Typed tables: built once, written as text for people, as Markdown, CSV, JSON or LaTeX, or as a parquet file.
//!
//! Values keep their type and all their digits until they are written: people see the digits that a column asks for,
//! programs (CSV, JSON, parquet) get the shortest number that reads back as the same one.

mod csv;
pub mod estimate;
mod json;
mod latex;
mod markdown;
mod parquet;
mod text;

use std::fmt;
use std::str::FromStr;

use crate::yaml::nearest;
use crate::{Error, Result};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Words; to the left.
    Text,
    /// Whole numbers; to the right.
    Integer,
    /// Numbers, shown to people with so many digits behind the point; to the right.
    Real {
        /// Digits behind the point.
        digits: usize,
    },
}

/// A column's heading and type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Heading, and key in JSON and parquet.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
}

impl Column {
    /// A column of words.
    pub fn text(name: impl Into<String>) -> Self {
        Self::of(name, Kind::Text)
    }

    /// A column of whole numbers.
    pub fn integer(name: impl Into<String>) -> Self {
        Self::of(name, Kind::Integer)
    }

    /// A column of numbers with so many digits behind the point.
    pub fn real(name: impl Into<String>, digits: usize) -> Self {
        Self::of(name, Kind::Real { digits })
    }

    fn of(name: impl Into<String>, kind: Kind) -> Self {
        Self {
            name: name.into(),
            kind,
        }
    }
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Of a [`Kind::Text`] column.
    Text(String),
    /// Of a [`Kind::Integer`] column.
    Integer(i64),
    /// Of a [`Kind::Real`] column.
    Real(f64),
    /// Of any column: there is no value.
    Missing,
}

impl Cell {
    fn suits(&self, kind: Kind) -> bool {
        matches!(
            (self, kind),
            (Self::Missing, _)
                | (Self::Text(_), Kind::Text)
                | (Self::Integer(_), Kind::Integer)
                | (Self::Real(_), Kind::Real { .. })
        )
    }

    /// For people, with a word of the format's own for no value.
    fn shown(&self, kind: Kind, missing: &str) -> String {
        match (self, kind) {
            (Self::Text(text), _) => text.clone(),
            (Self::Integer(number), _) => number.to_string(),
            (Self::Real(number), Kind::Real { digits }) => format!("{number:.digits$}"),
            (Self::Real(number), _) => number.to_string(),
            (Self::Missing, _) => missing.to_owned(),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        Self::Integer(i64::try_from(number).expect("counts of what fits into memory are below 2^63"))
    }
}

impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Missing, Into::into)
    }
}

/// Columns and rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self {
            columns: columns.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// A table of words, for people only.
    pub fn of_text<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Self {
        let mut table = Self::new(head.map(Column::text));
        rows.into_iter().for_each(|row| table.push(row.map(Cell::from)));
        table
    }

    /// Adds a row.
    ///
    /// # Panics
    /// If it has more or fewer values than there are columns, or one of another type than its column: whoever made the
    /// columns makes the rows.
    pub fn push(&mut self, row: impl IntoIterator<Item = Cell>) {
        let row: Vec<Cell> = row.into_iter().collect();
        assert_eq!(row.len(), self.columns.len(), "a value for every column");
        for (cell, column) in row.iter().zip(&self.columns) {
            assert!(
                cell.suits(column.kind),
                "column {} takes {:?}, not {cell:?}",
                column.name,
                column.kind
            );
        }
        self.rows.push(row);
    }

    /// Headings and types.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Rows, each with a value for every column.
    pub fn rows(&self) -> &[Vec<Cell>] {
        &self.rows
    }

    /// The table in a text format; ends without a line break.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Text => text::render(self),
            Format::Markdown => markdown::render(self),
            Format::Csv => csv::render(self),
            Format::Json => json::render(self),
            Format::Latex => latex::render(self),
        }
    }

    /// Rows as people see them.
    fn shown<'a>(&'a self, missing: &'a str) -> impl Iterator<Item = Vec<String>> + 'a {
        self.rows.iter().map(move |row| {
            row.iter()
                .zip(&self.columns)
                .map(|(cell, column)| cell.shown(column.kind, missing))
                .collect()
        })
    }
}

/// Text formats of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For a terminal.
    Text,
    /// A pipe table.
    Markdown,
    /// RFC 4180 with a head line; no value is an empty field.
    Csv,
    /// A list of objects; no value is `null`.
    Json,
    /// A `tabular` with the rules of the booktabs package.
    Latex,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Text, Self::Markdown, Self::Csv, Self::Json, Self::Latex];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Markdown => "markdown",
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Latex => "latex",
        }
    }

    /// A line above a table; a comment where the format has no such lines.
    pub fn heading(self, text: &str) -> String {
        match self {
            Self::Latex => format!("% {text}"),
            Self::Markdown => format!("**{text}**"),
            _ => text.to_owned(),
        }
    }

    /// Usual ending of its files, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Text => "txt",
            Self::Markdown => "md",
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Latex => "tex",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.map(Self::name);
        Self::ALL
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| {
                let guess =
                    nearest(text, &known).map_or(String::new(), |near| format!("Did you mean {near}? "));
                Error::bad(
                    "table format",
                    format!("there is none called `{text}`"),
                    format!("{guess}Choose one of {}.", known.join(", ")),
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table with everything that formats treat differently.
    pub(super) fn example() -> Table {
        let mut table = Table::new([
            Column::text("model"),
            Column::integer("n"),
            Column::real("clip_score", 3),
        ]);
        table.push(["base".into(), 200usize.into(), 0.25.into()]);
        table.push(["a|b, \"c\" & 50%".into(), (-1).into(), (1.0 / 3.0).into()]);
        table.push(["".into(), Cell::Missing, None::<f64>.into()]);
        table
    }

    impl From<i32> for Cell {
        fn from(number: i32) -> Self {
            Self::Integer(number.into())
        }
    }

    #[test]
    #[should_panic(expected = "column n takes Integer")]
    fn values_have_the_type_of_their_column() {
        Table::new([Column::integer("n")]).push([0.5.into()]);
    }

    #[test]
    fn formats_are_named_and_near_names_suggested() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
        }
        let error = "markdwon".parse::<Format>().unwrap_err().to_string();
        assert!(error.contains("Did you mean markdown?"), "{error}");
    }
}
