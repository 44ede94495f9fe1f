//! `ortdpo train`: which configuration, where the run goes, and what is printed instead of training.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use ortdpo::config::{self, TrainPlan};
use ortdpo::progress::Console;
use ortdpo::train::summary::Summary;
use ortdpo::train::{self, RunOptions};
use ortdpo::{Error, Result};

use super::output;
use super::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  ortdpo train --config examples/stable-ema.yaml --output runs/a
  ortdpo train --config examples/stable-ema.yaml --set optimizer.lr=5e-5 --set train.steps=1000
  ortdpo train --config examples/stable-ema.yaml --ep cuda --memory-budget 12GiB
  ortdpo train --config runs/a/config.yaml --output runs/a --resume
  ortdpo train --config examples/stable-ema.yaml --print-config";

/// Asks the loop to finish its step, save and end.
static STOP: AtomicBool = AtomicBool::new(false);

/// Train a model on preference pairs
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Train {
    /// The run's configuration in YAML; examples/ holds whole files
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Folder of the run [default: runs/ and the name of the configuration file]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Go on from the newest checkpoint in the run's folder
    #[arg(long)]
    resume: bool,
    /// Write what every step was computed from and gave into this new folder, for other programs to repeat
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    record: Option<PathBuf>,
    #[command(flatten)]
    print: Print,
}

#[derive(Args)]
#[group(multiple = false)]
struct Print {
    /// Print the configuration with every default, preset and option resolved, and end
    #[arg(long)]
    print_config: bool,
    /// Print the JSON Schema of configuration files, for editors, and end
    #[arg(long)]
    print_schema: bool,
}

impl Train {
    /// Does what was asked for.
    pub fn run(self, quiet: bool) -> Result<()> {
        if self.print.print_schema {
            return output::line(config::json_schema().trim_end());
        }
        let output = self
            .output
            .unwrap_or_else(|| default_output(self.config.as_ref()));
        let plan = TrainPlan::resolve(&self.settings.over(self.config))?;
        if self.print.print_config {
            return output::line(plan.to_yaml().trim_end());
        }
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed))
            .map_err(|e| Error::Runtime(format!("cannot listen for Ctrl-C: {e}")))?;
        let console = Console::new(quiet);
        let lr = plan.optimizer.effective_lr(plan.train.pairs_per_step);
        console.say(&format!(
            "{} pairs a step, effective learning rate {lr:.2e}",
            plan.train.pairs_per_step
        ));
        let options = RunOptions {
            record: self.record,
            output: output.clone(),
            resume: self.resume,
            console,
            stop: &STOP,
        };
        let summary = train::run(&plan, &options)?;
        output::line(held_out(&summary))?;
        output::line(format!("{}: results, metrics and checkpoints", output.display()))
    }
}

fn default_output(config: Option<&PathBuf>) -> PathBuf {
    let name = config.and_then(|c| c.file_stem()).unwrap_or("run".as_ref());
    PathBuf::from("runs").join(name)
}

/// Held-out numbers before and after.
fn held_out(summary: &Summary) -> String {
    let (Some(before), Some(after)) = (summary.initial, summary.last) else {
        return "no held-out pairs were measured".to_owned();
    };
    let three = |v: f64| format!("{v:.3}");
    let small = |v: f64| format!("{v:+.2e}");
    let ceiling = summary.ceiling_acc.map_or("-".to_owned(), three);
    let row = |name: &str, a: String, b: String, c: &str| [name.to_owned(), a, b, c.to_owned()];
    let rows = [
        row(
            "acc_init",
            three(before.acc_init),
            three(after.acc_init),
            &ceiling,
        ),
        row(
            "margin_init",
            small(before.margin_init),
            small(after.margin_init),
            "",
        ),
        row("acc_ref", three(before.acc_ref), three(after.acc_ref), ""),
        row(
            "margin_ref",
            small(before.margin_ref),
            small(after.margin_ref),
            "",
        ),
    ];
    output::table(["held-out pairs", "before", "after", "ceiling"], rows)
}
