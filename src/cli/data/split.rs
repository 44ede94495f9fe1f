//! `ortdpo data split`: a data set divided by prompt.

use clap::Args;
use ortdpo::Result;
use ortdpo::dataset_tools::HoldOut;
use ortdpo::progress::Console;

use super::super::output::Format;
use super::super::pairs::share;
use super::{Source, Target, convert};

const EXAMPLES: &str = "\
Examples:
  ortdpo data split pairs.jsonl pairs --held-out 0.05
  ortdpo data split --split train pickapic pickapic-split --held-out 0.02 --seed 7

A prompt's part is drawn from its words and the seed alone: upper and lower case and spacing make no difference, and a prompt keeps \
its part when the data set grows.";

/// Divide a data set into train-*.parquet and heldout-*.parquet so that no prompt is in both
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Split {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    target: Target,
    /// Share of the prompts that is held out
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, value_parser = share)]
    held_out: f64,
    /// Of the draw
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Form of the summary
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

impl Split {
    /// Does what was asked for.
    pub fn run(self, console: Console) -> Result<()> {
        let hold_out = HoldOut {
            share: self.held_out,
            seed: self.seed,
        };
        convert::write(
            &self.source,
            &self.target,
            None,
            Some(hold_out),
            self.format,
            console,
        )
    }
}
