//! `ortdpo score`: what reward models say of pictures.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};
use ortdpo::fsutil::write_atomically;
use ortdpo::progress::Console;
use ortdpo::score::source::{self, Source};
use ortdpo::score::{Scored, Scorer, prompts as pairing};
use ortdpo::stats::{self, percentile};
use ortdpo::table::{self, Cell, Column, Table};
use ortdpo::{Error, Result, prompts};
use serde_json::Value;

use super::compute::{Compute, FeatureCache};
use super::output;

const EXAMPLES: &str = "\
Examples:
  ortdpo score --reward clip,judge --images out
  ortdpo score --reward aesthetic --images 'pictures/*.jpg' --format csv --output scores.csv
  ortdpo score --reward hpsv2.1 --images benchmark --prompts prompts.tsv --group-by style
  ortdpo score --reward pickscore --images pairs.parquet --format parquet --output scores.parquet

A reward is a folder with a reward.yaml, or the name of one under models/, $ORTDPO_REWARDS or the data directory. \
Prompts come from images.jsonl or the parquet file, from --prompts, or from the text in PNG files.";

/// Asks to stop; what was scored stays in the cache.
static STOP: AtomicBool = AtomicBool::new(false);

/// Broken pictures that are named one by one.
const PROBLEMS_SHOWN: usize = 5;

/// Rate pictures with reward models
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Score {
    /// Reward models, by folder or name, separated by commas
    #[arg(long, value_name = "NAME|DIR", value_delimiter = ',', required = true)]
    reward: Vec<String>,
    /// Pictures: a folder (its images.jsonl, or all PNG, JPEG and WebP files below it), a glob, a .jsonl or .parquet file
    #[arg(long, value_name = "DIR|GLOB|FILE")]
    images: String,
    /// Prompts of the pictures, in the order of their names
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Summarise by the values of a column, such as style or Category
    #[arg(long, value_name = "COLUMN")]
    group_by: Option<String>,
    /// What to give out: a summary for people, or a row per picture
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// File for the rows; the summary then goes to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    cache: FeatureCache,
    #[command(flatten)]
    compute: Compute,
}

/// Forms of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A summary for people.
    Table,
    /// A row per picture.
    Csv,
    /// An object with `rows` and `summary`.
    Json,
    /// A row per picture; needs --output.
    Parquet,
}

impl Score {
    /// Does what was asked for.
    pub fn run(self, quiet: bool) -> Result<()> {
        self.check()?;
        let console = Console::new(quiet);
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed))
            .map_err(|e| Error::Runtime(format!("cannot listen for Ctrl-C: {e}")))?;
        let options = self.compute.session();
        let source = self.source()?;
        let mut scorer = Scorer::open(&self.reward, &options, self.cache.folder())?;
        let mut results = Results::new(&scorer);
        let mut job = console.job("scoring", source.len.unwrap_or(0) as u64);
        scorer.score_records(source.records, &STOP, |scored| {
            results.add(scored, self.group_by.as_deref())?;
            job.advance(results.count as u64, "pictures");
            Ok(())
        })?;
        drop(job);
        for problem in results.problems.iter().take(PROBLEMS_SHOWN) {
            console.say(problem);
        }
        if results.problems.len() > PROBLEMS_SHOWN {
            console.say(&format!("… and {} more", results.problems.len() - PROBLEMS_SHOWN));
        }
        results.check(&self.images)?;
        if !results.problems.is_empty() {
            let (bad, all) = (results.problems.len(), results.count);
            console.say(&format!("{bad} of {all} pictures have no score by every reward"));
        }
        self.give_out(&results, console)
    }

    fn check(&self) -> Result<()> {
        match (self.format, &self.output) {
            (Format::Parquet, None) => Err(Error::bad(
                "--format parquet",
                "needs a file to write",
                "Name one with --output.",
            )),
            _ => Ok(()),
        }
    }

    fn source(&self) -> Result<Source> {
        let source = source::open(&self.images)?;
        Ok(match &self.prompts {
            Some(path) => pairing::pair(source, prompts::read(path)?, &path.display().to_string()),
            None => pairing::from_pictures(source),
        })
    }

    fn give_out(&self, results: &Results, console: Console) -> Result<()> {
        let (rows, summary) = (results.rows(), results.summary(self.group_by.as_deref()));
        let for_people = summary.render(table::Format::Text);
        let text = match self.format {
            Format::Table if self.output.is_none() => return output::line(for_people),
            Format::Table => rows.render(table::Format::Text),
            Format::Csv => rows.render(table::Format::Csv),
            Format::Json => format!(
                "{{\"rows\": {},\n\"summary\": {}}}",
                rows.render(table::Format::Json),
                summary.render(table::Format::Json)
            ),
            Format::Parquet => String::new(),
        };
        match (&self.output, self.format) {
            (Some(path), Format::Parquet) => rows.write_parquet(path)?,
            (Some(path), _) => write_atomically(path, format!("{text}\n").as_bytes())?,
            (None, _) => {
                console.say(&for_people);
                return output::line(text);
            }
        }
        output::line(for_people)
    }
}

/// Everything that was scored.
struct Results {
    rewards: Vec<String>,
    /// Names of the fields of the first record, which are columns.
    fields: Vec<String>,
    scored: Vec<Scored>,
    /// Scores by group and reward.
    groups: BTreeMap<String, Vec<Vec<f64>>>,
    problems: Vec<String>,
    count: usize,
}

impl Results {
    fn new(scorer: &Scorer) -> Self {
        Self {
            rewards: scorer.names().into_iter().map(str::to_owned).collect(),
            fields: Vec::new(),
            scored: Vec::new(),
            groups: BTreeMap::new(),
            problems: Vec::new(),
            count: 0,
        }
    }

    fn add(&mut self, scored: Scored, group_by: Option<&str>) -> Result<()> {
        let record = &scored.record;
        if self.count == 0 {
            self.fields = record.fields.keys().cloned().collect();
        }
        self.count += 1;
        let group = match group_by {
            None => String::new(),
            Some("prompt") => record.prompt.clone().unwrap_or_default(),
            Some(column) => match record.fields.get(column) {
                Some(value) => plain(value),
                None => {
                    let known: Vec<&str> = record.fields.keys().map(String::as_str).collect();
                    return Err(Error::bad(
                        format!("--group-by {column}"),
                        format!("is no column of {}", record.file),
                        format!("There are {}.", [&["prompt"], &known[..]].concat().join(", ")),
                    ));
                }
            },
        };
        let rewards = self.rewards.len();
        let of_group = self
            .groups
            .entry(group)
            .or_insert_with(|| vec![Vec::new(); rewards]);
        for (values, score) in of_group.iter_mut().zip(&scored.scores) {
            values.extend(score);
        }
        if let Some(problem) = &scored.problem {
            self.problems.push(format!("{}: {problem}", record.file));
        }
        self.scored.push(scored);
        Ok(())
    }

    /// Refuses to sum up nothing.
    fn check(&self, images: &str) -> Result<()> {
        let is_empty = self.groups.values().flatten().all(Vec::is_empty);
        match self.problems.first() {
            Some(first) if is_empty => Err(Error::bad(
                images,
                format!(
                    "holds no picture that could be scored; the first: {}",
                    first.trim_end_matches('.')
                ),
                "Check the pictures and their prompts.",
            )),
            _ => Ok(()),
        }
    }

    /// A row per picture.
    fn rows(&self) -> Table {
        let mut columns = vec![Column::text("file"), Column::text("prompt")];
        columns.extend(self.fields.iter().map(Column::text));
        columns.extend(self.rewards.iter().map(|name| Column::real(name, 4)));
        columns.push(Column::text("problem"));
        let mut table = Table::new(columns);
        for scored in &self.scored {
            let record = &scored.record;
            let mut row = vec![Cell::from(record.file.as_str()), record.prompt.clone().into()];
            row.extend(
                self.fields
                    .iter()
                    .map(|name| record.fields.get(name).map(plain).into()),
            );
            row.extend(scored.scores.iter().map(|score| Cell::from(*score)));
            row.push(scored.problem.clone().into());
            table.push(row);
        }
        table
    }

    /// A row per group and reward.
    fn summary(&self, group_by: Option<&str>) -> Table {
        let mut columns: Vec<Column> = group_by.map(Column::text).into_iter().collect();
        columns.extend([Column::text("reward"), Column::integer("n")]);
        let numbers = ["mean", "stderr", "p5", "p25", "median", "p75", "p95"];
        columns.extend(numbers.map(|name| Column::real(name, 4)));
        let mut table = Table::new(columns);
        for (group, of_rewards) in &self.groups {
            for (reward, values) in self.rewards.iter().zip(of_rewards) {
                let mut sorted = values.clone();
                sorted.sort_by(f64::total_cmp);
                let summary = stats::Summary::of(values);
                let at = |percent| (!sorted.is_empty()).then(|| percentile(&sorted, percent));
                let mut row: Vec<Cell> = group_by.map(|_| group.as_str().into()).into_iter().collect();
                row.extend([reward.as_str().into(), values.len().into()]);
                row.push(summary.map(|s| s.mean).into());
                row.push(summary.and_then(|s| s.standard_error).into());
                row.extend([5.0, 25.0, 50.0, 75.0, 95.0].map(|percent| at(percent).into()));
                table.push(row);
            }
        }
        table
    }
}

/// A field's value as people would write it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
