//! `rows.jsonl`: a line for every finished or failed run, with all numbers that tables are made of. It can be committed, and the
//! tables made anew from it alone.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::arms::Choice;
use crate::eval::manifest::Versions;
use crate::fsutil::write_atomically;
use crate::{Error, Result};

/// What a run is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Choosing hyperparameters.
    Tuning,
    /// The final table.
    Final,
}

/// Which run of an ablation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunId {
    /// Method.
    pub method: String,
    /// Strategy.
    pub strategy: String,
    /// Values of the tuned keys.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub choice: Choice,
    /// Seed of training.
    pub seed: u64,
}

impl RunId {
    /// What people read: `dpo + ema, seed 0`, with the tuned values while they are chosen.
    pub fn name(&self, phase: Phase) -> String {
        let Self {
            method,
            strategy,
            choice,
            seed,
        } = self;
        match phase {
            Phase::Final => format!("{method} + {strategy}, seed {seed}"),
            Phase::Tuning => format!("tuning {method} + {strategy}, {}, seed {seed}", in_words(choice)),
        }
    }
}

/// `optimizer.lr 0.0001, objective.beta 2000`.
pub(super) fn in_words(choice: &Choice) -> String {
    let parts: Vec<String> = choice
        .iter()
        .map(|(path, value)| format!("{path} {value}"))
        .collect();
    parts.join(", ")
}

/// A run and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Hash of settings, files and program revision: a run with this key need not run again.
    pub key: String,
    /// Hash of what the configuration says of the run.
    pub settings: String,
    /// What it was for.
    pub phase: Phase,
    /// Which run; none for the initial model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Seconds that it took, all parts together.
    pub seconds: f64,
    /// What computed.
    pub versions: Versions,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Outcome {
    /// It was trained and judged.
    Finished {
        /// Training; none for the initial model.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        training: Option<Training>,
        /// What its images were worth.
        evaluation: Box<Scores>,
    },
    /// It diverged.
    Failed {
        /// What the guard said.
        reason: String,
    },
}

/// What training said of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Optimizer steps.
    pub steps: u64,
    /// Seconds of training, with its own evaluations.
    pub seconds: f64,
    /// Points (step, value) of all that was measured at evaluations, by the names in the log.
    pub curves: IndexMap<String, Vec<(u64, f64)>>,
}

/// What images were worth.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// The prompts; with the initial model only, since all runs have the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// Images of each prompt: seeds times images of each seed.
    pub images_per_prompt: usize,
    /// By the names of the rewards a number per image, prompt by prompt, to six digits; `null` where there is none.
    pub rewards: IndexMap<String, Vec<Option<f64>>>,
    /// Metrics of the images as a set, by name.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub sets: IndexMap<String, f64>,
}

impl Row {
    /// The scores, if it finished.
    pub fn scores(&self) -> Option<&Scores> {
        match &self.outcome {
            Outcome::Finished { evaluation, .. } => Some(evaluation),
            Outcome::Failed { .. } => None,
        }
    }

    /// What training said, if it finished.
    pub fn training(&self) -> Option<&Training> {
        match &self.outcome {
            Outcome::Finished { training, .. } => training.as_ref(),
            Outcome::Failed { .. } => None,
        }
    }

    /// Why it failed, if it did.
    pub fn failure(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Finished { .. } => None,
            Outcome::Failed { reason } => Some(reason),
        }
    }
}

/// All rows so far.
#[derive(Debug)]
pub struct Rows {
    path: PathBuf,
    rows: Vec<Row>,
    /// Position of the newest row of a key.
    by_key: HashMap<String, usize>,
}

impl Rows {
    /// Reads the file, if there is one. A last line that was cut off is left out.
    ///
    /// # Errors
    /// It cannot be read, or another line is damaged.
    pub fn read(path: &Path) -> Result<Self> {
        let mut rows = Self {
            path: path.to_path_buf(),
            rows: Vec::new(),
            by_key: HashMap::new(),
        };
        if !path.exists() {
            return Ok(rows);
        }
        let text = fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let count = text.lines().count();
        for (number, line) in text.lines().enumerate() {
            match serde_json::from_str(line) {
                Ok(row) => rows.put(row),
                // Whoever was stopped in the middle of a line writes it again.
                Err(_) if number + 1 == count && !text.ends_with('\n') => {}
                Err(error) => {
                    return Err(Error::bad(
                        format!("{}:{}", path.display(), number + 1),
                        format!("is no row of an ablation: {error}"),
                        "Delete the line; its run is then done again.",
                    ));
                }
            }
        }
        Ok(rows)
    }

    fn put(&mut self, row: Row) {
        let position = self.rows.len();
        self.by_key.insert(row.key.clone(), position);
        self.rows.push(row);
    }

    /// Adds a row, in the file too.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, row: Row) -> Result<()> {
        let line = line(&row);
        self.put(row);
        let ends_whole = fs::read(&self.path).is_ok_and(|bytes| bytes.ends_with(b"\n"));
        if !ends_whole {
            let all: Vec<u8> = self.rows.iter().flat_map(self::line).collect();
            return write_atomically(&self.path, &all);
        }
        let mut file = OpenOptions::new()
            .append(true)
            .open(&self.path)
            .map_err(Error::io(&self.path, "write"))?;
        file.write_all(&line)
            .and_then(|()| file.sync_data())
            .map_err(Error::io(&self.path, "write"))
    }

    /// The newest row with this key.
    pub fn by_key(&self, key: &str) -> Option<&Row> {
        self.by_key.get(key).map(|position| &self.rows[*position])
    }

    /// The newest row of a run (none for the initial model) with these settings; else, of whatever settings.
    pub fn of(&self, phase: Phase, run: Option<&RunId>, settings: &str) -> Option<&Row> {
        let is_of = |row: &&Row| row.phase == phase && row.run.as_ref() == run;
        let newest_first = || self.rows.iter().rev().filter(is_of);
        let same = newest_first().find(|row| row.settings == settings);
        same.or_else(|| newest_first().next())
    }

    /// Every row, the oldest first.
    pub fn all(&self) -> &[Row] {
        &self.rows
    }
}

fn line(row: &Row) -> Vec<u8> {
    let mut line = serde_json::to_vec(row).expect("rows have text keys only");
    line.push(b'\n');
    line
}

/// A number to six digits: what a score is worth telling, and the same for every reader of the rows.
pub(super) fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}
