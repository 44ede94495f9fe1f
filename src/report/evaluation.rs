//! The folder of an evaluation (`ortdpo eval`).
//!
//! ```text
//! results.json                        what was found
//! manifest.json                       what it was made of; `baseline` is what other models are compared with
//! table.csv                           the table that people publish
//! models/NAME/scores.jsonl            a line per image: file, prompt, prompt_index, image_index, seed, a number per reward
//! models/NAME/seed-S/images.jsonl     the images alone, until they are scored
//! ```
//!
//! Only `results.json` or a model's images or scores have to be there.

use std::fs;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::results::Results;
use super::run;
use crate::{Error, Result};

/// Keys of an image's line that are numbers and yet no scores.
const NO_SCORES: [&str; 6] = ["prompt_index", "image_index", "seed", "steps", "guidance", "eta"];

/// What an evaluation left.
#[derive(Debug)]
pub struct Evaluation {
    /// What it is called in the report.
    pub name: String,
    /// `results.json` as it is.
    pub results: Option<Value>,
    pub manifest: Option<Value>,
    /// `table.csv`.
    pub table: Option<PrintedTable>,
    /// The baseline first.
    pub models: Vec<Model>,
    /// Rewards in the order in which the scores list them.
    pub rewards: Vec<String>,
    /// What was found wanting.
    pub notes: Vec<String>,
}

/// The head of a table and its rows.
pub type PrintedTable = (Vec<String>, Vec<Vec<String>>);

/// The images of a model.
#[derive(Debug)]
pub struct Model {
    pub name: String,
    /// By what they show, in the order of the file.
    pub images: IndexMap<ImageKey, Image>,
}

/// Which image of which prompt. Images of different models with the same key start from the same noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageKey {
    pub prompt: PromptIndex,
    pub seed: u64,
    pub image_index: u64,
}

/// Position of a prompt in the evaluation's list.
pub type PromptIndex = u64;

/// One image.
#[derive(Debug)]
pub struct Image {
    pub file: PathBuf,
    pub prompt: String,
    /// By reward.
    pub scores: IndexMap<String, f64>,
}

impl Evaluation {
    /// Whether the folder holds an evaluation.
    pub fn is_at(folder: &Path) -> bool {
        let models = subfolders(&folder.join("models"));
        folder.join("results.json").is_file() || models.iter().any(|model| !image_lists(model).is_empty())
    }

    /// Reads the folder.
    ///
    /// # Errors
    /// One of the files cannot be read or is damaged.
    pub fn read(folder: &Path, name: String) -> Result<Self> {
        let results = run::json(&folder.join("results.json"))?;
        let mut models = Vec::new();
        for path in subfolders(&folder.join("models")) {
            models.push(Model::read(&path)?);
        }
        models.retain(|model| !model.images.is_empty());
        let manifest = run::json(&folder.join("manifest.json"))?;
        let baseline = manifest
            .as_ref()
            .and_then(|m| m["baseline"].as_str())
            .map(String::from);
        let order = listed(manifest.as_ref(), "models");
        models.sort_by_key(|model| {
            let place = order.iter().position(|name| *name == model.name);
            (
                Some(&model.name) != baseline.as_ref(),
                place.unwrap_or(usize::MAX),
            )
        });
        let mut rewards = listed(manifest.as_ref(), "rewards");
        for reward in models.iter().flat_map(Model::rewards) {
            if !rewards.contains(reward) {
                rewards.push(reward.clone());
            }
        }
        let mut notes = Vec::new();
        if results.is_none() {
            notes.push(format!(
                "{name}: there is no results.json; the evaluation has not finished."
            ));
        }
        Ok(Self {
            results,
            manifest,
            table: csv_table(&folder.join("table.csv"))?,
            models,
            rewards,
            notes,
            name,
        })
    }

    /// `results.json` as far as this version understands it.
    pub fn results(&self) -> Option<Results> {
        Results::deserialize(self.results.as_ref()?).ok()
    }

    /// The model that others are compared with.
    pub fn baseline(&self) -> Option<&Model> {
        self.models.first()
    }

    /// The models that are compared with the baseline.
    pub fn others(&self) -> &[Model] {
        self.models.get(1..).unwrap_or(&[])
    }

    /// Digits behind the point that scores by a reward are shown with: a hundredth of their standard deviation shows.
    pub fn digits(&self, reward: &str) -> usize {
        let images = self.models.iter().flat_map(|model| model.images.values());
        let scores: Vec<f64> = images
            .filter_map(|image| image.scores.get(reward).copied())
            .collect();
        let n = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / n;
        let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / n;
        match variance > 0.0 {
            true => (2.0 - variance.sqrt().log10().floor()).clamp(0.0, 6.0) as usize,
            false => 3,
        }
    }

    /// Every prompt that some model has images of, in order, with its text.
    pub fn prompts(&self) -> Vec<(PromptIndex, &str)> {
        let mut prompts = IndexMap::new();
        for (key, image) in self.models.iter().flat_map(|model| &model.images) {
            prompts.entry(key.prompt).or_insert(image.prompt.as_str());
        }
        prompts.sort_keys();
        prompts.into_iter().collect()
    }
}

impl Model {
    fn read(folder: &Path) -> Result<Self> {
        let mut model = Self {
            name: file_name(folder),
            images: IndexMap::new(),
        };
        for list in image_lists(folder) {
            model.add(&list)?;
        }
        Ok(model)
    }

    /// Adds the images of a list.
    fn add(&mut self, list: &Path) -> Result<()> {
        let text = std::fs::read_to_string(list).map_err(Error::io(list, "read"))?;
        let folder = list.parent().unwrap_or(Path::new("."));
        for (i, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
        {
            let fields: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
                let place = format!("{}:{}", list.display(), i + 1);
                Error::bad(
                    place,
                    format!("is not a JSON object: {error}"),
                    "Mend or delete the line.",
                )
            })?;
            let number = |key: &str| fields.get(key).and_then(Value::as_u64);
            let word = |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or_default();
            let key = ImageKey {
                prompt: number("prompt_index").unwrap_or(i as u64),
                seed: number("seed").unwrap_or(0),
                image_index: number("image_index").unwrap_or(0),
            };
            let scores = fields
                .iter()
                .filter(|(key, _)| !NO_SCORES.contains(&key.as_str()));
            let image = Image {
                file: folder.join(word("file")),
                prompt: word("prompt").to_owned(),
                scores: scores
                    .filter_map(|(key, value)| Some((key.clone(), value.as_f64()?)))
                    .collect(),
            };
            self.images.insert(key, image);
        }
        Ok(())
    }

    fn rewards(&self) -> impl Iterator<Item = &String> {
        self.images.values().flat_map(|image| image.scores.keys())
    }

    /// Keys of a prompt's images.
    pub fn of_prompt(&self, prompt: PromptIndex) -> impl Iterator<Item = ImageKey> {
        self.images
            .keys()
            .copied()
            .filter(move |key| key.prompt == prompt)
    }

    /// Mean score of every prompt's images.
    pub fn prompt_means(&self, reward: &str) -> IndexMap<PromptIndex, f64> {
        let mut sums: IndexMap<PromptIndex, (f64, f64)> = IndexMap::new();
        for (key, image) in &self.images {
            if let Some(score) = image.scores.get(reward) {
                let (sum, n) = sums.entry(key.prompt).or_default();
                *sum += score;
                *n += 1.0;
            }
        }
        sums.into_iter()
            .map(|(prompt, (sum, n))| (prompt, sum / n))
            .collect()
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Folders in a folder, by name; none if it cannot be read.
fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    folders
}

/// The files that list a model's images: its scores, or the lists of each seed as long as there are none.
fn image_lists(model: &Path) -> Vec<PathBuf> {
    let scores = model.join("scores.jsonl");
    if scores.is_file() {
        return vec![scores];
    }
    let folders = [model.to_path_buf()].into_iter().chain(subfolders(model));
    folders
        .map(|folder| folder.join("images.jsonl"))
        .filter(|list| list.is_file())
        .collect()
}

/// Names in a list of the manifest, whose entries are names or objects with one.
fn listed(manifest: Option<&Value>, key: &str) -> Vec<String> {
    let entries = manifest.and_then(|m| m[key].as_array()).into_iter().flatten();
    let name = |entry: &Value| {
        entry
            .as_str()
            .or_else(|| entry["name"].as_str())
            .map(String::from)
    };
    entries.filter_map(name).collect()
}

fn csv_table(path: &Path) -> Result<Option<PrintedTable>> {
    let Some(text) = run::text(path)? else {
        return Ok(None);
    };
    let damaged = |error: csv::Error| {
        let what = format!("is not a CSV table: {error}");
        Error::bad(
            path.display().to_string(),
            what,
            "Make it anew with `ortdpo eval`.",
        )
    };
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let words = |record: &csv::StringRecord| record.iter().map(String::from).collect();
    let head = words(reader.headers().map_err(damaged)?);
    let rows: csv::Result<Vec<_>> = reader.records().map(|record| Ok(words(&record?))).collect();
    Ok(Some((head, rows.map_err(damaged)?)))
}
