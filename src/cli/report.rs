//! `ortdpo report`: a page about runs, evaluations and ablations.

use std::path::PathBuf;

use clap::Args;
use ortdpo::report::{self, ReportOptions};
use ortdpo::{Error, Result};
use serde::Serialize;

use super::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  ortdpo report runs/demo -o report.html              the curves of a run
  ortdpo report runs/a runs/b -o compare.html         two runs in the same charts
  ortdpo report runs/demo eval/demo -o report.html --svg plots
                                                      with images and scores; plots as files too";

/// Write one HTML file about training runs, evaluations and ablations
///
/// The file holds everything it shows and opens without a network: curves, timestep bins, reference drift, settings,
/// tables, and images side by side with their scores. Several runs share their charts.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Report {
    /// Output folders of `ortdpo train` and `ortdpo eval`
    #[arg(value_name = "DIR", required = true)]
    folders: Vec<PathBuf>,
    /// Where to write the page
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
    /// Write each plot as an SVG file into this folder as well
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
    /// Heading of the page
    #[arg(long, default_value = "ortdpo report")]
    title: String,
    /// Prompts shown with their images, per evaluation
    #[arg(long, value_name = "N", default_value_t = 48)]
    prompts: usize,
    /// Longest side of an image in the page; larger ones are shrunk
    #[arg(long, value_name = "PIXELS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=4096))]
    image_size: u32,
    /// How to print the summary
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Serialize)]
struct Summary {
    output: PathBuf,
    bytes: u64,
    plots: usize,
    images: usize,
    svg: Option<PathBuf>,
    notes: Vec<String>,
}

impl Report {
    pub fn run(self) -> Result<()> {
        if self.output.is_dir() {
            return Err(Error::bad(
                format!("--output {}", self.output.display()),
                "is a folder",
                "Name the file to write, such as report.html.",
            ));
        }
        let options = ReportOptions {
            title: self.title,
            prompts: self.prompts,
            image_size: self.image_size,
        };
        let report = report::build(&self.folders, &options)?;
        report.write(&self.output)?;
        if let Some(folder) = &self.svg {
            report.write_plots(folder)?;
        }
        let summary = Summary {
            bytes: report.html.len() as u64,
            output: self.output,
            plots: report.plots.len(),
            images: report.images,
            svg: self.svg,
            notes: report.notes,
        };
        match self.format {
            Format::Json => output::json(&summary),
            Format::Text => text(&summary),
        }
    }
}

fn text(summary: &Summary) -> Result<()> {
    for note in &summary.notes {
        output::line(format_args!("note: {note}"))?;
    }
    output::line(format_args!(
        "{}: {} plots, {} images, {}",
        summary.output.display(),
        summary.plots,
        summary.images,
        output::bytes(summary.bytes)
    ))?;
    match &summary.svg {
        Some(folder) => output::line(format_args!("{}: {} SVG files", folder.display(), summary.plots)),
        None => Ok(()),
    }
}
