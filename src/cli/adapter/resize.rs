//! `ortdpo adapter resize`: an adapter of a smaller rank.

use std::path::PathBuf;
use std::sync::Mutex;

use clap::Args;
use ortdpo::adapter::Lora;
use ortdpo::adapter::resize::{Resized, Size, kept, resize};
use ortdpo::progress::Console;
use ortdpo::{Error, Result};
use serde::Serialize;

use super::{To, Writing, Written, read};
use crate::cli::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  ortdpo adapter resize style.safetensors style-8.safetensors --rank 8
  ortdpo adapter resize style.safetensors small.safetensors --energy 0.95 --dtype f16";

/// Make an adapter smaller by singular value decomposition
///
/// Every module's B·A is replaced by its best approximation of a smaller rank. alpha changes with the rank, so that
/// alpha/rank stays. Energy is the sum of squared singular values. Modules that are small enough keep every bit.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Resize {
    /// Adapter, or the folder of a run
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// File to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    size: SizeArgs,
    /// Form to write [default: that of IN]
    #[arg(long, value_enum)]
    to: Option<To>,
    #[command(flatten)]
    writing: Writing,
    /// How to print what was kept
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct SizeArgs {
    /// Largest rank of a module
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Share of every module's energy to keep, above 0 and at most 1; ranks differ then
    #[arg(long, value_name = "SHARE")]
    energy: Option<f64>,
}

#[derive(Serialize)]
struct Summary {
    #[serde(flatten)]
    written: Written,
    kept: f64,
    by_module: Vec<Module>,
}

#[derive(Serialize)]
struct Module {
    module: String,
    from: usize,
    to: usize,
    kept: f64,
}

impl Resize {
    /// Does what was asked for.
    pub fn run(self, quiet: bool) -> Result<()> {
        let size = match (self.size.rank, self.size.energy) {
            (Some(rank), _) => size_of_rank(rank)?,
            (_, Some(share)) if share > 0.0 && share <= 1.0 => Size::Energy(share),
            (_, share) => {
                let what = format!("is {}, which is no share", share.unwrap_or(f64::NAN));
                return Err(Error::bad(
                    "--energy",
                    what,
                    "Give a number above 0 and at most 1.",
                ));
            }
        };
        let (lora, form) = read(&self.input)?;
        let form = self.writing.form(self.to, form);
        self.writing.check(&lora, form, &self.output)?;
        let (small, report) = resized(&lora, size, quiet)?;
        let written = self.writing.write(small, form, &self.output)?;
        let summary = Summary {
            written,
            kept: kept(&report),
            by_module: report.iter().map(Module::of).collect(),
        };
        match self.format {
            Format::Json => output::json(&summary),
            Format::Text => {
                output::line(table(&report))?;
                output::line("")?;
                output::line(format!("{}, {}", summary.written.text(), share(summary.kept)))
            }
        }
    }
}

impl Module {
    fn of(report: &Resized) -> Self {
        Self {
            module: report.module.clone(),
            from: report.from,
            to: report.to,
            kept: report.kept,
        }
    }
}

/// A rank that a user gave.
pub(super) fn size_of_rank(rank: usize) -> Result<Size> {
    match rank {
        0 => Err(Error::bad("--rank", "is 0", "Give at least 1.")),
        _ => Ok(Size::Rank(rank)),
    }
}

/// As [`resize`], with progress.
pub(super) fn resized(lora: &Lora, size: Size, quiet: bool) -> Result<(Lora, Vec<Resized>)> {
    let job = Console::new(quiet).job("modules", lora.modules.len() as u64);
    let job = Mutex::new((0, job));
    resize(lora, size, &|| {
        if let Ok(mut job) = job.lock() {
            job.0 += 1;
            let done = job.0;
            job.1.advance(done, "");
        }
    })
}

pub(super) fn share(kept: f64) -> String {
    format!("{:.2} % of the energy kept", 100.0 * kept)
}

fn table(report: &[Resized]) -> String {
    let row = |m: &Resized| {
        let kept = format!("{:.2}", 100.0 * m.kept);
        [m.module.clone(), m.from.to_string(), m.to.to_string(), kept]
    };
    output::table(["module", "rank", "now", "% kept"], report.iter().map(row))
}
