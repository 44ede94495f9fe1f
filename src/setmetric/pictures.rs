//! From pictures to rows of features, and what is said of them prompt by prompt on the way.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use indexmap::IndexMap;
use ndarray::{Array1, Array2, Axis, stack};

use super::{Distance, mean_pairwise};
use crate::progress::Console;
use crate::reward::RewardModel;
use crate::score::Scorer;
use crate::score::source::{Record, Source};
use crate::{Error, Result};

/// A set of pictures as an extractor sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct SetFeatures {
    /// A row per sound picture (N,D), those of one prompt together; none of an extractor of kind `perceptual`, whose rows
    /// are as long as whole pictures and are let go once their prompt is done.
    pub features: Option<Array2<f32>>,
    /// Number of sound pictures.
    pub n: usize,
    /// Per prompt with at least two pictures their mean distance.
    pub diversity: Vec<f64>,
    /// How that distance is measured.
    pub distance: Distance,
    /// Pictures that could not be read, and why.
    pub broken: Vec<(String, String)>,
}

/// Computes the features of every picture of `source`. `cache` is a folder for features of pictures that were seen before.
///
/// # Errors
/// The model has no features of pictures, the source cannot be read, a network fails, or no picture can be used.
pub fn embed(
    model: RewardModel,
    source: Source,
    cache: Option<&Path>,
    stop: &AtomicBool,
    console: Console,
) -> Result<SetFeatures> {
    let distance = Distance::of(&model);
    let is_perceptual = distance == Distance::SquaredEuclidean;
    let records = by_prompt(source)?;
    let mut job = console.job("features", records.len() as u64);
    // Rows as long as pictures are faster computed than read.
    let mut scorer = Scorer::of_features(model, cache.filter(|_| !is_perceptual))?;
    let mut set = Gathered::new(distance, !is_perceptual);
    let mut done = 0;
    scorer.embed_records(Box::new(records.into_iter().map(Ok)), stop, |record, outcome| {
        done += 1;
        job.advance(done, "");
        set.add(record, outcome);
        Ok(())
    })?;
    set.finish()
}

/// All records, those of one prompt together; those without one come last.
fn by_prompt(source: Source) -> Result<VecDeque<Record>> {
    let mut groups: IndexMap<Option<String>, Vec<Record>> = IndexMap::new();
    for record in source.records {
        let record = record?;
        groups.entry(record.prompt.clone()).or_default().push(record);
    }
    let without = groups.shift_remove(&None).unwrap_or_default();
    Ok(groups.into_values().flatten().chain(without).collect())
}

/// Features so far, and those of the prompt that is under way.
struct Gathered {
    rows: Option<Vec<Array1<f32>>>,
    n: usize,
    prompt: Option<String>,
    group: Vec<Array1<f32>>,
    diversity: Vec<f64>,
    distance: Distance,
    broken: Vec<(String, String)>,
}

impl Gathered {
    fn new(distance: Distance, keeps_rows: bool) -> Self {
        Self {
            rows: keeps_rows.then(Vec::new),
            n: 0,
            prompt: None,
            group: Vec::new(),
            diversity: Vec::new(),
            distance,
            broken: Vec::new(),
        }
    }

    fn add(&mut self, record: Record, outcome: Result<Array1<f32>, String>) {
        if record.prompt != self.prompt {
            self.end_prompt();
            self.prompt = record.prompt;
        }
        match outcome {
            Ok(row) => {
                self.n += 1;
                if self.prompt.is_some() {
                    self.group.push(row.clone());
                }
                if let Some(rows) = &mut self.rows {
                    rows.push(row);
                }
            }
            Err(problem) => self.broken.push((record.file, problem)),
        }
    }

    fn end_prompt(&mut self) {
        let views: Vec<_> = self.group.iter().map(|row| row.view()).collect();
        if let Ok(rows) = stack(Axis(0), &views) {
            self.diversity.extend(mean_pairwise(rows.view(), self.distance));
        }
        self.group.clear();
    }

    fn finish(mut self) -> Result<SetFeatures> {
        self.end_prompt();
        if self.n == 0 {
            let (file, problem) = self.broken.swap_remove(0);
            return Err(Error::bad(
                file,
                format!("{problem}, and no other picture of the set can be used either"),
                "Check the files.",
            ));
        }
        let stacked = self.rows.map(|rows| {
            let views: Vec<_> = rows.iter().map(|row| row.view()).collect();
            stack(Axis(0), &views).expect("an extractor's rows have one length")
        });
        Ok(SetFeatures {
            features: stacked,
            n: self.n,
            diversity: self.diversity,
            distance: self.distance,
            broken: self.broken,
        })
    }
}
