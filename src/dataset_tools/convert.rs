//! Any kind of data set as parquet files, whole or divided by prompt.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Serialize;

use super::shard_writer::{ShardWriter, Written};
use super::{OnRows, Opened, each_row, prompt_key};
use crate::config::data::DataKind;
use crate::data::cache::Key;
use crate::data::image::Header;
use crate::data::{Content, Pair, Preference, Row, SIDES};
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
    opened: Opened,
    from: &Path,
    conversion: &Conversion,
    folder: &Path,
    progress: &mut OnRows<'_>,
) -> Result<Converted> {
    let sides = if opened.kind == DataKind::Rated { 1 } else { 2 };
    let mut work = Work {
        conversion,
        per_prompt: HashMap::new(),
        prompts: Prompts::default(),
        result: Converted::default(),
        writer: ShardWriter::new(folder, sides, &[], conversion.rows_per_file, conversion.replace)?,
    };
    let mut before = 0;
    for split in &opened.splits {
        let source = &*split.source;
        let mut progress = |done| progress(before + done);
        each_row(source, &mut progress, look, |seen| work.take(&split.name, seen?))?;
        before += source.len();
    }
    let Work {
        mut result,
        writer,
        prompts,
        ..
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
    if let Some(hold_out) = conversion.hold_out {
        check_parts(from, hold_out, prompts)?;
    }
    result.splits = writer.finish()?;
    Ok(result)
}

/// Prompts that were written: of training, and held out.
type Prompts = [HashSet<Key>; 2];

/// Refuses a division that leaves a part empty, as happens to few prompts.
fn check_parts(from: &Path, hold_out: HoldOut, [train, held_out]: Prompts) -> Result<()> {
    let empty = match (train.is_empty(), held_out.is_empty()) {
        (_, true) if hold_out.share > 0.0 => "is held out",
        (true, _) if hold_out.share < 1.0 => "is left to train on",
        _ => return Ok(()),
    };
    let prompts = train.len() + held_out.len();
    let expected = hold_out.share * prompts as f64;
    Err(Error::bad(
        from.display().to_string(),
        format!(
            "has {prompts} prompts, of which with a share of {} and seed {} none {empty}",
            hold_out.share, hold_out.seed
        ),
        format!(
            "Give another --held-out or --seed: a share of {} of {prompts} prompts is {expected:.1} of them.",
            hold_out.share
        ),
    ))
}

/// A pair with its picture files.
pub(super) type Whole = (Pair, [Vec<u8>; 2]);

/// A row whose pictures were read.
struct Seen {
    place: String,
    content: Result<Option<Whole>, String>,
}

fn look(row: Row) -> Result<Seen> {
    let content = match row.content {
        Content::Unlabelled(_) => Ok(None),
        Content::Damaged(reason) => Err(reason),
        Content::Pair(pair) => readable(pair)?.map(Some),
    };
    Ok(Seen {
        place: row.place.to_string(),
        content,
    })
}

/// A pair with both files, which look like pictures; or what is wrong with them.
///
/// # Errors
/// A whole shard is gone.
pub(super) fn readable(mut pair: Pair) -> Result<Result<Whole, String>> {
    let files = pair.take_files()?.and_then(|files| {
        for (side, file) in SIDES.iter().zip(&files) {
            Header::read(file).map_err(|reason| format!("{side} {reason}"))?;
        }
        Ok(files)
    });
    Ok(files.map(|files| (pair, files)))
}

struct Work<'a> {
    conversion: &'a Conversion,
    per_prompt: HashMap<Key, u32>,
    /// Filled where prompts are divided.
    prompts: Prompts,
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
        let split = match self.conversion.hold_out {
            None => split,
            Some(hold_out) => {
                let is_held_out = hold_out.holds_out(&pair.caption);
                self.prompts[usize::from(is_held_out)].insert(prompt_key(&pair.caption));
                hold_out.split(&pair.caption)
            }
        };
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
