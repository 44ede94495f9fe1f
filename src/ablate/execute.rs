//! Doing what is not done yet: a row for every run.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::AblateOptions;
use super::estimate::Estimate;
use super::identity::{self, Files};
use super::plan::{AblationPlan, BASE, Run};
use super::rows::{Outcome, Phase, Row, Rows, Scores, rounded};
use super::training;
use crate::eval::config::{EvalPlan, ImageSource, ModelPlan};
use crate::eval::manifest::Versions;
use crate::eval::scores::ModelScores;
use crate::eval::{self, EvalOptions};
use crate::pipeline::AdapterRef;
use crate::{Error, Result, runtime};

/// Runs an ablation in a folder.
pub(super) struct Executor<'a> {
    plan: &'a AblationPlan,
    output: &'a Path,
    options: &'a AblateOptions<'a>,
    files: Files,
    estimate: Estimate,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has a row.
    Finished,
    /// It has a row that says it diverged.
    Failed,
    /// It has none; its training is so far.
    Open(training::Progress),
}

impl<'a> Executor<'a> {
    pub fn new(plan: &'a AblationPlan, output: &'a Path, options: &'a AblateOptions<'a>) -> Self {
        Self {
            plan,
            output,
            options,
            files: Files::default(),
            estimate: Estimate::default(),
        }
    }

    /// How far a run is, and its row if it has one.
    ///
    /// # Errors
    /// A file that it depends on cannot be read.
    pub fn state<'r>(&mut self, run: &Run, rows: &'r Rows) -> Result<(State, Option<&'r Row>)> {
        match rows.by_key(&self.key(run)?) {
            Some(row) if row.failure().is_some() => Ok((State::Failed, Some(row))),
            Some(row) => Ok((State::Finished, Some(row))),
            None => Ok((State::Open(training::progress(&self.folder(run)?)?), None)),
        }
    }

    /// The rows of `runs`, in their order, and that of the initial model first. What has no row yet is done and appended.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; or something is wrong that would hold for other runs too. A run that diverges is no error.
    pub fn rows_of(&mut self, phase: Phase, runs: &[Run], rows: &mut Rows) -> Result<Vec<Row>> {
        let mut found = vec![self.base(phase, rows)?];
        self.estimate.learn(rows.all());
        for (number, run) in runs.iter().enumerate() {
            let key = self.key(run)?;
            if let Some(row) = rows.by_key(&key) {
                found.push(row.clone());
                continue;
            }
            let mut left = 0;
            for later in &runs[number..] {
                left += usize::from(rows.by_key(&self.key(later)?).is_none());
            }
            let time_left = self.estimate.of(phase, left);
            let what = format!("run {} of {}, {}", number + 1, runs.len(), run.name());
            self.options.console.say(&format!("{what}{time_left}"));
            let row = self.run(run, key).map_err(|error| stopped(error, &what))?;
            if let Some(reason) = row.failure() {
                self.options.console.say(&format!("{what} failed: {reason}"));
            }
            self.estimate.learn(std::slice::from_ref(&row));
            rows.append(row.clone())?;
            found.push(row);
        }
        Ok(found)
    }

    fn run(&mut self, run: &Run, key: String) -> Result<Row> {
        let began = Instant::now();
        let folder = self.folder(run)?;
        let outcome = match training::train(&run.training, &folder, self.options) {
            Err(Error::Diverged(said)) => Outcome::Failed {
                reason: first_sentence(&said),
            },
            Err(error) => return Err(error),
            Ok(trained) => {
                let adapter = AdapterRef {
                    path: folder.clone(),
                    scale: 1.0,
                };
                let name = file_name(&folder);
                Outcome::Finished {
                    training: Some(trained),
                    evaluation: Box::new(self.judge(run.phase, &name, vec![adapter])?),
                }
            }
        };
        // A training that was resumed has counted its earlier parts itself.
        let earlier = match &outcome {
            Outcome::Finished {
                training: Some(training),
                ..
            } => training.seconds,
            _ => 0.0,
        };
        Ok(Row {
            key,
            settings: run.settings.clone(),
            phase: run.phase,
            run: Some(run.id.clone()),
            seconds: seconds(began).max(earlier),
            versions: versions(),
            outcome,
        })
    }

    /// The row of the initial model.
    fn base(&mut self, phase: Phase, rows: &mut Rows) -> Result<Row> {
        let began = Instant::now();
        let evaluation = self.plan.evaluation_of(phase);
        let settings = identity::settings(None, evaluation);
        let files = self.files.of_evaluation(evaluation, &self.plan.model)?;
        let key = identity::key(&settings, &files);
        if let Some(row) = rows.by_key(&key) {
            return Ok(row.clone());
        }
        let judged = self.judge(phase, BASE, Vec::new());
        let mut scores = judged.map_err(|error| stopped(error, "the images of the initial model"))?;
        scores.prompts = evaluation
            .prompts
            .iter()
            .map(|prompt| prompt.text.clone())
            .collect();
        let row = Row {
            key,
            settings,
            phase,
            run: None,
            seconds: seconds(began),
            versions: versions(),
            outcome: Outcome::Finished {
                training: None,
                evaluation: Box::new(scores),
            },
        };
        rows.append(row.clone())?;
        Ok(row)
    }

    /// Makes and scores a model's images.
    fn judge(&mut self, phase: Phase, name: &str, adapters: Vec<AdapterRef>) -> Result<Scores> {
        let evaluation = self.plan.evaluation_of(phase);
        let model = &self.plan.model;
        let images = identity::images(evaluation, &self.files.model(model)?);
        let of_model = EvalPlan {
            models: vec![ModelPlan {
                name: name.to_owned(),
                source: ImageSource::Pipeline {
                    model: model.clone(),
                    adapters,
                },
            }],
            baseline: None,
            ..evaluation.clone()
        };
        let options = EvalOptions {
            console: self.options.console,
            stop: self.options.stop,
        };
        let (manifest, mut models) =
            eval::measure(&of_model, &self.output.join("images").join(images), &options)?;
        let measured = models.swap_remove(0);
        Ok(scores(&measured, &manifest.reward_names(), evaluation))
    }

    fn key(&mut self, run: &Run) -> Result<String> {
        let evaluation = self.plan.evaluation_of(run.phase);
        let files = self.files.of_training(&run.training)?
            + &self.files.of_evaluation(evaluation, &self.plan.model)?;
        Ok(identity::key(&run.settings, &files))
    }

    /// Where a run is trained.
    fn folder(&mut self, run: &Run) -> Result<PathBuf> {
        let files = self.files.of_training(&run.training)?;
        let id = &run.id;
        let hash = identity::training(&run.training, &files);
        let name = format!("{}-{}-seed-{}-{hash}", id.method, id.strategy, id.seed);
        Ok(self.output.join("runs").join(name))
    }
}

/// Scores of every image, prompt by prompt.
fn scores(model: &ModelScores, rewards: &[&str], evaluation: &EvalPlan) -> Scores {
    let of_seed = evaluation.images_per_prompt;
    let per_prompt = evaluation.seeds.len() * of_seed;
    let mut all = vec![vec![None; evaluation.prompts.len() * per_prompt]; rewards.len()];
    for row in &model.rows {
        let Some(seed) = evaluation.seeds.iter().position(|seed| *seed == row.seed) else {
            continue;
        };
        let place = row.prompt_index * per_prompt + seed * of_seed + row.image_index;
        for (values, reward) in all.iter_mut().zip(rewards) {
            values[place] = row.score(reward).map(rounded);
        }
    }
    let named = rewards.iter().map(|name| (*name).to_owned());
    Scores {
        prompts: Vec::new(),
        images_per_prompt: per_prompt,
        rewards: named.zip(all).collect(),
        sets: model
            .sets
            .iter()
            .map(|(name, value)| (name.clone(), rounded(*value)))
            .collect(),
    }
}

/// What an interrupted ablation says.
fn stopped(error: Error, what: &str) -> Error {
    match error {
        Error::Interrupted(_) => {
            Error::Interrupted(format!("stopped in {what}; the same command goes on from there"))
        }
        other => other,
    }
}

/// What happened; the advice behind it is for people who train a single run.
fn first_sentence(text: &str) -> String {
    text.split(". ").next().unwrap_or(text).to_owned()
}

fn seconds(began: Instant) -> f64 {
    (10.0 * began.elapsed().as_secs_f64()).round() / 10.0
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn versions() -> Versions {
    Versions {
        ortdpo: env!("CARGO_PKG_VERSION").to_owned(),
        onnxruntime: runtime::info().map(|info| info.version().to_owned()),
    }
}
