//! Pairs labelled anew by what reward models say of their pictures.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use indexmap::IndexMap;
use serde::Serialize;

use super::convert::{Whole, readable};
use super::shard_writer::{ShardWriter, Written};
use super::{OnRows, OpenSplit, each_row};
use crate::config::data::DataKind;
use crate::data::{Content, Pair, Preference, Row};
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
    /// Rows that were not labelled, which stay out.
    pub unlabelled: u64,
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
    (kind, splits): (DataKind, Vec<OpenSplit>),
    from: &Path,
    vote: Vote,
    scorer: &mut Scorer,
    folder: &Path,
    stop: &AtomicBool,
    progress: &mut OnRows<'_>,
) -> Result<Relabelled> {
    if kind == DataKind::Rated {
        return Err(Error::bad(
            from.display().to_string(),
            "holds single pictures, which are not compared",
            "Make pairs of them with `ortdpo pairs`.",
        ));
    }
    let names: Vec<String> = scorer.names().into_iter().map(str::to_owned).collect();
    let writer = ShardWriter::new(folder, 2, &names, vote.rows_per_file, vote.replace)?;
    let mut scores = Scores::new();
    for split in &splits {
        score(split, vote.skip_damaged, scorer, stop, &mut scores, progress)?;
    }
    let labels = labels(&scores, names.len(), vote);
    let mut rewriter = Rewriter {
        keep_ties: vote.keep_ties,
        scored: scores.into_iter().zip(labels),
        result: Relabelled::default(),
        writer,
    };
    let mut unless_stopped = |_| match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    for split in &splits {
        let source = &*split.source;
        each_row(source, &mut unless_stopped, look, |seen| {
            rewriter.take(&split.name, seen)
        })?;
    }
    rewriter.finish(from)
}

/// Takes the rows a second time and writes them with their new labels.
struct Rewriter<S> {
    keep_ties: bool,
    /// Scores and labels of the pairs that are still to come.
    scored: S,
    result: Relabelled,
    writer: ShardWriter,
}

impl<S: Iterator<Item = (Option<Vec<[f64; 2]>>, Label)>> Rewriter<S> {
    fn take(&mut self, split: &str, seen: Result<Whole, Unusable>) -> Result<()> {
        let (pair, images) = match seen {
            Ok(found) => found,
            Err(Unusable::Unlabelled) => {
                self.result.unlabelled += 1;
                return Ok(());
            }
            // It was damaged before, too, and let pass.
            Err(Unusable::Damaged { has_scores }) => {
                self.result.damaged += 1;
                self.scored.by_ref().take(usize::from(has_scores)).for_each(drop);
                return Ok(());
            }
        };
        let Some((Some(named_scores), (label, overall))) = self.scored.next() else {
            self.result.damaged += 1;
            return Ok(());
        };
        count(&mut self.result, pair.preference, label);
        if label == 0.5 && !self.keep_ties {
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
        if result.scored == 0 || (result.scored == result.ties && !self.keep_ties) {
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

enum Unusable {
    Unlabelled,
    Damaged { has_scores: bool },
}

fn look(row: Row) -> Result<Whole, Unusable> {
    match row.content {
        Content::Unlabelled => Err(Unusable::Unlabelled),
        Content::Damaged(_) => Err(Unusable::Damaged { has_scores: false }),
        Content::Pair(pair) => match readable(&pair) {
            Ok(files) => Ok((pair, files)),
            Err(_) => Err(Unusable::Damaged { has_scores: true }),
        },
    }
}

fn count(result: &mut Relabelled, old: Preference, new: f64) {
    result.scored += 1;
    result.ties += u64::from(new == 0.5);
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
    match row.content {
        Content::Pair(Pair { caption, images, .. }) => {
            let record = |picture| Record {
                file: place.clone(),
                picture,
                prompt: Some(caption.clone()),
                fields: IndexMap::new(),
            };
            images.into_iter().map(|picture| Ok(record(picture))).collect()
        }
        Content::Damaged(reason) if !skip_damaged => vec![Err(Error::bad(
            place,
            reason,
            "Mend or remove the row, or leave such rows out with --skip-damaged.",
        ))],
        Content::Damaged(_) | Content::Unlabelled => Vec::new(),
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
