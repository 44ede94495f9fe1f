//! Images that people have rated: the `images.jsonl` of `ortdpo generate` with a label to each line.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::chain::ImageKey;
use crate::config::rollout::RolloutConfig;
use crate::generate::Settings;
use crate::model_folder::ModelFolder;
use crate::{Error, Result};

/// Ratings of images that exist.
#[derive(Debug, Clone, PartialEq)]
pub struct Labels {
    /// By prompt: numbers of the images, with their labels.
    by_prompt: BTreeMap<usize, Vec<(usize, f64)>>,
    /// Source of the images' noise.
    seed: u64,
}

/// What is read of a line: a record of an image, with the label.
#[derive(Debug, Deserialize)]
struct LabelRow {
    prompt: String,
    prompt_index: usize,
    image_index: usize,
    seed: u64,
    steps: usize,
    guidance: f64,
    sampler: String,
    adapters: Vec<String>,
    label: Option<f64>,
}

impl LabelRow {
    /// Why the image is not one that rollouts would make of the initial policy.
    fn foreign(&self, config: &RolloutConfig) -> Option<(String, &'static str)> {
        if (self.steps, self.guidance, self.sampler.as_str()) != (config.steps, config.guidance, "ddim") {
            let what = format!(
                "is of an image made in {} steps of {} at guidance {}; rollout says {} steps of ddim at guidance {}",
                self.steps, self.sampler, self.guidance, config.steps, config.guidance
            );
            let remedy = "Set rollout.steps and rollout.guidance as the images were made, with --sampler ddim and --eta.";
            return Some((what, remedy));
        }
        (!self.adapters.is_empty()).then(|| {
            let what = format!("is of an image made with {}", self.adapters.join(", "));
            (what, "Label images of the model alone: training begins with it.")
        })
    }
}

impl Labels {
    /// Reads a file: its prompts by their positions, and the labels.
    ///
    /// # Errors
    /// It cannot be read, a line is not a labelled record, or is of an image that rollouts would not make; names the line.
    pub fn read(path: &Path, config: &RolloutConfig) -> Result<(BTreeMap<usize, String>, Self)> {
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
            if let Some((what, remedy)) = row.foreign(config) {
                return bad(what, remedy);
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
        if let Some(count) = config.count
            && let Some(end) = texts.keys().nth(count).copied()
        {
            texts.split_off(&end);
            by_prompt.split_off(&end);
        }
        Ok((texts, Self { by_prompt, seed }))
    }

    /// Refuses a folder of images that were made otherwise than rollouts of `model` would make them, as far as a
    /// `generate.json` beside the labels tells.
    ///
    /// # Errors
    /// Names the first setting that differs.
    pub fn check_settings(config: &RolloutConfig, model: &ModelFolder) -> Result<()> {
        let Some(path) = &config.labels else { return Ok(()) };
        let Some((file, there)) = Settings::beside(path)? else {
            return Ok(());
        };
        let wanted = Settings {
            model_hash: Settings::hash_of(model)?,
            adapter_hashes: Vec::new(),
            negative: config.negative.clone(),
            eta: config.eta,
            guidance_rescale: 0.0,
            clip_skip: 0,
            ..there.clone()
        };
        match there.difference(&wanted) {
            None => Ok(()),
            Some((name, images, rollouts)) => Err(Error::bad(
                file.display().to_string(),
                format!(
                    "the labelled images were made with {name} {images}, and rollouts would be with {rollouts}"
                ),
                "Set model and rollout as the images were made, or label images of these settings.",
            )),
        }
    }

    /// Label of an image.
    pub fn of(&self, key: ImageKey) -> Option<f64> {
        let rated = self.by_prompt.get(&key.prompt)?;
        rated
            .iter()
            .find(|(image, _)| *image == key.image)
            .map(|(_, label)| *label)
    }

    /// The labelled images of a prompt.
    pub fn images(&self, prompt: usize) -> impl Iterator<Item = ImageKey> {
        let of_prompt = self.by_prompt.get(&prompt).into_iter().flatten();
        of_prompt.map(move |(image, _)| ImageKey {
            prompt,
            image: *image,
        })
    }

    /// Source of the images' noise.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Feeds all labels.
    pub fn hash(&self, hasher: &mut blake3::Hasher) {
        for (prompt, images) in &self.by_prompt {
            for (image, label) in images {
                hasher.update(&(*prompt as u64).to_le_bytes());
                hasher.update(&(*image as u64).to_le_bytes());
                hasher.update(&label.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::prompts::Prompts;
    use super::*;
    use crate::rng::Streams;

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
            ..RolloutConfig::default()
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
            (
                row(0, 20, 7, ", \"label\": 1").replace("[]", "[\"a.safetensors\"]"),
                "labels.jsonl:1: is of an image made with a.safetensors",
            ),
            (row(0, 20, 7, ""), "holds no labelled image"),
            ("{}".to_owned(), "labels.jsonl:1: is not a line of images.jsonl"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
