//! `ortdpo plan`: what a training run will take.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ortdpo::autodiff::Recompute;
use ortdpo::config::TrainPlan;
use ortdpo::config::bytes::ByteSize;
use ortdpo::forecast::{Calibration, Encoding, Level, forecast};
use ortdpo::pipeline::geometry;
use ortdpo::progress::Console;
use ortdpo::runtime::{self, RuntimeOptions};
use ortdpo::train::model::Model;
use ortdpo::train::prepare;
use ortdpo::train::{initial, inputs};
use ortdpo::{Error, Result};
use serde::Serialize;

use super::output::{self, Format};
use super::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  ortdpo plan examples/stable-ema.yaml
  ortdpo plan examples/stable-ema.yaml --set train.pairs_per_step=64 --memory-budget 1GiB
  ortdpo plan examples/stable-ema.yaml --no-time --format json";

/// Predict the memory and the time of a training run, before anything large is loaded
///
/// Memory comes from the graphs that the run would execute, at every level of recomputation (`runtime.recompute`). Time comes
/// from running the kinds of operator that cost most, each alone, for a few seconds.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Plan {
    /// The run's configuration, as for `ortdpo train`
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
    #[command(flatten)]
    settings: Settings,
    /// Seconds that may be spent on measuring, about
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    calibrate: f64,
    /// Predict memory only
    #[arg(long, conflicts_with = "calibrate")]
    no_time: bool,
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Serialize)]
struct Report {
    /// Of the run.
    steps: u64,
    /// Parts of a step's batch.
    accumulate: usize,
    /// Of a part.
    pairs: usize,
    /// Of a part.
    samples: usize,
    latent: [usize; 3],
    levels: Vec<Level>,
    /// What filling the cache takes before; null without pictures to encode.
    encoding: Option<Encoding>,
    /// What the run would use: what is configured, or what fits into the budget.
    chosen: Option<Recompute>,
    memory_budget: Option<ByteSize>,
}

impl Plan {
    /// Does what was asked for.
    pub fn run(self, quiet: bool) -> Result<()> {
        if !self.calibrate.is_finite() || self.calibrate <= 0.0 {
            let place = format!("--calibrate {}", self.calibrate);
            return Err(Error::bad(
                place,
                "is no time to measure in",
                "Give seconds above 0.",
            ));
        }
        let plan = TrainPlan::resolve(&self.settings.over(Some(self.config)))?;
        runtime::init(&RuntimeOptions::default())?;
        let seconds = (!self.no_time).then_some(self.calibrate);
        let report = report(&plan, seconds, Console::new(quiet))?;
        match self.format {
            Format::Json => output::json(&report),
            Format::Text => output::line(text(&report)),
        }
    }
}

/// The forecasts; times come from `seconds` of measuring.
fn report(plan: &TrainPlan, seconds: Option<f64>, console: Console) -> Result<Report> {
    inputs::check(plan)?;
    let model = Model::open(&plan.model)?;
    let side = plan.data.resolution as usize / geometry::pixels_per_latent(&model.folder);
    let sample = geometry::declared(&model.folder, 1, Some([side; 2]))?;
    let objective = plan.objective.objective();
    let options = prepare::engine_options(plan, &model, sample, objective)?;
    let full = plan.trains_all_weights();
    let choose = |graph: &_| initial::trainables(&plan.adapter, graph);
    let mut calibration = seconds.map(|seconds| {
        console.say("measuring operators");
        Calibration::new(Duration::from_secs_f64(seconds))
    });
    let batch = prepare::batch(plan)?;
    let mut levels = Vec::new();
    for recompute in Recompute::ALL {
        let options = options.recomputing(recompute);
        levels.push(forecast(
            &options,
            full,
            choose,
            calibration.as_mut().map(|c| (c, batch)),
        )?);
    }
    let (pictures, at_once) = (plan.data.resolution as usize, plan.data.encode_batch);
    let encoding = plan
        .data
        .is_given()
        .then(|| Encoding::of(&model.folder, pictures, at_once));
    let encoding = encoding.transpose()?;
    let budget = plan.runtime.memory_budget;
    let fits = |level: &&Level| {
        level.recompute >= plan.runtime.recompute
            && budget.is_none_or(|budget| level.memory.total() <= budget.0)
    };
    Ok(Report {
        steps: plan.train.steps,
        accumulate: plan.train.accumulate,
        pairs: options.pairs,
        samples: options.geometry.samples,
        latent: options.geometry.latent,
        chosen: levels.iter().find(fits).map(|level| level.recompute),
        memory_budget: budget,
        levels,
        encoding,
    })
}

fn text(report: &Report) -> String {
    let [_, height, width] = report.latent;
    let row = |level: &Level| {
        let (seconds, passes) = level.time.map_or(("-".to_owned(), "-".to_owned()), |t| {
            let passes = t.seconds / t.forward_seconds;
            (output::duration(t.seconds), format!("{passes:.1}"))
        });
        [
            level.recompute.to_string(),
            output::bytes(level.memory.total()),
            seconds,
            passes,
        ]
    };
    let at_once = match report.accumulate {
        1 => String::new(),
        _ => format!(", {} at a time,", report.samples),
    };
    let head = ["recompute", "peak memory", "a step", "in forward passes"];
    let mut lines = vec![
        format!(
            "steps of {} samples{at_once} with latents of {height}×{width}",
            report.samples * report.accumulate
        ),
        String::new(),
        output::table(head, report.levels.iter().map(row)),
        String::new(),
    ];
    let chosen = report.levels.iter().find(|l| Some(l.recompute) == report.chosen);
    match (chosen, report.memory_budget) {
        (Some(level), budget) => {
            let why = budget.map_or(String::new(), |b| format!(", the fastest within {b}"));
            lines.push(format!("`train` would use recompute: {}{why}", level.recompute));
            if let Some(time) = level.time {
                let all = output::duration(report.steps as f64 * time.seconds);
                lines.push(format!(
                    "{} steps would take about {all}, without evaluations",
                    report.steps
                ));
            }
            lines.push(String::new());
            let parts = level.memory.parts().into_iter().filter(|(_, bytes)| *bytes > 0);
            let rows = parts.map(|(name, bytes)| [name.to_owned(), output::bytes(bytes)]);
            lines.push(output::table(["memory", ""], rows));
        }
        (None, budget) => {
            let budget = budget.map_or(String::new(), |b| b.to_string());
            let mut refused = format!("`train` would refuse to run: no level keeps within {budget}");
            // Each level takes less than the one before.
            if let Some(least) = report.levels.last() {
                let (enough, level) = (least.memory.budget(), least.recompute);
                refused += &format!("; {enough} is enough, with recompute: {level}");
            }
            lines.push(refused);
        }
    }
    if let Some(encoding) = &report.encoding {
        lines.push(String::new());
        lines.push(format!(
            "before the first step, unless they are in the cache: about {} for pictures, {} for captions",
            output::bytes(encoding.images),
            output::bytes(encoding.captions)
        ));
    }
    lines.join("\n")
}
