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
use ortdpo::runtime::{self, ExecutionProvider, RuntimeOptions};
use ortdpo::train::engine::EngineOptions;
use ortdpo::train::model::Model;
use ortdpo::train::{inputs, on_device, prepare};
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
    /// Heights and widths of latents that sessions are counted for beside it: all that `data.buckets` allows. A run has those that its
    /// data has.
    other_sizes: Vec<[usize; 2]>,
    ep: ExecutionProvider,
    /// Why the execution provider cannot be used here; null where it can.
    ep_unusable: Option<String>,
    levels: Vec<Level>,
    /// What filling the cache takes before; null without pictures to encode.
    encoding: Option<Encoding>,
    /// What the run would use: what is configured, or what fits into the budget.
    chosen: Option<Recompute>,
    memory_budget: Option<ByteSize>,
    /// The level from which on one is chosen.
    #[serde(skip)]
    from: Recompute,
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
    let ep_unusable = match (plan.runtime.ep, seconds) {
        (ExecutionProvider::Cpu, _) => None,
        // Memory is computed, but time can only be measured where the run would be.
        (ep, Some(_)) => runtime::require(ep).map(|()| None)?,
        (ep, None) => runtime::require(ep).err().map(|error| error.to_string()),
    };
    let model = Model::open(&plan.model)?;
    let side = plan.data.resolution as usize / geometry::pixels_per_latent(&model.folder);
    let sample = geometry::declared(&model.folder, 1, Some([side; 2]))?;
    let objective = prepare::objective_without_data(&plan.objective, plan.data.kind);
    let other_sizes = prepare::other_sizes(plan, &model);
    let options = EngineOptions {
        other_sizes: &other_sizes,
        gradients_on_device: on_device::wanted(plan, 1 + other_sizes.len())?,
        ..prepare::engine_options(plan, &model, sample, objective.as_ref())?
    };
    let levels = levels(plan, &options, seconds, console)?;
    let (pictures, at_once) = (plan.data.resolution as usize, plan.data.encode_batch);
    let encoding = plan
        .data
        .is_given()
        .then(|| Encoding::of(&model.folder, pictures, at_once));
    let encoding = encoding.transpose()?;
    let budget = plan.runtime.memory_budget;
    let fits = |level: &&Level| {
        level.recompute >= plan.runtime.recompute
            && budget.is_none_or(|budget| level.memory.is_within(budget))
    };
    Ok(Report {
        steps: plan.train.steps,
        accumulate: plan.train.accumulate,
        pairs: options.pairs,
        samples: options.geometry.samples,
        latent: options.geometry.latent,
        ep: plan.runtime.ep,
        ep_unusable,
        chosen: levels.iter().find(fits).map(|level| level.recompute),
        memory_budget: budget,
        from: plan.runtime.recompute,
        levels,
        encoding,
        other_sizes,
    })
}

/// Forecasts for every level of recomputation.
fn levels(
    plan: &TrainPlan,
    options: &EngineOptions,
    seconds: Option<f64>,
    console: Console,
) -> Result<Vec<Level>> {
    let mut calibration = seconds.map(|seconds| {
        console.say("measuring operators");
        Calibration::new(Duration::from_secs_f64(seconds))
    });
    let batch = prepare::batch(plan)?;
    let mut level = |recompute| {
        let calibration = calibration.as_mut().map(|c| (c, batch));
        forecast(plan, &options.recomputing(recompute), calibration)
    };
    Recompute::ALL.into_iter().map(&mut level).collect()
}

fn text(report: &Report) -> String {
    let [_, height, width] = report.latent;
    let at_once = match report.accumulate {
        1 => String::new(),
        _ => format!(", {} at a time,", report.samples),
    };
    let mut lines = vec![format!(
        "steps of {} samples{at_once} with latents of {height}×{width}",
        report.samples * report.accumulate
    )];
    if !report.other_sizes.is_empty() {
        lines.push(format!(
            "memory counts all {} sizes of images that data.buckets allows; a run has those that its data has",
            report.other_sizes.len() + 1
        ));
    }
    if report.ep != ExecutionProvider::Cpu {
        let ep = report.ep;
        lines.push(format!(
            "figures for {ep} are computed, not measured; a memory budget is about the host's memory"
        ));
        if let Some(why) = &report.ep_unusable {
            lines.push(format!("{ep} is not usable here: {why}"));
        }
    }
    lines.extend([String::new(), levels_table(report), String::new()]);
    let chosen = report.levels.iter().find(|l| Some(l.recompute) == report.chosen);
    lines.extend(match chosen {
        Some(level) => used(report, level),
        None => vec![refusal(report)],
    });
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

/// What every level takes.
fn levels_table(report: &Report) -> String {
    let times = |level: &Level| {
        level.time.map_or(("-".to_owned(), "-".to_owned()), |t| {
            let passes = t.seconds / t.forward_seconds;
            (output::duration(t.seconds), format!("{passes:.1}"))
        })
    };
    if report.levels.iter().all(|level| level.device.is_none()) {
        let head = ["recompute", "peak memory", "a step", "in forward passes"];
        return output::table(
            head,
            report.levels.iter().map(|level| {
                let (seconds, passes) = times(level);
                let memory = output::bytes(level.memory.total());
                [level.recompute.to_string(), memory, seconds, passes]
            }),
        );
    }
    let head = ["recompute", "host", "device", "a step", "in forward passes"];
    output::table(
        head,
        report.levels.iter().map(|level| {
            let (seconds, passes) = times(level);
            let device = level.device.map_or(0, |device| device.total());
            let [host, device] = [level.memory.total(), device].map(output::bytes);
            [level.recompute.to_string(), host, device, seconds, passes]
        }),
    )
}

/// What is said of the level that the run would use.
fn used(report: &Report, level: &Level) -> Vec<String> {
    let why = report
        .memory_budget
        .map_or(String::new(), |b| format!(", the fastest within {b}"));
    let mut lines = vec![format!("`train` would use recompute: {}{why}", level.recompute)];
    if let Some(time) = level.time {
        let all = output::duration(report.steps as f64 * time.seconds);
        lines.push(format!(
            "{} steps would take about {all}, without evaluations",
            report.steps
        ));
    }
    let table = |head, parts: &[(&str, u64)]| {
        let parts = parts.iter().filter(|(_, bytes)| *bytes > 0);
        output::table(
            [head, ""],
            parts.map(|(name, bytes)| [(*name).to_owned(), output::bytes(*bytes)]),
        )
    };
    lines.push(String::new());
    match level.device {
        None => lines.push(table("memory", &level.memory.parts())),
        Some(device) => lines.extend([
            table("memory of the host", &level.memory.parts()),
            String::new(),
            table("memory of the device", &device.parts()),
        ]),
    }
    lines
}

/// What is said where no level keeps within the budget.
fn refusal(report: &Report) -> String {
    let budget = report.memory_budget.map_or(String::new(), |b| b.to_string());
    let mut refused = format!("`train` would refuse to run: no level keeps within {budget}");
    let allowed = report
        .levels
        .iter()
        .filter(|level| level.recompute >= report.from);
    if let Some(least) = allowed.min_by_key(|level| level.memory.total()) {
        let (enough, level) = (least.memory.budget(), least.recompute);
        refused += &format!("; {enough} is enough, with recompute: {level} and some 5 % to spare");
    }
    refused
}
