//! Pairs labelled anew by what reward models say of their pictures.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use indexmap::IndexMap;
use serde::Serialize;

use super::convert::{Whole, readable};
use super::shard_writer::{ShardWriter, Written};
use super::{OnRows, OpenSplit, Opened, each_row};
use crate::config::data::DataKind;
use crate::data::{Content, Pair, Pictures, Preference, Row};
use crate::pairs::{majority, order, overall};
use crate::score::Scorer;
use crate::score::source::{Record, Records};
use crate::{Error, Result};

/// How scores become labels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vote {
    /// More of the scores win, whatever their scales; otherwise the overall score does, which is the mean of several after each
    /// was brought to mean 0 and standard deviation 1 over all pictures.
    pub majority: bool,
    /// Overall scores that differ by less are a tie.
    pub min_margin: f64,
    /// Whether ties are written.
    pub keep_ties: bool,
    /// Whether rows whose pictures cannot be read are left out; otherwise the first one ends the work.
    pub skip_damaged: bool,
    /// Rows of a file.
    pub rows_per_file: usize,
    /// Whether parquet files in the output folder may be replaced.
    pub replace: bool,
}

/// What was written, and how the new labels compare with the old ones.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Relabelled {
    /// Rows of each split.
    pub splits: Vec<(String, u64)>,
    /// Pairs that were scored.
    pub scored: u64,
    /// Ties by the new labels, whether written or not.
    pub ties: u64,
    /// Those of the scored pairs that had no label before.
    pub unlabelled: u64,
    /// Rows without a label or a second picture, which stay out.
    pub left_out: u64,
    /// Damaged rows that were left out.
    pub damaged: u64,
    /// Pairs with a winner by both labels.
    pub decided_by_both: u64,
    /// Those of them with the same winner.
    pub same_winner: u64,
}

/// Scores of all pairs in their order; `None` for one that could not be scored.
type Scores = Vec<Option<Vec<[f64; 2]>>>;

/// Scores every pair of the data set called `from`, labels it anew, and writes it into `folder`.
///
/// # Errors
/// The data set cannot be read or has single pictures, a row is damaged and that is not allowed, a network fails, the disk is full,
/// or `stop` was set; then nothing is written, and the scorer's cache keeps what was done.
pub fn relabel(
    opened: Opened,
    from: &Path,
    vote: Vote,
    scorer: &mut Scorer,
    folder: &Path,
    stop: &AtomicBool,
    progress: &mut OnRows<'_>,
) -> Result<Relabelled> {
    if opened.kind == DataKind::Rated {
        return Err(Error::bad(
            from.display().to_string(),
            "holds single pictures, which are not compared",
            "Make pairs of them with `ortdpo pairs`.",
        ));
    }
    let names: Vec<String> = scorer.names().into_iter().map(str::to_owned).collect();
    let writer = ShardWriter::new(folder, 2, &names, vote.rows_per_file, vote.replace)?;
    let mut scores = Scores::new();
    for split in &opened.splits {
        score(split, vote.skip_damaged, scorer, stop, &mut scores, progress)?;
    }
    let labels = labels(&scores, names.len(), vote);
    let mut rewriter = Rewriter {
        vote,
        scored: scores.into_iter().zip(labels),
        result: Relabelled::default(),
        writer,
    };
    let mut unless_stopped = |_| match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    for split in &opened.splits {
        let source = &*split.source;
        each_row(source, &mut unless_stopped, look, |seen| {
            rewriter.take(&split.name, seen?)
        })?;
    }
    rewriter.finish(from)
}

/// Takes the rows a second time and writes them with their new labels.
struct Rewriter<S> {
    vote: Vote,
    /// Scores and labels of the pairs that are still to come.
    scored: S,
    result: Relabelled,
    writer: ShardWriter,
}

impl<S: Iterator<Item = (Option<Vec<[f64; 2]>>, Label)>> Rewriter<S> {
    fn take(&mut self, split: &str, Seen { place, content }: Seen) -> Result<()> {
        let found = match content {
            Found::Nothing => {
                self.result.left_out += 1;
                return Ok(());
            }
            // The first pass let it pass.
            Found::Damaged => {
                self.result.damaged += 1;
                return Ok(());
            }
            Found::Pictures(found) => found,
        };
        // What was scored has to be there still: its label would be lost without a word otherwise.
        let changed = |what: &str| {
            let remedy = "Leave the data set alone until it is relabelled, and run the same command again.";
            Err(Error::bad(place.as_str(), what, remedy))
        };
        let ((pair, was, images), named_scores, (label, overall)) = match (found, self.scored.next()) {
            (_, None) => return changed("was not there when the pairs were scored"),
            (Ok(_) | Err(_), Some((None, _))) => {
                self.result.damaged += 1;
                return Ok(());
            }
            (Err(reason), Some((Some(_), _))) if !self.vote.skip_damaged => {
                return changed(&format!("was scored, but now {reason}"));
            }
            (Err(_), Some((Some(_), _))) => {
                self.result.damaged += 1;
                return Ok(());
            }
            (Ok(whole), Some((Some(scores), label))) => (whole, scores, label),
        };
        count(&mut self.result, was, label);
        if label == 0.5 && !self.vote.keep_ties {
            return Ok(());
        }
        let written = Written {
            caption: pair.caption,
            images,
            label,
            scores: Some(overall),
            named_scores,
        };
        self.writer.add(split, written)
    }

    fn finish(self, from: &Path) -> Result<Relabelled> {
        let mut result = self.result;
        if result.scored == 0 || (result.scored == result.ties && !self.vote.keep_ties) {
            return Err(Error::bad(
                from.display().to_string(),
                format!(
                    "leaves nothing to write: {} pairs were scored, {} of them are ties",
                    result.scored, result.ties
                ),
                "Check the data set and --min-margin; --ties keep writes ties.",
            ));
        }
        result.splits = self.writer.finish()?;
        Ok(result)
    }
}

/// A new label and the overall scores that it comes from.
type Label = (f64, [f64; 2]);

/// A row on the second pass.
struct Seen {
    place: String,
    content: Found,
}

/// A pair, what was said of it, and its files.
type Compared = (Pair, Option<Preference>, [Vec<u8>; 2]);

enum Found {
    /// Two pictures and what was said of them, or what is wrong with their files.
    Pictures(Result<Compared, String>),
    /// Nobody labelled it, and it has not two pictures.
    Nothing,
    Damaged,
}

fn look(row: Row) -> Result<Seen> {
    let place = row.place.to_string();
    let content = match comparable(row.content) {
        Ok(Some((pair, was))) => {
            let read = readable(pair)?;
            Found::Pictures(read.map(|(pair, files): Whole| (pair, was, files)))
        }
        Ok(None) => Found::Nothing,
        Err(_) => Found::Damaged,
    };
    Ok(Seen { place, content })
}

/// Two pictures that can be scored, and what was said of them; none if there is one only; what is wrong with a damaged row.
fn comparable(content: Content) -> Result<Option<(Pair, Option<Preference>)>, String> {
    match content {
        Content::Pair(pair) => {
            let was = pair.preference;
            Ok(Some((pair, Some(was))))
        }
        Content::Unlabelled(None) => Ok(None),
        Content::Unlabelled(Some(Pictures { caption, images })) => {
            let pair = Pair {
                caption,
                images,
                preference: Preference::Tie,
                scores: None,
            };
            Ok(Some((pair, None)))
        }
        Content::Damaged(reason) => Err(reason),
    }
}

fn count(result: &mut Relabelled, old: Option<Preference>, new: f64) {
    result.scored += 1;
    result.ties += u64::from(new == 0.5);
    let Some(old) = old else {
        result.unlabelled += 1;
        return;
    };
    if old != Preference::Tie && new != 0.5 {
        result.decided_by_both += 1;
        result.same_winner += u64::from(old.label() == new);
    }
}

/// Scores the pairs of a split, two pictures after each other.
fn score(
    split: &OpenSplit,
    skip_damaged: bool,
    scorer: &mut Scorer,
    stop: &AtomicBool,
    scores: &mut Scores,
    progress: &mut OnRows<'_>,
) -> Result<()> {
    let records: Records<'_> = Box::new(split.source.rows()?.flat_map(move |row| match row {
        Ok(row) => records(row, skip_damaged),
        Err(error) => vec![Err(error)],
    }));
    let mut first: Option<Result<Vec<f64>, String>> = None;
    scorer.score_records(records, stop, |scored| {
        let own: Option<Vec<f64>> = scored.scores.iter().copied().collect();
        let own = match (own, scored.problem) {
            (Some(own), None) => Ok(own),
            (_, problem) if skip_damaged => Err(problem.unwrap_or_default()),
            (_, problem) => {
                return Err(Error::bad(
                    scored.record.file,
                    problem.unwrap_or_default(),
                    "Mend or remove the row, or leave such rows out with --skip-damaged.",
                ));
            }
        };
        match first.take() {
            None => first = Some(own),
            Some(other) => {
                let both = other.ok().zip(own.ok());
                scores.push(both.map(|(a, b)| a.into_iter().zip(b).map(|(a, b)| [a, b]).collect()));
                if progress(scores.len() as u64).is_break() {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    })
}

/// The two pictures of a row to score; none where there is nothing to compare.
fn records(row: Row, skip_damaged: bool) -> Vec<Result<Record>> {
    let place = row.place.to_string();
    match comparable(row.content) {
        Ok(Some((Pair { caption, images, .. }, _))) => {
            let record = |picture| Record {
                file: place.clone(),
                picture,
                prompt: Some(caption.clone()),
                fields: IndexMap::new(),
            };
            images.into_iter().map(|picture| Ok(record(picture))).collect()
        }
        Err(reason) if !skip_damaged => vec![Err(Error::bad(
            place,
            reason,
            "Mend or remove the row, or leave such rows out with --skip-damaged.",
        ))],
        Ok(None) | Err(_) => Vec::new(),
    }
}

/// New label and overall scores of every pair; of one without scores they mean nothing.
fn labels(scores: &Scores, voters: usize, vote: Vote) -> Vec<Label> {
    let voter = |voter: usize| {
        let known = scores.iter().flatten();
        known.flat_map(|pair| pair[voter]).collect()
    };
    let overall = overall((0..voters).map(voter).collect());
    let mut overall = overall.chunks_exact(2).map(|two| [two[0], two[1]]);
    let label = |pair: &Option<Vec<[f64; 2]>>| {
        let (Some(pair), Some(own)) = (pair, pair.as_ref().and_then(|_| overall.next())) else {
            return (0.5, [0.0; 2]);
        };
        let difference = own[0] - own[1];
        let label = match vote.majority {
            _ if difference.abs() < vote.min_margin => 0.5,
            true => majority(pair.iter().map(|[first, second]| first - second)),
            false => order(difference),
        };
        (label, own)
    };
    scores.iter().map(label).collect()
}
