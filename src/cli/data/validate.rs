//! `ortdpo data validate`: whether every row can be used.

use clap::Args;
use ortdpo::dataset_tools::validate;
use ortdpo::progress::Console;
use ortdpo::{Error, Result};

use super::super::output::{self, Format};
use super::{Source, progress, rows};

const EXAMPLES: &str = "\
Examples:
  ortdpo data validate pickapic
  ortdpo data validate --from hpdv2 HPDv2 --split train --jobs 8
  ortdpo data validate pairs.jsonl --format json > problems.json

Every picture is decoded. Broken rows are listed with file and row, and the exit code is 2 if there are any.";

/// Check that every row is whole and every picture decodes
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Validate {
    #[command(flatten)]
    source: Source,
    /// Form of the list
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

impl Validate {
    /// Does what was asked for.
    pub fn run(self, console: Console) -> Result<()> {
        let splits = self.source.open(console)?.splits;
        let mut progress = progress(console, "checking", rows(&splits));
        let found = validate(&splits, &mut progress)?;
        drop(progress);
        match self.format {
            Format::Json => output::json(&found)?,
            Format::Text => {
                for problem in &found.problems {
                    output::line(format!("{}: {}", problem.place, problem.what))?;
                }
            }
        }
        let (rows, broken) = (found.rows, found.problems.len());
        match broken {
            0 if self.format == Format::Json => Ok(()),
            0 => output::line(format!(
                "{rows} rows, {} without a label; all can be used",
                found.unlabelled
            )),
            _ => Err(Error::bad(
                self.source.path.display().to_string(),
                format!("{broken} of {rows} rows cannot be used"),
                "Mend or remove them, or leave them out with `ortdpo data convert --skip-damaged`.",
            )),
        }
    }
}
