//! `ortdpo adapter convert`: an adapter in another form.

use std::path::PathBuf;

use clap::Args;
use ortdpo::Result;

use super::{To, Writing, read};
use crate::cli::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  ortdpo adapter convert runs/demo style.safetensors --to kohya
  ortdpo adapter convert civitai.safetensors pytorch_lora_weights.safetensors --to diffusers
  ortdpo adapter convert runs/demo demo.onnx_adapter --to onnx --dtype f16";

/// Write an adapter in the form of diffusers, Kohya's scripts or ONNX Runtime
///
/// Factors keep every bit unless --dtype says otherwise, and so does alpha; only ONNX Runtime's form, which knows no
/// scale, has alpha/rank in B. Metadata goes along; hashes of the old file do not. An .onnx_adapter is of one network: of
/// several, each gets a file with its name before the suffix.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Convert {
    /// Adapter, or the folder of a run
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// File to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Form to write
    #[arg(long, value_enum)]
    to: To,
    #[command(flatten)]
    writing: Writing,
    /// How to print the summary
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Convert {
    /// Does what was asked for.
    pub fn run(self) -> Result<()> {
        let (lora, form) = read(&self.input)?;
        let form = self.writing.form(Some(self.to), form);
        self.writing.check(&lora, form, &self.output)?;
        let written = self.writing.write(lora, form, &self.output)?;
        match self.format {
            Format::Json => output::json(&written),
            Format::Text => output::line(written.text()),
        }
    }
}
