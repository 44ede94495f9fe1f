//! `ortdpo data relabel`: pairs labelled anew by reward models.

use clap::Args;
use ortdpo::Result;
use ortdpo::dataset_tools::{Relabelled, Vote, relabel};
use ortdpo::progress::Console;
use ortdpo::score::Scorer;

use super::super::compute::{Compute, FeatureCache};
use super::super::output::{self, Format};
use super::super::pairs::not_negative;
use super::{STOP, Source, Target, TiesArg, per_split, progress, rows};

const EXAMPLES: &str = "\
Examples:
  ortdpo data relabel pairs relabelled --reward pickscore
  ortdpo data relabel pairs relabelled --reward hpsv2.1,pickscore,clip --majority --ties drop
  ortdpo data relabel HPDv3 relabelled --reward clip --min-margin 0.5

The output has the new labels, the overall scores as score_0 and score_1, and each reward's own under its name. An interrupted \
run leaves nothing but the cache of features, with which the next one is fast.";

/// Label pairs anew by a reward model, or by several
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Relabel {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    target: Target,
    /// Reward models, by folder or name, separated by commas
    #[arg(long, value_name = "NAME|DIR", value_delimiter = ',', required = true)]
    reward: Vec<String>,
    /// More of the rewards win (BalancedDPO); otherwise each is brought to mean 0 and deviation 1 and the higher mean wins
    #[arg(long)]
    majority: bool,
    /// Scores that differ by less are a tie: in the score's unit, or in standard deviations if there are several
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = not_negative)]
    min_margin: f64,
    #[command(flatten)]
    cache: FeatureCache,
    #[command(flatten)]
    compute: Compute,
    /// Form of the summary
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

impl Relabel {
    /// Does what was asked for.
    pub fn run(self, console: Console) -> Result<()> {
        let opened = self.source.open(console)?;
        let mut scorer = Scorer::open(&self.reward, &self.compute.session(), self.cache.folder())?;
        let vote = Vote {
            majority: self.majority,
            min_margin: self.min_margin,
            keep_ties: self.target.ties == TiesArg::Keep,
            skip_damaged: self.target.skip_damaged,
            rows_per_file: self.target.shard_rows,
            replace: self.target.replace,
        };
        let mut progress = progress(console, "scoring", rows(&opened.splits));
        let from = &self.source.path;
        let done = relabel(
            opened,
            from,
            vote,
            &mut scorer,
            &self.target.folder,
            &STOP,
            &mut progress,
        )?;
        drop(progress);
        match self.format {
            Format::Json => output::json(&done),
            Format::Text => output::line(summary(&done)),
        }
    }
}

fn summary(done: &Relabelled) -> String {
    let mut text = format!(
        "{} pairs scored; written: {}; {} ties",
        done.scored,
        per_split(&done.splits),
        done.ties
    );
    if done.unlabelled > 0 {
        text += &format!("; {} had no label", done.unlabelled);
    }
    for (count, what) in [
        (done.left_out, "without a label or a second picture"),
        (done.damaged, "damaged"),
    ] {
        if count > 0 {
            text += &format!("; left out {count} {what}");
        }
    }
    if done.decided_by_both > 0 {
        let share = 100.0 * done.same_winner as f64 / done.decided_by_both as f64;
        text += &format!(
            "; of {} pairs with a winner before and now {share:.1} % keep it",
            done.decided_by_both
        );
    }
    text
}
