//! Which prompts images are made for: a list that rounds go through in shuffled epochs, or images that people have rated.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::chain::ImageKey;
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

/// Ratings of images that exist.
#[derive(Debug, Clone, PartialEq)]
struct Labels {
    /// By prompt: numbers of the images, with their labels.
    by_prompt: BTreeMap<usize, Vec<(usize, f64)>>,
    /// Source of the images' noise.
    seed: u64,
}

/// What is read of a line of labels: those of `images.jsonl`, with the label.
#[derive(Debug, Deserialize)]
struct LabelRow {
    prompt: String,
    prompt_index: usize,
    image_index: usize,
    seed: u64,
    steps: usize,
    guidance: f64,
    sampler: String,
    label: Option<f64>,
}

impl Prompts {
    /// Those of the configuration; `captions` stand in where it names none.
    ///
    /// # Errors
    /// A file cannot be read or does not fit the configuration, or there is no prompt.
    pub fn read(config: &RolloutConfig, captions: impl FnOnce() -> Vec<String>) -> Result<Self> {
        if let Some(path) = &config.labels {
            return labelled(path, config);
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

    /// A prompt by its position.
    pub fn text(&self, prompt: usize) -> &str {
        &self.texts[&prompt]
    }

    /// Label of an image that is rated already.
    pub fn label(&self, key: ImageKey) -> Option<f64> {
        let rated = self.labels.as_ref()?.by_prompt.get(&key.prompt)?;
        rated
            .iter()
            .find(|(image, _)| *image == key.image)
            .map(|(_, label)| *label)
    }

    /// Whether the images are rated already: then they are those of the initial policy.
    pub fn are_labelled(&self) -> bool {
        self.labels.is_some()
    }

    /// Source of the images' noise, where that is given.
    pub fn seed(&self) -> Option<u64> {
        self.labels.as_ref().map(|labels| labels.seed)
    }

    /// The images of round `round`, of `prompts` prompts with `images` images each. Every epoch has an order of its own; an
    /// image is made anew at each visit, with other noise, unless it is rated already.
    pub fn round(&self, round: u64, prompts: usize, images: usize, streams: &Streams) -> Vec<ImageKey> {
        let positions: Vec<usize> = self.texts.keys().copied().collect();
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
                Some(labels) => keys.extend(labels.by_prompt[&prompt].iter().map(|(image, _)| ImageKey {
                    prompt,
                    image: *image,
                })),
                None => keys.extend((0..images).map(|k| ImageKey {
                    prompt,
                    image: epoch * images + k,
                })),
            }
        }
        // A prompt that ends one epoch and begins the next would have its rated images twice.
        let mut seen = std::collections::HashSet::new();
        keys.retain(|key| seen.insert((key.prompt, key.image)));
        keys
    }

    /// Feeds everything that determines the images and their labels.
    pub fn hash(&self, hasher: &mut blake3::Hasher) {
        for (position, text) in &self.texts {
            hasher.update(&(*position as u64).to_le_bytes());
            hasher.update(blake3::hash(text.as_bytes()).as_bytes());
        }
        for (prompt, images) in self.labels.iter().flat_map(|labels| &labels.by_prompt) {
            for (image, label) in images {
                hasher.update(&(*prompt as u64).to_le_bytes());
                hasher.update(&(*image as u64).to_le_bytes());
                hasher.update(&label.to_le_bytes());
            }
        }
    }
}

/// Reads rated images.
fn labelled(path: &Path, config: &RolloutConfig) -> Result<Prompts> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    let mut texts: BTreeMap<usize, String> = BTreeMap::new();
    let mut by_prompt: BTreeMap<usize, Vec<(usize, f64)>> = BTreeMap::new();
    let mut seed = None;
    for (number, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let bad = |what: String, remedy: &str| {
            Err(Error::bad(
                format!("{}:{}", path.display(), number + 1),
                what,
                remedy,
            ))
        };
        let row: LabelRow = match serde_json::from_str(line) {
            Ok(row) => row,
            Err(error) => {
                return bad(
                    format!("is not a line of images.jsonl with a label: {error}"),
                    "Take the images.jsonl of ortdpo generate and add a number \"label\" to each line.",
                );
            }
        };
        let wanted = (config.steps, config.guidance, "ddim");
        if (row.steps, row.guidance, row.sampler.as_str()) != wanted {
            return bad(
                format!(
                    "is of an image made in {} steps of {} at guidance {}; rollout says {} steps of ddim at guidance {}",
                    row.steps, row.sampler, row.guidance, config.steps, config.guidance
                ),
                "Set rollout.steps and rollout.guidance as the images were made, with --sampler ddim and --eta.",
            );
        }
        if *seed.get_or_insert(row.seed) != row.seed {
            return bad(
                format!("has seed {}, and lines before it another one", row.seed),
                "Label the images of one run of ortdpo generate.",
            );
        }
        let Some(label) = row.label else { continue };
        if !label.is_finite() {
            return bad(format!("has the label {label}"), "Give a number.");
        }
        let known = texts
            .entry(row.prompt_index)
            .or_insert_with(|| row.prompt.clone());
        let images = by_prompt.entry(row.prompt_index).or_default();
        if *known != row.prompt || images.iter().any(|(image, _)| *image == row.image_index) {
            return bad(
                format!(
                    "says again what prompt {} or its image {} is",
                    row.prompt_index, row.image_index
                ),
                "Label each image once.",
            );
        }
        images.push((row.image_index, label));
    }
    let Some(seed) = seed.filter(|_| !texts.is_empty()) else {
        return Err(Error::bad(
            path.display().to_string(),
            "holds no labelled image",
            "Add a number \"label\" to lines of the images.jsonl of ortdpo generate.",
        ));
    };
    Ok(Prompts {
        texts,
        labels: Some(Labels { by_prompt, seed }),
    })
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

    #[test]
    fn labels_that_do_not_fit_are_refused_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.jsonl");
        let row = |image: usize, steps: usize, seed: u64, label: &str| {
            format!(
                "{{\"file\": \"x.png\", \"prompt\": \"a cat\", \"prompt_index\": 4, \"image_index\": {image}, \
                 \"seed\": {seed}, \"steps\": {steps}, \"guidance\": 5.0, \"sampler\": \"ddim\", \"model\": \"m\", \
                 \"adapters\": []{label}}}\n"
            )
        };
        let config = RolloutConfig {
            labels: Some(path.clone()),
            ..config()
        };
        let read = |text: String| {
            std::fs::write(&path, text).unwrap();
            Prompts::read(&config, Vec::new)
        };
        let prompts =
            read(row(0, 20, 7, ", \"label\": 1") + &row(2, 20, 7, ", \"label\": -1") + &row(3, 20, 7, ""))
                .unwrap();
        assert_eq!((prompts.text(4), prompts.seed()), ("a cat", Some(7)));
        let keys = prompts.round(0, 1, 4, &Streams::new(0));
        let labels: Vec<_> = keys.iter().map(|key| (key.image, prompts.label(*key))).collect();
        assert_eq!(labels, [(0, Some(1.0)), (2, Some(-1.0))]);
        for (text, wanted) in [
            (
                row(0, 20, 7, ", \"label\": 1") + &row(1, 30, 7, ", \"label\": 1"),
                "labels.jsonl:2: is of an image made in 30",
            ),
            (
                row(0, 20, 7, ", \"label\": 1") + &row(1, 20, 8, ", \"label\": 1"),
                "labels.jsonl:2: has seed 8",
            ),
            (
                row(0, 20, 7, ", \"label\": 1") + &row(0, 20, 7, ", \"label\": 0"),
                "says again",
            ),
            (row(0, 20, 7, ""), "holds no labelled image"),
            ("{}".to_owned(), "labels.jsonl:1: is not a line of images.jsonl"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
