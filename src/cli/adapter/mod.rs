//! `ortdpo adapter`: files of adapters, looked at, converted, made smaller, and merged.

mod convert;
mod export_base;
mod inspect;
mod merge;
mod resize;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use ortdpo::Result;
use ortdpo::adapter::form::Form;
use ortdpo::adapter::kohya::Naming;
use ortdpo::adapter::{Lora, Precision};
use ortdpo::fsutil::check_output;
use ortdpo::pipeline::AdapterRef;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  ortdpo adapter inspect style.safetensors --model sdxl-onnx
  ortdpo adapter convert runs/demo style.safetensors --to kohya --dtype f16
  ortdpo adapter resize style.safetensors small.safetensors --energy 0.95
  ortdpo adapter merge style.safetensors:0.7 runs/demo both.safetensors
  ortdpo adapter convert runs/demo demo.onnx_adapter --to onnx
  ortdpo adapter export-base models/tiny-sd tiny-adaptable --adapter runs/demo

`ortdpo merge` puts adapters into a pipeline's weights; `ortdpo adapter merge` makes one adapter of several. \
Wherever an adapter is read, the folder of a run will do as well.";

/// Inspect, convert, resize and merge adapter files
///
/// Reads LoRAs of diffusers and PEFT, of Kohya's scripts (sd-scripts) and of ONNX Runtime (.onnx_adapter), and writes all
/// three. See docs/adapters.md.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Adapter {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Inspect(inspect::Inspect),
    Convert(convert::Convert),
    Resize(resize::Resize),
    Merge(merge::Merge),
    ExportBase(export_base::ExportBase),
}

impl Adapter {
    /// Does what was asked for.
    pub fn run(self, quiet: bool) -> Result<()> {
        match self.command {
            Command::Inspect(command) => command.run(),
            Command::Convert(command) => command.run(),
            Command::Resize(command) => command.run(quiet),
            Command::Merge(command) => command.run(quiet),
            Command::ExportBase(command) => command.run(),
        }
    }
}

/// Form of the written file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    /// diffusers and PEFT: `unet.MODULE.lora_A.weight`, alpha in the metadata
    Diffusers,
    /// Kohya's scripts, ComfyUI, web UIs: `lora_unet_MODULE.lora_down.weight`, `.alpha`
    Kohya,
    /// ONNX Runtime: .onnx_adapter, one file for each network
    Onnx,
}

/// Names of the UNet's modules in Kohya's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Names {
    /// As sd-scripts does: `ldm` for SDXL, `diffusers` for all others
    Auto,
    /// `down_blocks_1_attentions_0_…`
    Diffusers,
    /// `input_blocks_4_1_…`, as SDXL's original code
    Ldm,
}

/// Element type of the factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

/// How an adapter is written.
#[derive(Args)]
struct Writing {
    /// Names of the UNet's modules in Kohya's form
    #[arg(long, value_enum, default_value_t = Names::Auto)]
    naming: Names,
    /// Element type of the factors [default: as they are]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Replace OUT if it is there
    #[arg(long)]
    replace: bool,
}

/// A file that was written.
#[derive(Serialize)]
struct Written {
    files: Vec<PathBuf>,
    modules: usize,
    bytes: u64,
}

impl Writing {
    /// The form `to`; without one that of what was read.
    fn form(&self, to: Option<To>, read: Form) -> Form {
        let naming = match self.naming {
            Names::Auto => Naming::Auto,
            Names::Diffusers => Naming::Diffusers,
            Names::Ldm => Naming::Ldm,
        };
        match (to, read) {
            (Some(To::Diffusers), _) => Form::Diffusers,
            (Some(To::Onnx), _) => Form::Onnx,
            (None, Form::Kohya(own)) if naming == Naming::Auto => Form::Kohya(own),
            (Some(To::Kohya), _) | (None, Form::Kohya(_)) => Form::Kohya(naming),
            (None, read) => read,
        }
    }

    /// Refuses to write over what is there.
    fn check(&self, lora: &Lora, form: Form, path: &Path) -> Result<()> {
        let mut files = form.files(lora, path).into_iter();
        files.try_for_each(|(file, _)| check_output(&file, self.replace))
    }

    fn write(&self, lora: Lora, form: Form, path: &Path) -> Result<Written> {
        let lora = match self.dtype {
            None => lora,
            Some(Dtype::F32) => lora.in_precision(Precision::Fp32)?,
            Some(Dtype::F16) => lora.in_precision(Precision::Fp16)?,
            Some(Dtype::Bf16) => lora.in_precision(Precision::Bf16)?,
        };
        let files = form.write(&lora, path)?;
        let size = |file: &PathBuf| std::fs::metadata(file).map_or(0, |m| m.len());
        Ok(Written {
            modules: lora.modules.len(),
            bytes: files.iter().map(size).sum(),
            files,
        })
    }
}

impl Written {
    fn text(&self) -> String {
        let names: Vec<String> = self.files.iter().map(|f| f.display().to_string()).collect();
        format!(
            "{}: {} modules, {}",
            names.join(", "),
            self.modules,
            super::output::bytes(self.bytes)
        )
    }
}

/// The LoRA in a file, or that of a run's folder, and the form it has there.
fn read(path: &Path) -> Result<(Lora, Form)> {
    let reference = AdapterRef {
        path: path.to_path_buf(),
        scale: 1.0,
    };
    let (lora, format) = Lora::read(&reference.file()?)?;
    Ok((lora, Form::of(format)))
}
