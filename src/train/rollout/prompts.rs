//! Which prompts images are made for: a list that rounds go through in shuffled epochs, or images that people have rated.

use std::collections::{BTreeMap, HashSet};

use super::chain::ImageKey;
use super::labels::Labels;
use crate::config::rollout::RolloutConfig;
use crate::rng::{PairId, Purpose, Streams, Visit};
use crate::{Error, Result, prompts};

/// The prompts of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompts {
    /// Texts by their position; positions of rated images may have gaps.
    texts: BTreeMap<usize, String>,
    /// Labels by image, where images are rated already.
    labels: Option<Labels>,
}

impl Prompts {
    /// Those of the configuration; `captions` stand in where it names none.
    ///
    /// # Errors
    /// A file cannot be read or does not fit the configuration, or there is no prompt.
    pub fn read(config: &RolloutConfig, captions: impl FnOnce() -> Vec<String>) -> Result<Self> {
        if let Some(path) = &config.labels {
            let (texts, labels) = Labels::read(path, config)?;
            let labels = Some(labels);
            return Ok(Self { texts, labels });
        }
        let mut texts = match &config.prompts {
            Some(path) => prompts::read(path)?
                .into_iter()
                .map(|prompt| prompt.text)
                .collect(),
            None => captions(),
        };
        texts.truncate(config.count.unwrap_or(texts.len()));
        match texts.is_empty() {
            false => Ok(Self {
                texts: texts.into_iter().enumerate().collect(),
                labels: None,
            }),
            true => Err(Error::bad(
                "rollout.prompts",
                "gives no prompt",
                "Give a file with at least one.",
            )),
        }
    }

    /// Positions of the prompts, in order.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        self.texts.keys().copied()
    }

    /// A prompt by its position.
    pub fn text(&self, prompt: usize) -> &str {
        &self.texts[&prompt]
    }

    /// Label of an image that is rated already.
    pub fn label(&self, key: ImageKey) -> Option<f64> {
        self.labels.as_ref()?.of(key)
    }

    /// Whether the images are rated already: then they are those of the initial policy.
    pub fn are_labelled(&self) -> bool {
        self.labels.is_some()
    }

    /// Source of the images' noise, where that is given.
    pub fn seed(&self) -> Option<u64> {
        self.labels.as_ref().map(Labels::seed)
    }

    /// The images of round `round`, of `prompts` prompts with `images` images each. Every epoch has an order of its own; an
    /// image is made anew at each visit, with other noise, unless it is rated already.
    pub fn round(&self, round: u64, prompts: usize, images: usize, streams: &Streams) -> Vec<ImageKey> {
        let positions: Vec<usize> = self.positions().collect();
        let first = round as usize * prompts;
        let mut keys = Vec::new();
        let mut order: Option<(usize, Vec<usize>)> = None;
        for taken in first..first + prompts {
            let (epoch, place) = (taken / positions.len(), taken % positions.len());
            if order.as_ref().is_none_or(|(of, _)| *of != epoch) {
                let mut shuffled = positions.clone();
                streams
                    .pair(Purpose::PromptOrder, PairId(0), Visit(epoch as u64))
                    .shuffle(&mut shuffled);
                order = Some((epoch, shuffled));
            }
            let prompt = order.as_ref().map_or(0, |(_, order)| order[place]);
            match &self.labels {
                Some(labels) => keys.extend(labels.images(prompt)),
                None => keys.extend((0..images).map(|k| ImageKey {
                    prompt,
                    image: epoch * images + k,
                })),
            }
        }
        // A prompt that ends one epoch and begins the next would have its rated images twice.
        let mut seen = HashSet::new();
        keys.retain(|key| seen.insert((key.prompt, key.image)));
        keys
    }

    /// Feeds everything that determines the images and their labels.
    pub fn hash(&self, hasher: &mut blake3::Hasher) {
        for (position, text) in &self.texts {
            hasher.update(&(*position as u64).to_le_bytes());
            hasher.update(blake3::hash(text.as_bytes()).as_bytes());
        }
        if let Some(labels) = &self.labels {
            labels.hash(hasher);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RolloutConfig {
        RolloutConfig::default()
    }

    #[test]
    fn every_epoch_takes_every_prompt_once_and_makes_other_images() {
        let texts = || (0..5).map(|i| format!("prompt {i}")).collect();
        let prompts = Prompts::read(&config(), texts).unwrap();
        let streams = Streams::new(3);
        let rounds: Vec<ImageKey> = (0..5)
            .flat_map(|round| prompts.round(round, 2, 3, &streams))
            .collect();
        assert_eq!(rounds.len(), 30);
        let of_epoch = |epoch: usize| {
            let mut prompts: Vec<usize> = rounds[15 * epoch..15 * (epoch + 1)]
                .iter()
                .map(|k| k.prompt)
                .collect();
            assert!(
                rounds[15 * epoch..15 * (epoch + 1)]
                    .iter()
                    .all(|k| k.image / 3 == epoch)
            );
            let order = prompts.clone();
            prompts.sort_unstable();
            assert_eq!(prompts, (0..5).flat_map(|p| [p; 3]).collect::<Vec<_>>());
            order
        };
        assert_ne!(of_epoch(0), of_epoch(1));
    }
}
