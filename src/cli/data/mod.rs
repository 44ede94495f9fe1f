//! `ortdpo data`: preference data sets looked at, checked, turned into parquet files, divided, labelled anew.

mod convert;
mod inspect;
mod relabel;
mod split;
mod validate;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Subcommand, ValueEnum};
use ortdpo::config::data::DataKind;
use ortdpo::data::note_on_files;
use ortdpo::dataset_tools::{Input, OpenSplit, Opened};
use ortdpo::pairs::Choose;
use ortdpo::progress::Console;
use ortdpo::{Error, Result};

use super::pairs::ChooseArg;

const EXAMPLES: &str = "\
Examples:
  ortdpo data inspect pickapic      what a data set holds
  ortdpo data validate hpdv3        whether every picture is there and decodes
  ortdpo data convert --from hpdv2 HPDv2 pairs
                                    parquet files that training reads fastest
  ortdpo data split pairs.jsonl pairs --held-out 0.05
                                    no prompt in both parts
  ortdpo data relabel pairs relabelled --reward pickscore,hpsv2.1,clip --majority

The kind of a data set is found out by its look, or given with --from; docs/data.md shows what each looks like. `ortdpo train` \
reads any of them: data: {kind: hpdv2, path: HPDv2}.";

/// Asks to stop.
static STOP: AtomicBool = AtomicBool::new(false);

/// Look at, check, convert, divide or relabel preference data of any kind
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Data {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Convert(convert::Convert),
    Inspect(inspect::Inspect),
    Relabel(relabel::Relabel),
    Split(split::Split),
    Validate(validate::Validate),
}

impl Data {
    /// Does what was asked for.
    pub fn run(self, quiet: bool) -> Result<()> {
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed))
            .map_err(|e| Error::Runtime(format!("cannot listen for Ctrl-C: {e}")))?;
        let console = Console::new(quiet);
        match self.command {
            Command::Convert(command) => command.run(console),
            Command::Inspect(command) => command.run(console),
            Command::Relabel(command) => command.run(console),
            Command::Split(command) => command.run(console),
            Command::Validate(command) => command.run(console),
        }
    }
}

/// Which data set is read.
#[derive(Args)]
struct Source {
    /// Data set: a folder, or a single file of it
    #[arg(value_name = "IN")]
    path: PathBuf,
    /// What it is: pickapic, chosen_rejected, hpdv2, hpdv3, imagereward, jsonl, imagefolder, folders, webdataset or rated
    /// [default: found out by its look]
    #[arg(long, value_name = "KIND")]
    from: Option<DataKind>,
    /// Splits to read, separated by commas [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    split: Vec<String>,
    /// Which pictures of a prompt meet where the data set ranks several
    #[arg(long, value_enum, default_value = "all")]
    choose: ChooseArg,
    /// Threads that read and decode; 0 for all
    #[arg(long, default_value_t = 0, value_name = "N")]
    jobs: usize,
}

impl Source {
    /// Opens it, with a word on files that are not read; from now on so many threads work.
    fn open(&self, console: Console) -> Result<Opened> {
        let opened = self.input()?.open()?;
        for path in &opened.passed_over {
            console.say(&format!(
                "{}: left aside, since it is no list of {}",
                path.display(),
                opened.kind
            ));
        }
        for split in &opened.splits {
            if let Some(note) = note_on_files(split.source.as_ref()) {
                console.say(&note);
            }
        }
        Ok(opened)
    }

    fn input(&self) -> Result<Input> {
        rayon::ThreadPoolBuilder::new()
            .num_threads(self.jobs)
            .build_global()
            .map_err(|e| Error::Runtime(format!("cannot start {} threads: {e}", self.jobs)))?;
        Ok(Input {
            path: self.path.clone(),
            kind: self.from,
            splits: self.split.clone(),
            choose: Choose::from(self.choose),
        })
    }
}

/// What is done with ties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TiesArg {
    /// They are left out
    Drop,
    /// They are written with label ½; data.ties says what training makes of them
    Keep,
}

/// Where parquet files are written, and what goes into them.
#[derive(Args)]
struct Target {
    /// Folder for the parquet files
    #[arg(value_name = "OUT")]
    folder: PathBuf,
    /// What is done with ties
    #[arg(long, value_enum, default_value = "keep")]
    ties: TiesArg,
    /// Leave out rows that are damaged, instead of ending at the first
    #[arg(long)]
    skip_damaged: bool,
    /// Rows of a file
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = at_least_one)]
    shard_rows: usize,
    /// Replace parquet files that the folder holds
    #[arg(long)]
    replace: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n >= 1 => Ok(n),
        _ => Err("give a whole number from 1 on".to_owned()),
    }
}

/// Rows of all splits.
fn rows(splits: &[OpenSplit]) -> u64 {
    splits.iter().map(|split| split.source.len()).sum()
}

/// Shows progress and passes on that the user wants to stop.
fn progress(console: Console, name: &'static str, total: u64) -> impl FnMut(u64) -> ControlFlow<()> {
    let mut job = console.job(name, total);
    move |done| {
        job.advance(done, "rows");
        match STOP.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// `12 train, 3 heldout`.
fn per_split(splits: &[(String, u64)]) -> String {
    let parts: Vec<String> = splits
        .iter()
        .map(|(name, rows)| format!("{rows} {name}"))
        .collect();
    parts.join(", ")
}
