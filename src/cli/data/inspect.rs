//! `ortdpo data inspect`: what a data set holds.

use std::path::PathBuf;

use clap::Args;
use ortdpo::config::data::DataKind;
use ortdpo::dataset_tools::Opened;
use ortdpo::dataset_tools::inspect::{Inspection, Look, Sheet, SplitInspection, inspect};
use ortdpo::fsutil::check_output;
use ortdpo::picture::write_png;
use ortdpo::progress::Console;
use ortdpo::{Error, Result};
use serde::Serialize;

use super::super::output::{self, Format};
use super::{Source, at_least_one, progress, rows};

const EXAMPLES: &str = "\
Examples:
  ortdpo data inspect pickapic
  ortdpo data inspect --from hpdv3 HPDv3 --sheet sheet.png
  ortdpo data inspect pairs.jsonl --alike --format json

Pictures are compared byte by byte; --alike also finds those that look the same, by difference hashes, for which all are decoded.";

/// Sizes of pictures that are listed.
const SIZES_SHOWN: usize = 8;

/// Count rows, ties, prompts, sizes, formats and duplicates
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Inspect {
    #[command(flatten)]
    source: Source,
    /// Look for pictures that look alike, too
    #[arg(long)]
    alike: bool,
    /// Draw random pairs, the preferred picture to the left, into a PNG file
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Pairs on the sheet
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = at_least_one)]
    sheet_pairs: usize,
    /// Of the draw for the sheet
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Form of the report
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// What programs read.
#[derive(Serialize)]
struct Report<'a> {
    kind: DataKind,
    #[serde(flatten)]
    inspection: &'a Inspection,
}

impl Inspect {
    /// Does what was asked for.
    pub fn run(self, console: Console) -> Result<()> {
        if let Some(sheet) = &self.sheet {
            check_output(sheet, true)?;
            if sheet.extension().is_none_or(|x| !x.eq_ignore_ascii_case("png")) {
                return Err(Error::bad(
                    sheet.display().to_string(),
                    "is not named as a PNG file, which a sheet is",
                    "Give a name that ends in .png.",
                ));
            }
        }
        let Opened { kind, splits, .. } = self.source.open(console)?;
        let mut sheet = self
            .sheet
            .as_ref()
            .map(|_| Sheet::new(self.sheet_pairs, self.seed));
        let look = Look {
            alike: self.alike,
            single: kind == DataKind::Rated,
        };
        let mut progress = progress(console, "reading", rows(&splits));
        let inspection = inspect(&splits, look, sheet.as_mut(), &mut progress)?;
        drop(progress);
        if let (Some(path), Some(sheet)) = (&self.sheet, sheet) {
            let title = self.source.path.display().to_string();
            let picture = sheet.draw(&title).ok_or_else(|| {
                Error::bad(
                    title.as_str(),
                    "has no pair to draw",
                    "See what `ortdpo data validate` says.",
                )
            })?;
            write_png(path, &picture, &[])?;
        }
        match self.format {
            Format::Json => output::json(&Report {
                kind,
                inspection: &inspection,
            }),
            Format::Text => output::line(text(kind, &inspection)),
        }
    }
}

fn text(kind: DataKind, inspection: &Inspection) -> String {
    let mut text = format!("kind: {kind}\n");
    for split in &inspection.splits {
        let title = format!("split {}", split.split);
        let rows = facts(kind, split)
            .into_iter()
            .map(|(name, value)| [name.to_owned(), value]);
        text += &format!("\n{}", output::table([title.as_str(), ""], rows));
        for example in &split.examples {
            text += &format!("\n  damaged: {example}");
        }
        for example in &split.duplicates.alike_examples {
            text += &format!("\n  alike: {example}");
        }
        text += "\n";
    }
    if inspection.splits.len() > 1 {
        let shared = &inspection.shared;
        text += &format!(
            "\nin more than one split: {} prompts, {} pictures",
            shared.prompts, shared.pictures
        );
        if let Some(alike) = shared.alike {
            text += &format!("; {alike} pictures look like one of another split");
        }
        for example in &shared.alike_examples {
            text += &format!("\n  alike: {example}");
        }
    }
    text.trim_end().to_owned()
}

fn facts(kind: DataKind, split: &SplitInspection) -> Vec<(&'static str, String)> {
    let decided = (split.first_preferred + split.second_preferred).max(1);
    let share = 100.0 * split.first_preferred as f64 / decided as f64;
    let per_prompt = split.pairs_per_prompt;
    let duplicates = &split.duplicates;
    let formats = split.formats.iter().map(|(format, n)| format!("{n} {format}"));
    let is_single = kind == DataKind::Rated;
    let [first, second] = match is_single {
        true => ["liked", "not liked"],
        false => ["first preferred", "second preferred"],
    };
    let mut facts = vec![
        ("rows", split.rows.to_string()),
        ("usable", split.pairs.to_string()),
        (
            first,
            format!("{} ({share:.1} % of the decided)", split.first_preferred),
        ),
        (second, split.second_preferred.to_string()),
        ("ties", split.ties.to_string()),
        ("without a label", split.unlabelled.to_string()),
        ("damaged", split.damaged.to_string()),
        ("with scores", split.scored.to_string()),
        ("prompts", split.prompts.to_string()),
        (
            "rows per prompt",
            format!(
                "{:.2} on average, median {}, at most {}",
                per_prompt.mean, per_prompt.median, per_prompt.most
            ),
        ),
        (
            "pictures",
            format!("{}, {} as stored", split.pictures, output::bytes(split.bytes)),
        ),
        ("formats", formats.collect::<Vec<_>>().join(", ")),
        ("sizes", sizes(split)),
        ("pictures in several rows", duplicates.shared_pictures.to_string()),
    ];
    if !is_single {
        facts.extend([
            ("pairs of one picture", duplicates.same_picture_twice.to_string()),
            (
                "repeated pairs",
                format!(
                    "{}, {} with the opposite label",
                    duplicates.repeated_pairs, duplicates.contradictions
                ),
            ),
        ]);
    }
    if let Some(alike) = duplicates.alike {
        facts.push(("pictures that look like another", alike.to_string()));
    }
    facts
}

fn sizes(split: &SplitInspection) -> String {
    let size = |size: &ortdpo::dataset_tools::inspect::Resolution| {
        format!("{} {}×{}", size.pictures, size.width, size.height)
    };
    let mut sizes: Vec<String> = split.resolutions.iter().take(SIZES_SHOWN).map(size).collect();
    if split.resolutions.len() > SIZES_SHOWN {
        let others: u64 = split.resolutions[SIZES_SHOWN..]
            .iter()
            .map(|size| size.pictures)
            .sum();
        sizes.push(format!(
            "{others} of {} other sizes",
            split.resolutions.len() - SIZES_SHOWN
        ));
    }
    sizes.join(", ")
}
