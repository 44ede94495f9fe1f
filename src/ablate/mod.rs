//! Ablations: methods × strategies × seeds, trained, judged and put into tables.
//!
//! ```text
//! config ─► AblationPlan (arms.rs, judging.rs): every configuration resolved before anything runs
//!               └─► execute.rs: train ─► generate and score (crate::eval) ─► a line of DIR/rows.jsonl per run
//!                        tuning runs ─► choosing.rs ─► final runs
//! rows ─► results.rs: means over seeds, intervals over seeds and prompts ─► tables.rs, DIR/ablation.json
//! ```
//!
//! A run is identified by its settings and the content of the files that they name (identity.rs): one that has a row is never
//! run again, and one that was interrupted goes on. All runs share the encoding cache and the initial model's images. Tables
//! come from the rows alone.

pub mod arms;
pub mod choosing;
pub mod config;
mod estimate;
mod execute;
mod identity;
pub mod judging;
pub mod plan;
pub mod results;
pub mod rows;
pub mod tables;
mod training;

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::atomic::AtomicBool;

pub use execute::State;
pub use training::Progress;

use crate::fsutil::write_atomically;
use crate::progress::Console;
use crate::table::Format;
use crate::{Error, Result};
use execute::Executor;
use plan::{AblationPlan, Run};
use results::Results;
use rows::{Phase, Row, Rows};

/// The rows in an ablation's folder.
pub const ROWS: &str = "rows.jsonl";

/// The results in an ablation's folder.
pub const RESULTS: &str = "ablation.json";

/// What an ablation is run with, apart from what is in it.
#[derive(Debug, Clone, Copy)]
pub struct AblateOptions<'a> {
    /// Where progress is shown.
    pub console: Console,
    /// Asks the run to end; what is done is kept.
    pub stop: &'a AtomicBool,
    /// End when hyperparameters are chosen.
    pub tune_only: bool,
}

/// Runs what is not done yet and writes the results into `output`.
///
/// # Errors
/// A file cannot be read or written, or is not what a run needs; or [`Error::Interrupted`], after which the same call goes on.
/// Runs that diverge are no error: [`Results::failures`] lists them.
pub fn run(plan: &AblationPlan, output: &Path, options: &AblateOptions) -> Result<Results> {
    std::fs::create_dir_all(output).map_err(Error::io(output, "create the folder"))?;
    let _lock = lock(output)?;
    let mut rows = Rows::read(&output.join(ROWS))?;
    write_atomically(&output.join("config.yaml"), plan.text.as_bytes())?;
    let mut executor = Executor::new(plan, output, options);
    let tuning = plan.tuning_runs()?;
    let tried = match tuning.is_empty() {
        true => Vec::new(),
        false => executor.rows_of(Phase::Tuning, &tuning, &mut rows)?,
    };
    let candidates = choosing::candidates(plan, &tried);
    let choices = choosing::choices(plan, &candidates);
    let found = match options.tune_only {
        true => Vec::new(),
        false => executor.rows_of(Phase::Final, &plan.final_runs(&choices)?, &mut rows)?,
    };
    let results = Results::of(plan, &found, &tried, candidates);
    write(&results, output)?;
    Ok(results)
}

/// The results of rows that are there, without running anything, and how many of the rows were made under other settings or by
/// a version of the program that resolves them differently. Rows are known by what their run is called: the model, the
/// data and the rewards need not be what they were.
///
/// # Errors
/// The rows cannot be read.
pub fn results_of_rows(plan: &AblationPlan, rows: &Path) -> Result<(Results, usize)> {
    if !rows.is_file() {
        let remedy = "Run the ablation first, or name its rows with --rows.";
        return Err(Error::bad(rows.display().to_string(), "is not there", remedy));
    }
    let rows = Rows::read(rows)?;
    let mut others = 0;
    let mut of = |phase: Phase, runs: &[Run]| -> Vec<Row> {
        let base = identity::settings(None, plan.evaluation_of(phase));
        let runs = runs.iter().map(|run| (Some(&run.id), &run.settings));
        let mut found = Vec::new();
        for (run, settings) in std::iter::once((None, &base)).chain(runs) {
            if let Some(row) = rows.of(phase, run, settings) {
                others += usize::from(row.settings != *settings);
                found.push(row.clone());
            }
        }
        found
    };
    let tried = of(Phase::Tuning, &plan.tuning_runs()?);
    let candidates = choosing::candidates(plan, &tried);
    let choices = choosing::choices(plan, &candidates);
    let found = of(Phase::Final, &plan.final_runs(&choices)?);
    Ok((Results::of(plan, &found, &tried, candidates), others))
}

/// How far each run is: those of the tuning, then the final ones as far as values are chosen for them.
///
/// # Errors
/// A file that a run depends on cannot be read.
pub fn states(plan: &AblationPlan, output: &Path, options: &AblateOptions) -> Result<Vec<(Run, State)>> {
    let rows = Rows::read(&output.join(ROWS))?;
    let mut executor = Executor::new(plan, output, options);
    let mut states = Vec::new();
    let mut tried = Vec::new();
    for run in plan.tuning_runs()? {
        let (state, row) = executor.state(&run, &rows)?;
        tried.extend(row.cloned());
        states.push((run, state));
    }
    let choices = choosing::choices(plan, &choosing::candidates(plan, &tried));
    for run in plan.final_runs(&choices)? {
        let (state, _) = executor.state(&run, &rows)?;
        states.push((run, state));
    }
    Ok(states)
}

/// Writes results and tables into an ablation's folder.
///
/// # Errors
/// They cannot be written.
pub fn write(results: &Results, output: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(results).expect("results have text keys only");
    write_atomically(&output.join(RESULTS), format!("{text}\n").as_bytes())?;
    for format in [Format::Markdown, Format::Csv, Format::Latex] {
        let path = output.join(format!("tables.{}", format.extension()));
        let text = tables::render(results, format);
        write_atomically(&path, format!("{text}\n").as_bytes())?;
    }
    Ok(())
}

/// Keeps other processes out of the folder for as long as the file is open.
fn lock(output: &Path) -> Result<File> {
    let path = output.join(".lock");
    let file = File::create(&path).map_err(Error::io(&path, "write"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::bad(
            output.display().to_string(),
            "is being filled by another ortdpo ablate",
            "Wait for it, or choose another folder with --output.",
        )),
        Err(TryLockError::Error(error)) => Err(Error::io(&path, "lock")(error)),
    }
}
