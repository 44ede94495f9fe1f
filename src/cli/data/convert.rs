//! `ortdpo data convert`: any kind of data set as parquet files.

use clap::Args;
use ortdpo::Result;
use ortdpo::dataset_tools::{Conversion, Converted, HoldOut, convert};
use ortdpo::progress::Console;

use super::super::output::{self, Format};
use super::{Source, Target, TiesArg, at_least_one, per_split, progress};

const EXAMPLES: &str = "\
Examples:
  ortdpo data convert HPDv3 pairs
  ortdpo data convert --from imagereward ImageRewardDB pairs --choose best-worst --ties drop
  ortdpo data convert pairs.jsonl pairs --max-pairs-per-prompt 4 --shard-rows 5000

Nothing is in its place before all is written. The output has the columns of Pick-a-Pic: caption, jpg_0, jpg_1, label_0, label_1, \
has_label, score_0, score_1; of single pictures caption, jpg_0, label_0 and has_label.";

/// Turn a data set into parquet files, with the pictures inside
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Convert {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    target: Target,
    /// Pairs of one prompt that are written at most: the first ones
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_pairs_per_prompt: Option<usize>,
    /// Form of the summary
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

impl Convert {
    /// Does what was asked for.
    pub fn run(self, console: Console) -> Result<()> {
        let most = self.max_pairs_per_prompt;
        write(&self.source, &self.target, most, None, self.format, console)
    }
}

/// Converts, and prints what came of it.
pub(super) fn write(
    source: &Source,
    target: &Target,
    max_pairs_per_prompt: Option<usize>,
    hold_out: Option<HoldOut>,
    format: Format,
    console: Console,
) -> Result<()> {
    let conversion = Conversion {
        keep_ties: target.ties == TiesArg::Keep,
        max_pairs_per_prompt: max_pairs_per_prompt.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
        skip_damaged: target.skip_damaged,
        rows_per_file: target.shard_rows,
        replace: target.replace,
        hold_out,
    };
    let opened = source.open(console)?;
    let mut progress = progress(console, "converting", super::rows(&opened.splits));
    let done = convert(opened, &source.path, &conversion, &target.folder, &mut progress)?;
    drop(progress);
    match format {
        Format::Json => output::json(&done),
        Format::Text => output::line(summary(&done)),
    }
}

fn summary(done: &Converted) -> String {
    let rows = &done.rows;
    let mut text = format!(
        "{} rows written of {}: {}",
        rows.written,
        rows.read,
        per_split(&done.splits)
    );
    let left_out = [
        (rows.unlabelled, "without a label"),
        (rows.over_limit, "beyond --max-pairs-per-prompt"),
        (rows.damaged, "damaged"),
    ];
    text += &format!("; {} ties", rows.ties);
    for (count, what) in left_out.iter().filter(|(count, _)| *count > 0) {
        text += &format!("; left out {count} {what}");
    }
    for example in &done.examples {
        text += &format!("\n  {example}");
    }
    text
}
