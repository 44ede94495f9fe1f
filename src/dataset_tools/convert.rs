//! Any kind of data set as parquet files, whole or divided by prompt.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;

use super::shard_writer::{ShardWriter, Written};
use super::{OnRows, OpenSplit, each_row, files, prompt_key};
use crate::config::data::DataKind;
use crate::data::cache::Key;
use crate::data::image::Header;
use crate::data::{Content, Pair, Preference, Row};
use crate::pairs::HoldOut;
use crate::{Error, Result};

/// What becomes of the rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversion {
    /// Whether ties are written.
    pub keep_ties: bool,
    /// Pairs of one prompt that are written at most: the first ones.
    pub max_pairs_per_prompt: Option<u32>,
    /// Whether damaged rows are left out; otherwise the first one ends the work.
    pub skip_damaged: bool,
    /// Rows of a file.
    pub rows_per_file: usize,
    /// Whether parquet files in the output folder may be replaced.
    pub replace: bool,
    /// Divides all rows by prompt; otherwise splits stay as they are.
    pub hold_out: Option<HoldOut>,
}

/// What was written, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Converted {
    /// Splits with their rows, prompts and what was left out of them.
    pub splits: Vec<(String, u64)>,
    /// What became of the rows.
    pub rows: Outcome,
    /// The first damaged rows that were left out.
    pub examples: Vec<String>,
}

/// Rows by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Rows read.
    pub read: u64,
    /// Rows written.
    pub written: u64,
    /// Ties, whether written or not.
    pub ties: u64,
    /// Rows without a label, which are never written.
    pub unlabelled: u64,
    /// Rows beyond the most that a prompt may have.
    pub over_limit: u64,
    /// Damaged rows that were left out.
    pub damaged: u64,
}

/// Damaged rows that are described one by one.
const EXAMPLES: usize = 5;

/// Writes a data set, whose name is `from`, as parquet files into `folder`.
///
/// # Errors
/// The data set cannot be read, a row is damaged and that is not allowed, nothing is left, or the disk is full; then nothing
/// is written.
pub fn convert(
    (kind, splits): (DataKind, Vec<OpenSplit>),
    from: &Path,
    conversion: &Conversion,
    folder: &Path,
    progress: &mut OnRows<'_>,
) -> Result<Converted> {
    let sides = if kind == DataKind::Rated { 1 } else { 2 };
    let mut work = Work {
        conversion,
        per_prompt: HashMap::new(),
        result: Converted::default(),
        writer: ShardWriter::new(folder, sides, &[], conversion.rows_per_file, conversion.replace)?,
    };
    let mut before = 0;
    for split in &splits {
        let source = &*split.source;
        let mut progress = |done| progress(before + done);
        each_row(source, &mut progress, look, |seen| work.take(&split.name, seen))?;
        before += source.len();
    }
    let Work {
        mut result, writer, ..
    } = work;
    if result.rows.written == 0 {
        let rows = result.rows;
        return Err(Error::bad(
            from.display().to_string(),
            format!(
                "leaves nothing to write: of {} rows {} are ties, {} unlabelled, {} damaged",
                rows.read, rows.ties, rows.unlabelled, rows.damaged
            ),
            "Check that it is the right data set; --ties keep writes ties.",
        ));
    }
    result.splits = writer.finish()?;
    Ok(result)
}

/// A pair with its picture files.
pub(super) type Whole = (Pair, [Vec<u8>; 2]);

/// A row whose pictures were read.
struct Seen {
    place: String,
    content: Result<Option<Whole>, String>,
}

fn look(row: Row) -> Seen {
    let content = match row.content {
        Content::Unlabelled => Ok(None),
        Content::Damaged(reason) => Err(reason),
        Content::Pair(pair) => readable(&pair).map(|files| Some((pair, files))),
    };
    Seen {
        place: row.place.to_string(),
        content,
    }
}

/// Both files, which look like pictures.
pub(super) fn readable(pair: &Pair) -> Result<[Vec<u8>; 2], String> {
    let files = files(pair)?;
    for (side, file) in super::SIDES.iter().zip(&files) {
        Header::read(file).map_err(|reason| format!("{side} {reason}"))?;
    }
    Ok(files)
}

struct Work<'a> {
    conversion: &'a Conversion,
    per_prompt: HashMap<Key, u32>,
    result: Converted,
    writer: ShardWriter,
}

impl Work<'_> {
    fn take(&mut self, split: &str, seen: Seen) -> Result<()> {
        let rows = &mut self.result.rows;
        rows.read += 1;
        let (pair, images) = match seen.content {
            Ok(Some(found)) => found,
            Ok(None) => {
                rows.unlabelled += 1;
                return Ok(());
            }
            Err(reason) => return self.damaged(&seen.place, &reason),
        };
        if pair.preference == Preference::Tie {
            rows.ties += 1;
            if !self.conversion.keep_ties {
                return Ok(());
            }
        }
        if let Some(most) = self.conversion.max_pairs_per_prompt {
            let count = self.per_prompt.entry(prompt_key(&pair.caption)).or_default();
            if *count >= most {
                rows.over_limit += 1;
                return Ok(());
            }
            *count += 1;
        }
        rows.written += 1;
        let split = self
            .conversion
            .hold_out
            .map_or(split, |hold_out| hold_out.split(&pair.caption));
        self.writer.add(
            split,
            Written {
                caption: pair.caption,
                images,
                label: pair.preference.label(),
                scores: pair.scores.map(|scores| scores.map(f64::from)),
                named_scores: Vec::new(),
            },
        )
    }

    fn damaged(&mut self, place: &str, reason: &str) -> Result<()> {
        if !self.conversion.skip_damaged {
            return Err(Error::bad(
                place,
                reason,
                "Mend or remove the row (`ortdpo data validate` lists them all), or leave such rows out with --skip-damaged.",
            ));
        }
        self.result.rows.damaged += 1;
        if self.result.examples.len() < EXAMPLES {
            self.result.examples.push(format!("{place}: {reason}"));
        }
        Ok(())
    }
}
