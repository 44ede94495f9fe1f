//! `ortdpo adapter inspect`: what is in an adapter file, and whether it fits a model.

use std::path::PathBuf;

use clap::Args;
use ortdpo::adapter::content;
use ortdpo::adapter::inspect::{ComponentSummary, Summary, summarise};
use ortdpo::model_folder::ModelFolder;
use ortdpo::pipeline::AdapterRef;
use ortdpo::pipeline::compare::{Difference, differences};
use ortdpo::{Error, Result};
use serde::Serialize;

use crate::cli::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  ortdpo adapter inspect runs/demo
  ortdpo adapter inspect style.safetensors --model sdxl-onnx
  ortdpo adapter inspect style.safetensors --format json | jq .components";

/// Say what is in an adapter file, and what of it a model does not have
///
/// Norms are Frobenius norms of alpha/rank · B·A: how much the weights change. With --model every difference is listed,
/// and the exit code is 2 if the adapter cannot be used with it.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Inspect {
    /// Adapter, whole weights, or the folder of a run
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Pipeline folder to compare with
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Serialize)]
struct Report {
    file: PathBuf,
    #[serde(flatten)]
    summary: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    fits: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    differences: Option<Vec<Difference>>,
}

impl Inspect {
    /// Does what was asked for.
    pub fn run(self) -> Result<()> {
        let reference = AdapterRef {
            path: self.file,
            scale: 1.0,
        };
        let path = reference.file()?;
        let file = content::read(&path)?;
        let model = self.model.as_ref().map(ModelFolder::open).transpose()?;
        let found = model
            .as_ref()
            .map(|m| differences(&file.content, m))
            .transpose()?;
        let fatal = found.iter().flatten().filter(|d| d.kind.is_fatal()).count();
        let report = Report {
            summary: summarise(&file),
            fits: found.as_ref().map(|_| fatal == 0),
            differences: found,
            file: path,
        };
        match self.format {
            Format::Json => output::json(&report)?,
            Format::Text => output::line(text(&report))?,
        }
        match (self.model, fatal) {
            (Some(model), 1..) => Err(Error::bad(
                report.file.display().to_string(),
                format!("does not fit {}: {}", model.display(), counted(&report)),
                "Give an adapter that was trained on this kind of model.",
            )),
            _ => Ok(()),
        }
    }
}

/// How many differences there are of each kind.
fn counted(report: &Report) -> String {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for difference in report.differences.iter().flatten().filter(|d| d.kind.is_fatal()) {
        let kind = difference.kind.to_string();
        match counts.last_mut() {
            Some((last, count)) if *last == kind => *count += 1,
            _ => counts.push((kind, 1)),
        }
    }
    let plural = |n: usize| if n == 1 { "" } else { "s" };
    let counts: Vec<String> = counts
        .iter()
        .map(|(kind, n)| format!("{n} difference{} of {kind}", plural(*n)))
        .collect();
    counts.join(", ")
}

fn text(report: &Report) -> String {
    let summary = &report.summary;
    let mut parts = vec![overview(report)];
    if !summary.groups.is_empty() {
        let rows = summary.groups.iter().map(|g| {
            [
                format!("{}: {}", g.component, g.name),
                g.modules.to_string(),
                number(g.mean_norm),
                number(g.largest_norm),
                g.largest.clone(),
            ]
        });
        let head = ["modules", "count", "mean norm", "largest norm", "of"];
        parts.push(output::table(head, rows));
    }
    if !summary.metadata.is_empty() {
        let rows = summary
            .metadata
            .iter()
            .map(|(key, text)| [key.clone(), shortened(text)]);
        parts.push(output::table(["metadata", ""], rows));
    }
    if let Some(differences) = &report.differences {
        let rows = differences.iter().map(|d| {
            let name = format!("{}.{}", d.component, d.name);
            [d.kind.to_string(), name, d.adapter.clone(), d.model.clone()]
        });
        parts.push(match differences.is_empty() {
            true => "The model has everything that the adapter changes.".into(),
            false => output::table(["difference", "module", "adapter", "model"], rows),
        });
    }
    parts.join("\n\n")
}

fn overview(report: &Report) -> String {
    let summary = &report.summary;
    let base = summary.base.clone().unwrap_or_else(|| "unknown".into());
    let head = [
        ["form".to_owned(), summary.format.clone()],
        ["trained on".to_owned(), base],
        ["parameters".to_owned(), summary.parameters.to_string()],
    ];
    let component = |c: &ComponentSummary| {
        let ranks = c.ranks.iter().map(|(rank, n)| (rank.to_string(), *n));
        let alphas = c.alphas.iter().map(|(alpha, n)| (number(*alpha), *n));
        let dtypes = c.dtypes.iter().map(|(dtype, n)| (dtype.clone(), *n));
        let mut words = vec![format!("{} modules", c.modules)];
        for (name, counts) in [
            ("rank", counts(ranks)),
            ("alpha", counts(alphas)),
            ("", counts(dtypes)),
        ] {
            if !counts.is_empty() {
                words.push(format!("{name} {counts}").trim_start().to_owned());
            }
        }
        words.extend(c.norm.map(|norm| format!("norm {}", number(norm))));
        [c.component.clone(), words.join(", ")]
    };
    let rows = head.into_iter().chain(summary.components.iter().map(component));
    output::table(["adapter", &report.file.display().to_string()], rows)
}

/// `8`, or `4 (10 of them), 8 (118)` where modules differ.
fn counts(values: impl Iterator<Item = (String, usize)>) -> String {
    /// More different values than this are only counted.
    const SHOWN: usize = 6;
    let values: Vec<(String, usize)> = values.collect();
    match values.as_slice() {
        [(only, _)] => only.clone(),
        few if few.len() <= SHOWN => {
            let each = few.iter().map(|(value, n)| format!("{value} ({n}×)"));
            each.collect::<Vec<_>>().join(", ")
        }
        [(first, _), .., (last, _)] => format!("{first} to {last}"),
        [] => String::new(),
    }
}

/// Four digits are enough to see by.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if (1e-3..1e5).contains(&size) => {
            let digits = (3 - size.log10().floor() as i32).max(0) as usize;
            let text = format!("{value:.digits$}");
            match text.contains('.') {
                true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
                false => text,
            }
        }
        _ => format!("{value:.3e}"),
    }
}

/// Long texts, such as lists of all modules, are shown by their beginning.
fn shortened(text: &str) -> String {
    const LENGTH: usize = 72;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(LENGTH) {
        None => text,
        Some((end, _)) => format!("{}… ({} characters)", &text[..end], text.chars().count()),
    }
}
