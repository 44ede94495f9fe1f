//! The scores of a model's images: computed once, then read from `scores.jsonl`.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::EvalOptions;
use super::images::{ModelImages, SlotImage};
use super::manifest::ModelIdentity;
use super::sets::SetMetrics;
use crate::fsutil::write_atomically;
use crate::prompts::Prompt;
use crate::score::source::{Picture, Record};
use crate::score::{Scored, Scorer};
use crate::{Error, Result};

/// A model's folder holds this list.
pub const FILE: &str = "scores.jsonl";

/// What the list was made from; written after it.
const KEY_FILE: &str = "scores.key";

/// An image and its scores: a line of `scores.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreRow {
    /// Path relative to the model's folder, or an absolute one.
    pub file: String,
    /// Prompt.
    pub prompt: String,
    /// Position of the prompt in the list.
    pub prompt_index: usize,
    /// Number of the image among those of prompt and seed.
    pub image_index: usize,
    /// Seed.
    pub seed: u64,
    /// Fields of the prompt as text, then scores by the names of their rewards; `null` where a picture could not be scored.
    #[serde(flatten)]
    pub values: IndexMap<String, Value>,
}

impl ScoreRow {
    /// The score by a reward.
    pub fn score(&self, reward: &str) -> Option<f64> {
        self.values.get(reward).and_then(Value::as_f64)
    }

    /// A field of the prompt.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.values.get(name).and_then(Value::as_str)
    }

    fn new(scored: Scored, prompt: &Prompt, image: &SlotImage, rewards: &[String]) -> Self {
        let field = |(name, value): (&String, &String)| {
            let taken = rewards.contains(name) || OWN_KEYS.contains(&name.as_str());
            let name = if taken {
                format!("prompt.{name}")
            } else {
                name.clone()
            };
            (name, Value::from(value.as_str()))
        };
        let fields = prompt.fields.iter().map(field);
        let scores = rewards.iter().zip(scored.scores);
        let scores = scores.map(|(name, score)| (name.clone(), score.map_or(Value::Null, Value::from)));
        Self {
            file: image.file.clone(),
            prompt: prompt.text.clone(),
            prompt_index: image.slot.prompt_index,
            image_index: image.slot.image_index,
            seed: image.slot.seed,
            values: fields.chain(scores).collect(),
        }
    }
}

/// Keys of a row that no field may take.
const OWN_KEYS: [&str; 5] = ["file", "prompt", "prompt_index", "image_index", "seed"];

/// A model and the scores of its images, by seed, prompt and number.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelScores {
    /// The model.
    pub identity: ModelIdentity,
    /// Its images with their scores.
    pub rows: Vec<ScoreRow>,
    /// Metrics of its images as a set.
    pub sets: SetMetrics,
}

/// Scores the images of a model, unless that was done already.
pub(super) fn of_model(
    model: &ModelImages,
    prompts: &[Prompt],
    scorer: &mut Scorer,
    folder: &Path,
    options: &EvalOptions,
) -> Result<Vec<ScoreRow>> {
    let key = key(model, prompts, scorer)?;
    let key_path = folder.join(KEY_FILE);
    let done = std::fs::read_to_string(&key_path).is_ok_and(|there| there == key);
    match done {
        true => read(folder),
        false => {
            let rows = score(model, prompts, scorer, options)?;
            write_atomically(&folder.join(FILE), &lines(&rows))?;
            write_atomically(&key_path, key.as_bytes())?;
            Ok(rows)
        }
    }
}

/// Identity of the scores: images and their places, prompts, rewards.
fn key(model: &ModelImages, prompts: &[Prompt], scorer: &Scorer) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for image in &model.images {
        let slot = image.slot;
        let prompt = serde_json::to_vec(&prompts[slot.prompt_index]).expect("prompts have string keys only");
        let place = [slot.seed, slot.prompt_index as u64, slot.image_index as u64];
        place.iter().for_each(|number| {
            hasher.update(&number.to_le_bytes());
        });
        hasher
            .update(&image.hash)
            .update(blake3::hash(&prompt).as_bytes());
        hasher.update(blake3::hash(image.file.as_bytes()).as_bytes());
    }
    for reward in scorer.rewards() {
        hasher.update(blake3::hash(reward.manifest().name.as_bytes()).as_bytes());
        hasher.update(&reward.hash()?.0);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn score(
    model: &ModelImages,
    prompts: &[Prompt],
    scorer: &mut Scorer,
    options: &EvalOptions,
) -> Result<Vec<ScoreRow>> {
    let rewards: Vec<String> = scorer.names().into_iter().map(str::to_owned).collect();
    let records: Vec<Result<Record>> = model
        .images
        .iter()
        .map(|image| {
            Ok(Record {
                file: image.file.clone(),
                picture: Picture::File(image.path.clone()),
                prompt: Some(prompts[image.slot.prompt_index].text.clone()),
                fields: IndexMap::new(),
            })
        })
        .collect();
    let name = &model.identity.name;
    let mut job = options
        .console
        .job(&format!("scores of {name}"), records.len() as u64);
    let mut rows = Vec::with_capacity(records.len());
    scorer.score_records(Box::new(records.into_iter()), options.stop, |scored| {
        if let Some(problem) = &scored.problem {
            job.say(&format!("{}: {problem}", scored.record.file));
        }
        let image = &model.images[rows.len()];
        rows.push(ScoreRow::new(
            scored,
            &prompts[image.slot.prompt_index],
            image,
            &rewards,
        ));
        job.advance(rows.len() as u64, "");
        Ok(())
    })?;
    Ok(rows)
}

/// The list as it is written.
pub(super) fn lines(rows: &[ScoreRow]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut bytes, row).expect("rows have string keys only");
        bytes.push(b'\n');
    }
    bytes
}

/// Reads the scores in a model's folder.
///
/// # Errors
/// There are none, or they are damaged.
pub fn read(folder: &Path) -> Result<Vec<ScoreRow>> {
    let path: PathBuf = folder.join(FILE);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
    let row = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| {
            Error::bad(
                format!("{}, line {}", path.display(), number + 1),
                format!("is no row of scores: {error}"),
                "Delete the file and run the evaluation again.",
            )
        })
    };
    text.lines().enumerate().map(row).collect()
}
