//! `ortdpo ablate`: methods × strategies × seeds, trained and judged.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use ortdpo::ablate::plan::{AblationPlan, Run};
use ortdpo::ablate::results::Results;
use ortdpo::ablate::{self, AblateOptions, Progress, State, config, tables};
use ortdpo::progress::Console;
use ortdpo::report::{self, ReportOptions};
use ortdpo::runtime::{self, RuntimeOptions};
use ortdpo::table::Format;
use ortdpo::{Error, Result};

use super::output;

const EXAMPLES: &str = "\
Examples:
  ortdpo ablate --config examples/ablate-tiny.yaml --dry-run
  ortdpo ablate --config examples/ablate-tiny.yaml --output runs/ablate-tiny
  ortdpo ablate --config examples/ablation.yaml --tune-only
  ortdpo ablate --config examples/ablation.yaml --tables-only --rows docs/ablation/rows.jsonl --format latex

The same command goes on where an earlier one stopped: a run that has a row in rows.jsonl is not run again, one that was \
interrupted is resumed. With a method, a strategy or a seed more, only their runs are done. A run that diverges is \
recorded as failed; the others go on, and the exit code is 1.";

/// Asks the run to end; what is done is kept.
static STOP: AtomicBool = AtomicBool::new(false);

/// Train methods under strategies with several seeds, and compare what comes of it
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Ablate {
    /// The ablation in YAML
    #[arg(long, value_name = "FILE", required_unless_present = "print_schema")]
    config: Option<PathBuf>,
    /// Folder of the ablation [default: runs/ and the name of the configuration file]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    instead: Instead,
    /// Where --tables-only finds the rows [default: rows.jsonl in the ablation's folder]
    #[arg(long, value_name = "FILE", requires = "tables_only")]
    rows: Option<PathBuf>,
    /// How to print the tables: text, markdown, csv, json or latex
    #[arg(long, default_value_t = Format::Text, value_name = "NAME")]
    format: Format,
}

#[derive(Args)]
#[group(multiple = false)]
struct Instead {
    /// List the runs and how far each is, and end
    #[arg(long)]
    dry_run: bool,
    /// Print the tables of the rows that are there, and end
    #[arg(long)]
    tables_only: bool,
    /// End when hyperparameters are chosen
    #[arg(long)]
    tune_only: bool,
    /// Print the JSON Schema of ablation files, for editors, and end
    #[arg(long)]
    print_schema: bool,
}

impl Ablate {
    /// Does what was asked for.
    pub fn run(self, quiet: bool) -> Result<()> {
        let Some(config) = self.config.as_deref().filter(|_| !self.instead.print_schema) else {
            return output::line(config::json_schema().trim_end());
        };
        let folder = self.output.clone().unwrap_or_else(|| default_output(config));
        let plan = AblationPlan::read(config)?;
        if self.instead.tables_only {
            let rows = self.rows.unwrap_or_else(|| folder.join(ablate::ROWS));
            let (results, others) = ablate::results_of_rows(&plan, &rows)?;
            if others > 0 {
                Console::new(quiet).say(&format!(
                    "{}: {others} rows were made under other settings than the file's, or by another version",
                    rows.display()
                ));
            }
            return output::line(tables::render(&results, self.format));
        }
        let console = Console::new(quiet);
        let options = AblateOptions {
            console,
            stop: &STOP,
            tune_only: self.instead.tune_only,
        };
        if self.instead.dry_run {
            return list(&plan, &folder, &options);
        }
        runtime::init(&RuntimeOptions::default())?;
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed))
            .map_err(|e| Error::Runtime(format!("cannot listen for Ctrl-C: {e}")))?;
        let results = ablate::run(&plan, &folder, &options)?;
        write_report(&folder)?;
        console.say(&format!(
            "{}: rows, tables, report.html and runs",
            folder.display()
        ));
        output::line(tables::render(&results, self.format))?;
        failures(&results)
    }
}

fn default_output(config: &Path) -> PathBuf {
    let name = config.file_stem().unwrap_or("ablation".as_ref());
    PathBuf::from("runs").join(name)
}

/// Prints every run with its state.
fn list(plan: &AblationPlan, folder: &Path, options: &AblateOptions) -> Result<()> {
    let states = ablate::states(plan, folder, options)?;
    let row = |(run, state): &(Run, State)| {
        let state = match state {
            State::Finished => "done".to_owned(),
            State::Failed => "failed".to_owned(),
            State::Open(Progress::None) => "to do".to_owned(),
            State::Open(Progress::Step(step)) => format!("stopped after step {step}"),
            State::Open(Progress::Finished) => "trained, to be judged".to_owned(),
        };
        [run.name(), state]
    };
    output::line(output::table(["run", "state"], states.iter().map(row)))?;
    let open = states.iter().filter(|(_, state)| matches!(state, State::Open(_)));
    output::line(format!("{} runs, {} to do", states.len(), open.count()))?;
    let waiting = plan.waiting(states.iter().map(|(run, _)| run));
    match waiting {
        0 => Ok(()),
        waiting => output::line(format!(
            "{waiting} more when their hyperparameters are chosen; all candidates of a method under a strategy are tried first"
        )),
    }
}

/// The page about the ablation, and its plots as files.
fn write_report(folder: &Path) -> Result<()> {
    let name = folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let options = ReportOptions {
        title: format!("Ablation {name}"),
        ..ReportOptions::default()
    };
    let report = report::build(&[folder.to_path_buf()], &options)?;
    report.write(&folder.join("report.html"))?;
    report.write_plots(&folder.join("plots"))
}

/// The error of an ablation of which runs diverged.
fn failures(results: &Results) -> Result<()> {
    let named: Vec<&str> = results
        .failures
        .iter()
        .map(|failure| failure.run.as_str())
        .collect();
    match named.len() {
        0 => Ok(()),
        n => Err(Error::Diverged(format!(
            "{n} of the runs diverged and are in no mean: {}. rows.jsonl holds the reason of each; lower their learning rate",
            named.join("; ")
        ))),
    }
}
