//! Whether every row is whole and every picture decodes.

use serde::Serialize;

use super::{OnRows, OpenSplit, each_row};
use crate::Result;
use crate::data::image::decode;
use crate::data::{Content, Pair, Row, SIDES};

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// File and row.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Validation {
    /// Rows of all splits.
    pub rows: u64,
    /// Rows without a label, which is no damage.
    pub unlabelled: u64,
    /// Rows that cannot be used.
    pub problems: Vec<Problem>,
}

/// Decodes every picture of every split.
///
/// # Errors
/// A file cannot be read at all, or `progress` asked to stop.
pub fn validate(splits: &[OpenSplit], progress: &mut OnRows<'_>) -> Result<Validation> {
    let mut found = Validation::default();
    for split in splits {
        let source = &*split.source;
        let before = found.rows;
        let mut progress = |done| progress(before + done);
        each_row(source, &mut progress, problem, |seen| {
            let (unlabelled, problem) = seen?;
            found.rows += 1;
            found.unlabelled += u64::from(unlabelled);
            found.problems.extend(problem);
            Ok(())
        })?;
    }
    Ok(found)
}

/// Whether the row has no label, and what is wrong with it.
fn problem(row: Row) -> Result<(bool, Option<Problem>)> {
    let what = match row.content {
        Content::Unlabelled(_) => return Ok((true, None)),
        Content::Damaged(reason) => Some(reason),
        Content::Pair(pair) => damage(pair)?,
    };
    let place = || row.place.to_string();
    Ok((false, what.map(|what| Problem { place: place(), what })))
}

fn damage(mut pair: Pair) -> Result<Option<String>> {
    if pair.caption.trim().is_empty() {
        return Ok(Some("the caption is empty".into()));
    }
    let files = match pair.take_files()? {
        Ok(files) => files,
        Err(reason) => return Ok(Some(reason)),
    };
    let broken =
        |(side, file): (&&str, &Vec<u8>)| decode(file).err().map(|reason| format!("{side} {reason}"));
    Ok(SIDES.iter().zip(&files).find_map(broken))
}
