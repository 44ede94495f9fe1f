//! `ortdpo adapter merge`: several adapters as one.

use std::path::PathBuf;

use clap::Args;
use ortdpo::Result;
use ortdpo::adapter::combine::{Part, combine};
use ortdpo::adapter::resize::kept;
use ortdpo::pipeline::AdapterRef;
use serde::Serialize;

use super::resize::{resized, share, size_of_rank};
use super::{To, Writing, Written, read};
use crate::cli::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  ortdpo adapter merge style.safetensors:0.7 runs/demo both.safetensors
  ortdpo adapter merge a.safetensors b.safetensors:-0.5 c.safetensors --rank 16
  ortdpo adapter merge strong.safetensors:0.5 weaker.safetensors

`ortdpo merge` is another thing: it puts adapters into a pipeline's weights.";

/// Make one adapter of several, each with a factor
///
/// The result changes a model exactly as all of them together do: their factors side by side, of the sum of their ranks.
/// `--rank` makes it smaller, which is an approximation.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Merge {
    /// Adapters, or folders of runs, and how much they count
    #[arg(value_name = "FILE[:SCALE]", required = true)]
    adapters: Vec<AdapterRef>,
    /// File to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Largest rank of a module of the result
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Form to write [default: that of the first adapter]
    #[arg(long, value_enum)]
    to: Option<To>,
    #[command(flatten)]
    writing: Writing,
    /// How to print the summary
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Serialize)]
struct Summary {
    #[serde(flatten)]
    written: Written,
    ranks: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<f64>,
}

impl Merge {
    /// Does what was asked for.
    pub fn run(self, quiet: bool) -> Result<()> {
        let size = self.rank.map(size_of_rank).transpose()?;
        let mut parts = Vec::new();
        let mut first_form = None;
        for adapter in &self.adapters {
            let (lora, form) = read(&adapter.path)?;
            first_form.get_or_insert(form);
            parts.push(Part {
                path: adapter.path.clone(),
                lora,
                scale: adapter.scale,
            });
        }
        let form = self
            .writing
            .form(self.to, first_form.expect("one adapter is required"));
        let mut lora = combine(&parts)?;
        self.writing.check(&lora, form, &self.output)?;
        let mut share_kept = None;
        if let Some(size) = size {
            let (small, report) = resized(&lora, size, quiet)?;
            share_kept = Some(kept(&report));
            lora = small;
        }
        let ranks = lora.modules.iter().map(|m| m.rank());
        let ranks = [ranks.clone().min().unwrap_or(0), ranks.max().unwrap_or(0)];
        let summary = Summary {
            written: self.writing.write(lora, form, &self.output)?,
            ranks,
            kept: share_kept,
        };
        match self.format {
            Format::Json => output::json(&summary),
            Format::Text => {
                let rank = match ranks {
                    [low, high] if low == high => format!("rank {low}"),
                    [low, high] => format!("ranks {low} to {high}"),
                };
                let kept = summary
                    .kept
                    .map_or(String::new(), |kept| format!(", {}", share(kept)));
                output::line(format!("{}, {rank}{kept}", summary.written.text()))
            }
        }
    }
}
