//! Comparing models: the same prompts and noise through each, the same rewards, the table that people publish.
//!
//! ```text
//! config ─► EvalPlan ─► images.rs: generate, or pictures made elsewhere ─► DIR/models/NAME/seed-S/
//!                            └─► scores.rs: every picture by every reward ─► DIR/models/NAME/scores.jsonl
//!                                     └─► results.rs: means, win rates, intervals ─► DIR/results.json, table.*
//! manifest.rs: all that results depend on ─► DIR/manifest.json; merge.rs: tables of equal manifests together
//! ```
//!
//! Images are paired: those of one seed, prompt and number start from the same noise in every model. Everything is kept
//! and found again: a model that is added is the only one that runs.

pub mod config;
mod images;
pub mod manifest;
pub mod merge;
pub mod results;
pub mod scores;
pub mod sets;
mod sheet;
pub mod tables;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::fsutil::{remove_leftovers, write_atomically};
use crate::model_folder::ModelFolder;
use crate::pipeline::Pipeline;
use crate::progress::Console;
use crate::reward::RewardModel;
use crate::runtime::{Arena, SessionOptions};
use crate::score::Scorer;
use crate::table::Format;
use crate::{Error, Result};
use config::{EvalPlan, ImageSource};
use manifest::Manifest;
use results::Results;
use scores::ModelScores;
use sets::{SetMeasure, SetMetrics};

/// What an evaluation is run with, apart from what is in it.
#[derive(Debug, Clone, Copy)]
pub struct EvalOptions<'a> {
    /// Where progress is shown.
    pub console: Console,
    /// Asks the run to end; what is done is kept.
    pub stop: &'a AtomicBool,
}

/// Runs what is not there yet and writes the results into `output`.
///
/// # Errors
/// A model or a reward cannot be loaded; pictures and prompts do not pair up; the disk is full; or
/// [`Error::Interrupted`]. After the last two the same call goes on where it stopped.
pub fn run(plan: &EvalPlan, output: &Path, options: &EvalOptions) -> Result<Results> {
    let (manifest, scored) = measure(plan, output, options)?;
    finish(&manifest, &scored, output)
}

/// Makes and scores the images of all models in `output`, as far as that was not done yet.
///
/// # Errors
/// As [`run`].
pub fn measure(
    plan: &EvalPlan,
    output: &Path,
    options: &EvalOptions,
) -> Result<(Manifest, Vec<ModelScores>)> {
    let session = SessionOptions {
        ep: plan.runtime.ep,
        threads: plan.runtime.threads,
        arena: Arena::Shared,
        ..SessionOptions::default()
    };
    let cache = output.join(".features");
    check_files(plan)?;
    // What is wrong with rewards is said before hours of generation, which then need the memory.
    drop(Scorer::open(&plan.rewards, &session, None)?);
    let sets = plan.set_metrics.iter();
    let sets = sets.map(|config| SetMeasure::new(config, &session, &cache, options));
    let mut sets: Vec<SetMeasure> = sets.collect::<Result<_>>()?;
    std::fs::create_dir_all(output).map_err(Error::io(output, "create the folder"))?;
    let mut models = Vec::new();
    for model in &plan.models {
        let folder = output.join("models").join(&model.name);
        models.push(images::of_model(plan, model, &folder, &session, options)?);
    }
    images::check_samplers(&models, options.console);
    let mut scorer = Scorer::open(&plan.rewards, &session, Some(&cache))?;
    let manifest = Manifest::of(plan, &models, &scorer, &sets)?;
    let mut scored = Vec::new();
    for model in models {
        let folder = output.join("models").join(&model.identity.name);
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "create the folder"))?;
        let rows = scores::of_model(&model, &plan.prompts, &mut scorer, &folder, options)?;
        let mut metrics = SetMetrics::new();
        for set in &mut sets {
            metrics.extend(set.of_model(&model, &plan.prompts, &folder)?);
        }
        scored.push(ModelScores {
            identity: model.identity,
            rows,
            sets: metrics,
        });
    }
    Ok((manifest, scored))
}

/// Checks that the files of all models, rewards and extractors are there and whole, before any of them is loaded.
fn check_files(plan: &EvalPlan) -> Result<()> {
    for model in &plan.models {
        if let ImageSource::Pipeline { model, adapters } = &model.source {
            Pipeline::check_files(&ModelFolder::open(model)?, adapters)?;
        }
    }
    let features = plan.set_metrics.iter().map(|set| &set.features);
    let mut named = plan.rewards.iter().chain(features);
    named.try_for_each(|name| RewardModel::check_files(name))
}

/// Computes results and writes them with the manifest and the tables.
fn finish(manifest: &Manifest, models: &[ModelScores], output: &Path) -> Result<Results> {
    let results = Results::of(manifest, models);
    remove_leftovers(output)?;
    for model in models {
        remove_leftovers(&output.join("models").join(&model.identity.name))?;
    }
    sheet::write(
        output,
        models,
        manifest.rewards.first().map(|reward| reward.name.as_str()),
    )?;
    write_json(&output.join("manifest.json"), manifest)?;
    write_json(&output.join("results.json"), &results)?;
    for format in [Format::Markdown, Format::Csv, Format::Latex] {
        let path = output.join(format!("table.{}", format.extension()));
        let text = tables::render(&results, format);
        write_atomically(&path, format!("{text}\n").as_bytes())?;
    }
    Ok(results)
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).expect("results have string keys only");
    write_atomically(path, format!("{text}\n").as_bytes())
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Error::bad(
            path.display().to_string(),
            format!("is not what this program writes: {error}"),
            "Run the evaluation again.",
        )
    })
}
