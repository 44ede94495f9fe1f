//! The training of one run: begun, resumed or found finished.

use std::fs;
use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::AblateOptions;
use super::rows::{Training, rounded};
use crate::config::TrainPlan;
use crate::train::checkpoint::CheckpointStore;
use crate::train::summary::Summary;
use crate::train::{self, RunOptions};
use crate::{Error, Result};

/// How far a training is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is there.
    None,
    /// It was interrupted after this step.
    Step(u64),
    /// It is done.
    Finished,
}

/// How far the training in `folder` is.
///
/// # Errors
/// The folder cannot be read.
pub(super) fn progress(folder: &Path) -> Result<Progress> {
    if folder.join("summary.json").is_file() {
        return Ok(Progress::Finished);
    }
    let latest = CheckpointStore::new(folder.join("checkpoints"), 1).latest()?;
    Ok(latest.map_or(Progress::None, Progress::Step))
}

/// Trains into `folder`, or goes on with what is there.
///
/// # Errors
/// [`Error::Diverged`]; [`Error::Interrupted`], after which the same call goes on; or as [`train::run`].
pub(super) fn train(plan: &TrainPlan, folder: &Path, options: &AblateOptions) -> Result<Training> {
    let progress = progress(folder)?;
    if progress == Progress::None && folder.exists() {
        // It was killed before its first checkpoint.
        fs::remove_dir_all(folder).map_err(Error::io(folder, "remove"))?;
    }
    if progress != Progress::Finished {
        let options = RunOptions {
            record: None,
            output: folder.to_path_buf(),
            resume: progress != Progress::None,
            console: options.console,
            stop: options.stop,
        };
        train::run(plan, &options)?;
    }
    found(folder)
}

/// What a finished training said of itself.
fn found(folder: &Path) -> Result<Training> {
    let path = folder.join("summary.json");
    let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
    let summary: Summary = serde_json::from_slice(&bytes).map_err(|error| damaged(&path, &error))?;
    let mut curves: IndexMap<String, Vec<(u64, f64)>> = IndexMap::new();
    if let Some(initial) = summary.initial {
        curves.insert("acc_init".into(), vec![(0, rounded(initial.acc_init))]);
        curves.insert("margin_init".into(), vec![(0, rounded(initial.margin_init))]);
    }
    for (name, value) in &summary.initial_pictures {
        curves.insert(name.clone(), vec![(0, rounded(*value))]);
    }
    let path = folder.join("metrics.jsonl");
    let text = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
    for line in text.lines() {
        let line: Map<String, Value> = serde_json::from_str(line).map_err(|error| damaged(&path, &error))?;
        let step = line.get("step").and_then(Value::as_u64).unwrap_or_default();
        for (name, value) in line.iter().filter(|(name, _)| is_curve(name)) {
            if let Some(value) = value.as_f64() {
                curves
                    .entry(name.clone())
                    .or_default()
                    .push((step, rounded(value)));
            }
        }
    }
    Ok(Training {
        steps: summary.steps,
        seconds: (10.0 * summary.seconds).round() / 10.0,
        curves,
    })
}

/// What is measured at evaluations and told of in the results.
fn is_curve(name: &str) -> bool {
    ["acc_init", "margin_init", "kl_ref_init", "d_ref_init"].contains(&name)
        || name.starts_with("reward.")
        || name.starts_with("diversity.")
}

fn damaged(path: &Path, error: &serde_json::Error) -> Error {
    Error::bad(
        path.display().to_string(),
        format!("is not what a training leaves: {error}"),
        "Delete the run's folder; it is then trained again.",
    )
}
