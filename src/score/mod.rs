//! Scoring many pictures with several reward models: what `ortdpo score` and `ortdpo eval` do.
//!
//! ```text
//! source ─► records ──prepare (all cores)──► bounded channel ──Scorer──► one Scored per record, in order
//!                     read, hash, decode, preprocess            features (cached by content), scores
//! ```
//!
//! While the networks work on one chunk of pictures, the next ones are decoded and resized, each only as far as some
//! reward needs it: rewards with the same preprocessing share pixels, those with the same image tower share features.
//! Memory holds a few chunks, however many pictures there are.

mod features;
mod prepare;
pub mod prompts;
pub mod source;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

use image::RgbImage;
use ndarray::{Array1, Array2, ArrayView4};

use crate::data::cache::Key;
use crate::reward::{Preprocessor, PromptUse, RewardModel};
use crate::runtime::SessionOptions;
use crate::{Error, Result};
use features::FeatureCache;
use prepare::{CHUNKS_WAITING, Chunk, Preparer};
use source::{Record, Records};

/// Reward models that score together.
pub struct Scorer {
    rewards: Vec<RewardModel>,
    towers: Vec<Tower>,
    preprocessors: Vec<Preprocessor>,
    cache: Option<FeatureCache>,
}

/// What determines the features of pictures; several rewards may have the same.
struct Tower {
    /// Content hash of networks and preprocessing.
    hash: [u8; 32],
    preprocessor: usize,
    /// Features belong to picture and prompt.
    reads_prompt: bool,
    /// The rewards that use it; the first computes.
    rewards: Vec<usize>,
}

/// A record and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The record; its picture is no longer in memory.
    pub record: Record,
    /// One score per reward, in the order of [`Scorer::names`]; none where there is a problem.
    pub scores: Vec<Option<f64>>,
    /// Why scores are missing.
    pub problem: Option<String>,
}

impl Scorer {
    /// Loads reward models, each a folder or a name that [`crate::reward::find`] finds. `cache` is a folder for features
    /// of pictures that were seen before; without it nothing is kept.
    ///
    /// # Errors
    /// A reward cannot be loaded, or two have the same name.
    pub fn open(rewards: &[String], options: &SessionOptions, cache: Option<&Path>) -> Result<Self> {
        // Before the first is loaded, which may take long.
        rewards
            .iter()
            .try_for_each(|name| RewardModel::check_files(name))?;
        let rewards = rewards.iter().map(|name| RewardModel::open(name, options));
        Self::new(rewards.collect::<Result<_>>()?, cache)
    }

    /// Scores with rewards that are loaded already; see [`Scorer::open`].
    ///
    /// # Errors
    /// Two rewards have the same name.
    pub fn new(rewards: Vec<RewardModel>, cache: Option<&Path>) -> Result<Self> {
        let mut names = HashSet::new();
        for reward in &rewards {
            let name = &reward.manifest().name;
            if !reward.manifest().gives_scores() {
                let what = format!("is of kind {}, which gives no score", reward.manifest().kind());
                let remedy = "Use it with `ortdpo fid`; score with a reward of another kind.";
                return Err(Error::bad(format!("reward {name}"), what, remedy));
            }
            if !names.insert(name) {
                let remedy = "Leave one out, or change `name` in the manifest of one.";
                return Err(Error::bad(format!("reward {name}"), "was named twice", remedy));
            }
        }
        Self::with_towers(rewards, cache)
    }

    /// Takes one model for the features of pictures alone; see [`Scorer::embed_records`].
    ///
    /// # Errors
    /// It reads pictures and prompts together, or a file of it cannot be read.
    pub fn of_features(model: RewardModel, cache: Option<&Path>) -> Result<Self> {
        if model.prompt_use() == PromptUse::Together {
            return Err(Error::bad(
                format!("reward {}", model.manifest().name),
                "reads pictures and prompts together and has no features of a picture alone",
                "Take one of kind feature_extractor, dual_tower or image_head.",
            ));
        }
        Self::with_towers(vec![model], cache)
    }

    fn with_towers(rewards: Vec<RewardModel>, cache: Option<&Path>) -> Result<Self> {
        let mut preprocessors: Vec<Preprocessor> = Vec::new();
        let mut towers: Vec<Tower> = Vec::new();
        for (index, reward) in rewards.iter().enumerate() {
            let hash = reward.features_hash()?.0;
            if let Some(tower) = towers.iter_mut().find(|tower| tower.hash == hash) {
                tower.rewards.push(index);
                continue;
            }
            let same = |p: &Preprocessor| p == reward.preprocessor();
            let preprocessor = preprocessors.iter().position(same).unwrap_or_else(|| {
                preprocessors.push(reward.preprocessor().clone());
                preprocessors.len() - 1
            });
            towers.push(Tower {
                hash,
                preprocessor,
                reads_prompt: reward.prompt_use() == PromptUse::Together,
                rewards: vec![index],
            });
        }
        Ok(Self {
            rewards,
            towers,
            preprocessors,
            cache: cache.map(FeatureCache::new),
        })
    }

    /// Names of the rewards, as columns are headed.
    pub fn names(&self) -> Vec<&str> {
        self.rewards
            .iter()
            .map(|reward| reward.manifest().name.as_str())
            .collect()
    }

    /// The rewards.
    pub fn rewards(&self) -> &[RewardModel] {
        &self.rewards
    }

    /// Whether any reward needs prompts.
    pub fn needs_prompts(&self) -> bool {
        self.rewards.iter().any(RewardModel::needs_prompt)
    }

    /// Scores pictures in memory, each with its prompt (empty where no reward reads one): per reward one score per picture.
    ///
    /// # Errors
    /// As [`RewardModel::score`].
    pub fn score_images(&mut self, images: &[RgbImage], prompts: &[&str]) -> Result<Vec<Vec<f64>>> {
        self.rewards
            .iter_mut()
            .map(|reward| reward.score(images, prompts))
            .collect()
    }

    /// Scores records and hands each on, in order, as soon as it is done. Pictures that cannot be read or decoded, and prompts
    /// that a reward cannot read, are problems of their record; everything else ends the work.
    ///
    /// # Errors
    /// `records` or `on_scored` give one, a network fails, a prompt is missing, the disk is full, or `stop` was set; the cache
    /// keeps what was done until then.
    pub fn score_records(
        &mut self,
        records: Records<'_>,
        stop: &AtomicBool,
        mut on_scored: impl FnMut(Scored) -> Result<()>,
    ) -> Result<()> {
        let needs_prompts = self.needs_prompts();
        self.each_chunk(records, stop, |scorer, chunk| {
            if needs_prompts {
                check_prompts(&chunk)?;
            }
            scorer
                .score_chunk(chunk)?
                .into_iter()
                .try_for_each(&mut on_scored)
        })
    }

    /// Hands on every record with the features that the first model gives its picture, or why there are none, in order.
    ///
    /// # Errors
    /// As [`Scorer::score_records`].
    pub fn embed_records(
        &mut self,
        records: Records<'_>,
        stop: &AtomicBool,
        mut on_embedded: impl FnMut(Record, Result<Array1<f32>, String>) -> Result<()>,
    ) -> Result<()> {
        self.each_chunk(records, stop, |scorer, chunk| {
            let mut features: HashMap<usize, Array1<f32>> =
                scorer.tower_features(0, &chunk)?.into_iter().collect();
            for (row, prepared) in chunk.records.into_iter().enumerate() {
                let outcome = match (features.remove(&row), prepared.problem) {
                    (Some(features), None) => Ok(features),
                    (_, problem) => Err(problem.unwrap_or_default()),
                };
                on_embedded(prepared.record, outcome)?;
            }
            Ok(())
        })
    }

    /// Prepares records on other threads and hands on their chunks in order.
    fn each_chunk(
        &mut self,
        records: Records<'_>,
        stop: &AtomicBool,
        mut on_chunk: impl FnMut(&mut Self, Chunk) -> Result<()>,
    ) -> Result<()> {
        let preparer = Preparer {
            preprocessors: self.preprocessors.clone(),
            towers: self
                .towers
                .iter()
                .map(|t| (t.hash, t.preprocessor, t.reads_prompt))
                .collect(),
            known: self.cache.as_ref().map(FeatureCache::known).transpose()?,
        };
        let (send, receive) = sync_channel(CHUNKS_WAITING);
        let result = std::thread::scope(|scope| {
            scope.spawn(move || preparer.run(records, &send));
            let mut result = Ok(());
            for chunk in &receive {
                result = chunk.and_then(|chunk| {
                    if stop.load(Ordering::Relaxed) {
                        return Err(Error::Interrupted(
                            "scoring stopped; what was scored is cached".into(),
                        ));
                    }
                    on_chunk(self, chunk)
                });
                if result.is_err() {
                    break;
                }
            }
            // Whoever prepares sees that nobody listens any more.
            drop(receive);
            result
        });
        let flushed = self.cache.as_mut().map_or(Ok(()), FeatureCache::flush);
        result.and(flushed)
    }

    fn score_chunk(&mut self, chunk: Chunk) -> Result<Vec<Scored>> {
        let mut scores = vec![vec![None; self.rewards.len()]; chunk.records.len()];
        let mut problems: Vec<Option<String>> = chunk.records.iter().map(|r| r.problem.clone()).collect();
        for tower in 0..self.towers.len() {
            let features = self.tower_features(tower, &chunk)?;
            for reward in self.towers[tower].rewards.clone() {
                for (row, outcome) in self.reward_scores(reward, &features, &chunk)? {
                    match outcome {
                        Ok(score) => scores[row][reward] = Some(score),
                        Err(problem) => problems[row] = Some(problem),
                    }
                }
            }
        }
        let rows = chunk.records.into_iter().zip(scores).zip(problems);
        let scored = rows.map(|((prepared, scores), problem)| Scored {
            record: prepared.record,
            scores,
            problem,
        });
        Ok(scored.collect())
    }

    /// Features of every sound record of a chunk, by its place: from the cache, or computed now and added to it.
    fn tower_features(&mut self, index: usize, chunk: &Chunk) -> Result<Vec<(usize, Array1<f32>)>> {
        let mut features = Vec::new();
        let mut missing = Vec::new();
        for (row, prepared) in chunk.records.iter().enumerate() {
            match prepared.features.get(index) {
                Some((_, Some(known))) => features.push((row, known.clone())),
                Some((key, None)) => missing.push((row, *key)),
                // There is a problem with this record.
                None => {}
            }
        }
        let computed = self.compute(index, chunk, &missing)?;
        for (row_features, (row, key)) in computed.outer_iter().zip(&missing) {
            if let Some(cache) = &mut self.cache {
                cache.add(*key, row_features)?;
            }
            features.push((*row, row_features.to_owned()));
        }
        Ok(features)
    }

    fn compute(&mut self, index: usize, chunk: &Chunk, missing: &[(usize, Key)]) -> Result<Array2<f32>> {
        if missing.is_empty() {
            return Ok(Array2::zeros((0, 0)));
        }
        let tower = &self.towers[index];
        let pixels = &chunk.pixels[tower.preprocessor];
        let slots = missing.iter().filter_map(|(row, _)| pixels.slot(*row));
        let slots: Vec<usize> = slots.collect();
        let prompts: Vec<&str> = missing.iter().map(|(row, _)| chunk.prompt(*row)).collect();
        let reward = &mut self.rewards[tower.rewards[0]];
        let [channels, height, width] = self.preprocessors[tower.preprocessor].shape();
        let whole = ArrayView4::from_shape((pixels.slots(), channels, height, width), &pixels.values)
            .expect("pixels were made for this preprocessing");
        // Usually all are missing, and nothing needs to be moved.
        match slots.iter().copied().eq(0..pixels.slots()) {
            true => reward.features(whole, &prompts),
            false => reward.features(whole.select(ndarray::Axis(0), &slots).view(), &prompts),
        }
    }

    /// Scores of one reward; a prompt that it cannot read, or a score that is no number, is a problem of its row alone.
    fn reward_scores(
        &mut self,
        index: usize,
        features: &[(usize, Array1<f32>)],
        chunk: &Chunk,
    ) -> Result<Vec<(usize, Result<f64, String>)>> {
        if features.is_empty() {
            return Ok(Vec::new());
        }
        let reward = &mut self.rewards[index];
        let views: Vec<_> = features.iter().map(|(_, row)| row.view()).collect();
        let together = ndarray::stack(ndarray::Axis(0), &views).expect("a tower's features have one length");
        let prompts: Vec<&str> = features.iter().map(|(row, _)| chunk.prompt(*row)).collect();
        let rows = features.iter().map(|(row, _)| *row);
        match reward.scores(together.view(), &prompts) {
            Ok(scores) => Ok(rows.zip(scores.into_iter().map(Ok)).collect()),
            Err(Error::BadInput { .. }) => {
                let one = |(i, row): (usize, usize)| {
                    let features = together.slice(ndarray::s![i..=i, ..]);
                    match reward.scores(features, &prompts[i..=i]) {
                        Ok(scores) => Ok((row, Ok(scores[0]))),
                        Err(error @ Error::BadInput { .. }) => Ok((row, Err(error.to_string()))),
                        Err(error) => Err(error),
                    }
                };
                rows.enumerate().map(one).collect()
            }
            Err(error) => Err(error),
        }
    }
}

/// Every record must have a prompt where one is needed.
fn check_prompts(chunk: &Chunk) -> Result<()> {
    match chunk
        .records
        .iter()
        .find(|prepared| prepared.record.prompt.is_none())
    {
        None => Ok(()),
        Some(prepared) => Err(Error::bad(
            &prepared.record.file,
            "comes without a prompt, which a reward needs",
            "Give --prompts FILE, or score with rewards that read no prompts.",
        )),
    }
}
