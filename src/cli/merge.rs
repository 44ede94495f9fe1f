//! `ortdpo merge`: a pipeline with adapters in its weights.

use std::path::PathBuf;

use clap::Args;
use ortdpo::Result;
use ortdpo::model_folder::ModelFolder;
use ortdpo::pipeline::AdapterRef;
use ortdpo::pipeline::merge::merge;
use serde::Serialize;

use super::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  ortdpo merge --model models/tiny-sd --adapter runs/demo --output merged
  ortdpo merge --model sdxl-onnx --adapter style.safetensors:0.7 --adapter runs/a --output sdxl-merged

`ortdpo generate --adapter` needs no merging; merge for programs that know no adapters. \
`ortdpo adapter merge` is another thing: it makes one adapter file of several.";

/// Write a pipeline folder with adapters merged into its weights
///
/// Networks that no adapter changes are hard-linked where the disk allows, so do not change their weights in place.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Merge {
    /// Pipeline folder, as `optimum-cli export onnx` writes it
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Adapter (or the folder of a run), and how much it counts; can be given several times
    #[arg(long, required = true, value_name = "FILE[:SCALE]")]
    adapter: Vec<AdapterRef>,
    /// Folder to write, which must not exist yet
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// How to print the summary
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Serialize)]
struct Summary {
    output: PathBuf,
    components: Vec<String>,
    weights: usize,
}

impl Merge {
    /// Does what was asked for.
    pub fn run(self) -> Result<()> {
        let merged = merge(&ModelFolder::open(&self.model)?, &self.adapter, &self.output)?;
        let summary = Summary {
            components: merged.components.iter().map(ToString::to_string).collect(),
            output: self.output,
            weights: merged.weights,
        };
        match self.format {
            Format::Json => output::json(&summary),
            Format::Text => output::line(format!(
                "{}: {} weights changed in {}",
                summary.output.display(),
                summary.weights,
                summary.components.join(", ")
            )),
        }
    }
}
