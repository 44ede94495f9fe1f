//! One HTML file that shows training runs, evaluations and ablations, and the same plots as SVG files.
//!
//! ```text
//! run folder:  metrics.jsonl, summary.json, manifest.json, config.yaml ──run──► curves, bins, settings ─┐
//! evaluation:  results.json, models/*/{images,scores}.jsonl, *.png ──evaluation──► tables, gallery ─────┤
//! ablation:    ablation.json, config.yaml ──ablation──► tables, gains, curves over training ────────────┤
//!                                                          page ◄── sections ◄──────────────────────────┘
//! ```
//!
//! The file refers to nothing outside itself: styles, script and images are in it, and its content security policy
//! forbids anything else. What comes from prompts and files is text to it, never markup ([`html`]).

mod ablation;
mod bins;
mod curves;
mod evaluation;
mod gallery;
mod html;
mod metrics;
mod overview;
mod page;
mod ranking;
mod results;
mod run;
mod settings;
mod tables;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::fsutil::write_atomically;
use crate::plot::Figure;
use crate::{Error, Result};
use ablation::Ablation;
use evaluation::Evaluation;
use html::Section;
use run::Run;

/// What goes into a report.
#[derive(Debug, Clone)]
pub struct ReportOptions {
    /// Heading of the page.
    pub title: String,
    /// Prompts shown with their images, per evaluation.
    pub prompts: usize,
    /// Longest side of an image in the file, in pixels; larger ones are shrunk.
    pub image_size: u32,
}

impl Default for ReportOptions {
    fn default() -> Self {
        Self {
            title: "ortdpo report".into(),
            prompts: 48,
            image_size: 256,
        }
    }
}

/// A finished report.
#[derive(Debug)]
pub struct Report {
    /// The page.
    pub html: String,
    /// Its plots, each with the name of its file without the extension.
    pub plots: Vec<(String, Figure)>,
    /// What the page leaves out or could not read, one sentence each.
    pub notes: Vec<String>,
    /// Images in the page.
    pub images: usize,
}

/// A folder that can be reported on.
enum Source {
    Ablation(Ablation),
    Run(Run),
    Evaluation(Evaluation),
}

/// Reads the folders of runs, evaluations and ablations and lays them out. Several runs share their charts.
///
/// # Errors
/// A folder holds no run, evaluation or ablation, or what it holds cannot be read.
pub fn build(folders: &[PathBuf], options: &ReportOptions) -> Result<Report> {
    let mut ablations = Vec::new();
    let mut runs = Vec::new();
    let mut evaluations = Vec::new();
    for (folder, name) in folders.iter().zip(names(folders)) {
        match open(folder, name)? {
            Source::Ablation(ablation) => ablations.push(ablation),
            Source::Run(run) => runs.push(run),
            Source::Evaluation(evaluation) => evaluations.push(evaluation),
        }
    }
    let mut sections = Vec::new();
    sections.extend(overview::section(&runs));
    sections.extend(ablations.iter().flat_map(Ablation::sections));
    let mut images = 0;
    let mut notes: Vec<String> = runs.iter().flat_map(|run| run.notes.clone()).collect();
    notes.extend(ablations.iter().flat_map(Ablation::notes));
    notes.extend(evaluations.iter().flat_map(|evaluation| evaluation.notes.clone()));
    for evaluation in &evaluations {
        let gallery = gallery::section(evaluation, options)?;
        sections.push(tables::section(evaluation));
        sections.extend(ranking::section(evaluation, &gallery.shown));
        images += gallery.images;
        notes.extend(gallery.notes);
        sections.extend(gallery.section);
    }
    sections.extend(curves::sections(&runs));
    sections.extend(bins::sections(&runs));
    sections.extend(settings::section(&runs, &evaluations));
    Ok(Report {
        html: page::render(&options.title, &notes, &sections),
        plots: named_plots(sections),
        notes,
        images,
    })
}

fn open(folder: &Path, name: String) -> Result<Source> {
    if Ablation::is_at(folder) {
        return Ablation::read(folder, name).map(Source::Ablation);
    }
    if Run::is_at(folder) {
        return Run::read(folder, name).map(Source::Run);
    }
    if Evaluation::is_at(folder) {
        return Evaluation::read(folder, name).map(Source::Evaluation);
    }
    let what = match folder.is_dir() {
        true => {
            "holds no training run (metrics.jsonl), no evaluation (results.json) and no ablation (ablation.json)"
        }
        false => "is not a folder",
    };
    Err(Error::bad(
        folder.display().to_string(),
        what,
        "Give the --output folder of `ortdpo train`, `ortdpo eval` or `ortdpo ablate`.",
    ))
}

/// What each folder is called in the report: its own name, with as many of its parents' as tell it from the others.
fn names(folders: &[PathBuf]) -> Vec<String> {
    let parts = |folder: &PathBuf| -> Vec<String> {
        let whole = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.clone());
        let part = |c: std::path::Component<'_>| c.as_os_str().to_string_lossy().into_owned();
        whole.components().map(part).collect()
    };
    let all: Vec<Vec<String>> = folders.iter().map(parts).collect();
    let tail = |parts: &[String], n: usize| parts[parts.len().saturating_sub(n)..].join("/");
    let name = |parts: &Vec<String>| {
        let unique = |n: &usize| {
            all.iter()
                .filter(|other| tail(other, *n) == tail(parts, *n))
                .count()
                == 1
        };
        let depth = (1..=parts.len()).find(unique).unwrap_or(parts.len());
        tail(parts, depth)
    };
    all.iter().map(name).collect()
}

/// Names of files from the titles of the plots; equal ones are numbered.
fn named_plots(sections: Vec<Section>) -> Vec<(String, Figure)> {
    let mut named: Vec<(String, Figure)> = Vec::new();
    for figure in sections.into_iter().flat_map(|section| section.figures) {
        let stem = html::slug(&figure.title);
        let mut name = stem.clone();
        let mut number = 2;
        while named.iter().any(|(taken, _)| *taken == name) {
            name = format!("{stem}-{number}");
            number += 1;
        }
        named.push((name, figure));
    }
    named
}

impl Report {
    /// Writes the page.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomically(path, self.html.as_bytes())
    }

    /// Writes each plot as `NAME.svg` into `folder`, which is made if need be.
    ///
    /// # Errors
    /// One cannot be written.
    pub fn write_plots(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
        self.plots.iter().try_for_each(|(name, figure)| {
            write_atomically(&folder.join(format!("{name}.svg")), figure.file().as_bytes())
        })
    }
}
