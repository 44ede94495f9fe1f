//! `ortdpo pairs`: preference pairs from pictures and what reward models say of them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};
use ortdpo::pairs::{self, Candidate, Choose, Label, PairPlan, Selection, agreement};
use ortdpo::progress::Console;
use ortdpo::score::source::{self, Picture, Record};
use ortdpo::score::{Scored, Scorer, prompts as pairing};
use ortdpo::stats::WinRate;
use ortdpo::table::{Column, Format, Table};
use ortdpo::{Error, Result};

use super::compute::{Compute, FeatureCache};
use super::output;

const EXAMPLES: &str = "\
Examples:
  ortdpo pairs --images out/a --images out/b --reward clip --output pairs
                                    best against worst of each prompt's pictures
  ortdpo pairs --images out --reward hpsv2.1,pickscore,clip --label majority --choose all --output pairs
  ortdpo pairs --images out --reward clip --watch judge --choose all --label bradley-terry --temperature 0.5 \\
      --held-out 0.15 --output pairs
  ortdpo pairs --images scores.parquet --column quality --min-margin 0.5 --output pairs

`ortdpo train` reads the folder: data: {kind: pickapic, path: pairs}. Pictures of one prompt may come from several \
--images. Prompts come from images.jsonl, the parquet file, or the text in PNG files.";

/// Asks to stop; what was scored stays in the cache.
static STOP: AtomicBool = AtomicBool::new(false);

/// Broken pictures that are named one by one.
const PROBLEMS_SHOWN: usize = 5;

/// Make preference pairs of pictures that were generated and scored
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Pairs {
    /// Pictures: a folder, a glob, a .jsonl or a .parquet file with paths; can be given several times
    #[arg(long, value_name = "DIR|GLOB|FILE", required = true)]
    images: Vec<String>,
    /// Reward models whose scores count, by folder or name, separated by commas
    #[arg(
        long,
        value_name = "NAME|DIR",
        value_delimiter = ',',
        required_unless_present = "column"
    )]
    reward: Vec<String>,
    /// Scores that count and come with the pictures: columns of their .jsonl or .parquet file
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    column: Vec<String>,
    /// Reward models that do not count; their agreement with the labels is reported
    #[arg(long, value_name = "NAME|DIR", value_delimiter = ',')]
    watch: Vec<String>,
    #[command(flatten)]
    rules: Rules,
    /// Folder for train-*.parquet and heldout-*.parquet
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Replace pairs that the folder holds
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    cache: FeatureCache,
    #[command(flatten)]
    compute: Compute,
    /// Form of the summary: text, markdown, csv, json or latex
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    format: Format,
}

#[derive(Args)]
struct Rules {
    /// Which pictures of a prompt meet
    #[arg(long, value_enum, default_value = "best-worst")]
    choose: ChooseArg,
    /// Which of two is preferred. Several scores are each brought to mean 0 and deviation 1 and averaged, but for `majority`
    #[arg(long, value_enum, default_value = "score")]
    label: LabelArg,
    /// Of bradley-terry, in standard deviations of the pairs' differences
    #[arg(long, value_name = "X", default_value_t = 0.5, value_parser = not_negative)]
    temperature: f64,
    /// Leave out pairs whose scores differ by less: in the score's unit, or in standard deviations if there are several
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = not_negative)]
    min_margin: f64,
    /// Write ties, with label ½, instead of leaving them out
    #[arg(long)]
    keep_ties: bool,
    /// Share of the prompts for heldout-*.parquet
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    held_out: f64,
    /// Source of all draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ChooseArg {
    /// Highest score against lowest
    BestWorst,
    /// Every two
    All,
    /// Those that follow each other in the order of scores
    Adjacent,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LabelArg {
    /// The higher score wins
    Score,
    /// More of the scores win (BalancedDPO)
    Majority,
    /// The higher score wins more often; held-out pairs stay plain
    BradleyTerry,
}

impl From<ChooseArg> for Choose {
    fn from(choose: ChooseArg) -> Self {
        match choose {
            ChooseArg::BestWorst => Self::BestWorst,
            ChooseArg::All => Self::All,
            ChooseArg::Adjacent => Self::Adjacent,
        }
    }
}

impl Pairs {
    /// Does what was asked for.
    pub fn run(self, quiet: bool) -> Result<()> {
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed))
            .map_err(|e| Error::Runtime(format!("cannot listen for Ctrl-C: {e}")))?;
        let (names, candidates) = self.candidates(Console::new(quiet))?;
        let selection = pairs::select(&candidates, &self.plan());
        if selection.pairs.is_empty() {
            return Err(Error::bad(
                self.images.join(", "),
                format!(
                    "gives no pairs: {} prompts with several pictures, {} ties, {} pairs too close",
                    selection.prompts, selection.ties, selection.close
                ),
                "Give several pictures of each prompt, and check --min-margin.",
            ));
        }
        pairs::write(&self.output, &candidates, &names, &selection.pairs, self.replace)?;
        let table = summary(&names, &candidates, &selection);
        if self.format == Format::Text {
            output::line(counts(&selection))?;
        }
        output::line(table.render(self.format))
    }

    fn plan(&self) -> PairPlan {
        let Rules { temperature, .. } = self.rules;
        PairPlan {
            voters: self.column.len() + self.reward.len(),
            choose: self.rules.choose.into(),
            label: match self.rules.label {
                LabelArg::Score => Label::Score,
                LabelArg::Majority => Label::Majority,
                LabelArg::BradleyTerry => Label::BradleyTerry { temperature },
            },
            min_margin: self.rules.min_margin,
            keep_ties: self.rules.keep_ties,
            held_out: self.rules.held_out,
            seed: self.rules.seed,
        }
    }

    /// Names of all scores, those that vote first, and every picture that has them.
    fn candidates(&self, console: Console) -> Result<(Vec<String>, Vec<Candidate>)> {
        let options = self.compute.session();
        let rewards = [&self.reward[..], &self.watch[..]].concat();
        let mut scorer = Scorer::open(&rewards, &options, self.cache.folder())?;
        let names = self.column.iter().cloned();
        let names = names
            .chain(scorer.names().into_iter().map(str::to_owned))
            .collect();
        let mut candidates = Vec::new();
        let mut broken = 0;
        for named in &self.images {
            let source = pairing::from_pictures(source::open(named)?);
            let mut job = console.job("scoring", source.len.unwrap_or(0) as u64);
            let mut done = 0;
            let records = source.records.map(|record| record.and_then(with_file));
            scorer.score_records(Box::new(records), &STOP, |scored| {
                done += 1;
                job.advance(done, "pictures");
                match &scored.problem {
                    None => candidates.push(self.candidate(scored, named)?),
                    Some(problem) => {
                        broken += 1;
                        if broken <= PROBLEMS_SHOWN {
                            job.say(&format!("{}: {problem}; left out", scored.record.file));
                        }
                    }
                }
                Ok(())
            })?;
        }
        if broken > PROBLEMS_SHOWN {
            console.say(&format!("… and {} more left out", broken - PROBLEMS_SHOWN));
        }
        Ok((names, candidates))
    }

    fn candidate(&self, scored: Scored, source: &str) -> Result<Candidate> {
        let Record {
            file,
            picture,
            prompt,
            fields,
        } = scored.record;
        let Some(prompt) = prompt else {
            return Err(Error::bad(
                file,
                "comes without a prompt, so that nothing says which pictures belong together",
                "Name a folder of `ortdpo generate`, or a list with file and prompt.",
            ));
        };
        let column = |name: &String| match fields.get(name).and_then(serde_json::Value::as_f64) {
            Some(score) => Ok(score),
            None => Err(Error::bad(
                &file,
                format!("has no number in the column `{name}`"),
                "Check the name, or compute scores with --reward.",
            )),
        };
        let mut scores = self.column.iter().map(column).collect::<Result<Vec<f64>>>()?;
        scores.extend(scored.scores.into_iter().flatten());
        let text = |name: &str| fields.get(name).and_then(serde_json::Value::as_str);
        let path = match picture {
            Picture::File(path) => path,
            Picture::Bytes(_) | Picture::Part { .. } => {
                unreachable!("records without files were refused before they were scored")
            }
        };
        Ok(Candidate {
            model: text("model").unwrap_or(source).to_owned(),
            // The whole path: in their lists, pictures of several folders may have one name.
            name: path.display().to_string(),
            file: path,
            prompt,
            scores,
        })
    }
}

/// Pairs hold the files of pictures, which must be there still once all are scored.
fn with_file(record: Record) -> Result<Record> {
    match record.picture {
        Picture::File(_) => Ok(record),
        Picture::Bytes(_) | Picture::Part { .. } => Err(Error::bad(
            record.file,
            "lies inside a parquet file",
            "Give pictures as files: a folder, a glob, or a list with a column `file`.",
        )),
    }
}

fn counts(selection: &Selection) -> String {
    let held_out = selection.pairs.iter().filter(|pair| pair.held_out).count();
    format!(
        "{} pairs for training, {held_out} held out; {} prompts with several pictures, {} with one; {} ties, {} too close\n",
        selection.pairs.len() - held_out,
        selection.prompts,
        selection.lonely,
        selection.ties,
        selection.close
    )
}

/// How far each score agrees with the labels.
fn summary(names: &[String], candidates: &[Candidate], selection: &Selection) -> Table {
    let mut columns = vec![Column::text("score")];
    for split in ["train", "held-out"] {
        columns.push(Column::integer(format!("{split} pairs")));
        columns.push(Column::integer(format!("{split} ties")));
        columns.push(Column::real(format!("{split} agreement"), 3));
    }
    let mut table = Table::new(columns);
    for (index, name) in names.iter().enumerate() {
        let found = agreement(candidates, &selection.pairs, index);
        let cells = |rate: WinRate| [rate.n().into(), rate.ties.into(), rate.rate().into()];
        let row = [name.as_str().into()].into_iter();
        table.push(row.chain(cells(found.train)).chain(cells(found.held_out)));
    }
    table
}

pub(super) fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(x) if x >= 0.0 && f64::is_finite(x) => Ok(x),
        _ => Err("give a number from 0 on".to_owned()),
    }
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(x) if (0.0..=1.0).contains(&x) => Ok(x),
        _ => Err("give a number from 0 to 1".to_owned()),
    }
}
