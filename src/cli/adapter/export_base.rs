//! `ortdpo adapter export-base`: a pipeline that takes adapters as inputs.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ortdpo::Result;
use ortdpo::config::adapter::LoraConfig;
use ortdpo::model_folder::{Component, ModelFolder};
use ortdpo::pipeline::adaptable::{Slots, export};
use serde::Serialize;

use super::read;
use crate::cli::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  ortdpo adapter export-base models/tiny-sd tiny-adaptable --adapter runs/demo
  ortdpo adapter export-base sd15-onnx sd15-adaptable --target to_q --target 'attn2.*'
  ortdpo adapter convert runs/demo demo.onnx_adapter --to onnx

Then, with ONNX Runtime's own Python package:
  adapter = onnxruntime.LoraAdapter(); adapter.Load('demo.onnx_adapter')
  options = onnxruntime.RunOptions(); options.add_active_adapter(adapter)
  session.run(None, inputs, options)";

/// Write a pipeline whose networks take .onnx_adapter files, for stock ONNX Runtime
///
/// Chosen layers get two more inputs each, which are zeros of rank 1 by default: without an adapter the pipeline does what
/// it did. Adapters of any rank fit, as long as they change no other layers. Everything else stays as the exporter wrote
/// it; weights are hard-linked where the disk allows.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct ExportBase {
    /// Pipeline folder, as `optimum-cli export onnx` writes it
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Folder to write, which must not exist yet
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Give inputs to the layers that this adapter changes; can be given several times
    #[arg(long, value_name = "FILE", conflicts_with_all = ["target", "component"])]
    adapter: Vec<PathBuf>,
    /// Give inputs to layers whose names match, by the rules of `adapter.targets`; can be given several times
    /// [default: to_q, to_k, to_v, to_out.0]
    #[arg(long, value_name = "PATTERN")]
    target: Vec<String>,
    /// Networks in which --target looks
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Network::Unet])]
    component: Vec<Network>,
    /// How to print the summary
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Network {
    Unet,
    TextEncoder,
    #[value(name = "text_encoder_2")]
    TextEncoder2,
}

impl From<Network> for Component {
    fn from(network: Network) -> Self {
        match network {
            Network::Unet => Self::Unet,
            Network::TextEncoder => Self::TextEncoder,
            Network::TextEncoder2 => Self::TextEncoder2,
        }
    }
}

#[derive(Serialize)]
struct Summary {
    output: PathBuf,
    components: Vec<Adapted>,
}

#[derive(Serialize)]
struct Adapted {
    component: String,
    layers: usize,
}

impl ExportBase {
    /// Does what was asked for.
    pub fn run(self) -> Result<()> {
        let slots = match self.adapter.as_slice() {
            [] => Slots::Matching {
                components: self.component.into_iter().map(Component::from).collect(),
                targets: match self.target.is_empty() {
                    true => LoraConfig::default().targets,
                    false => self.target,
                },
            },
            files => {
                let loras = files.iter().map(|file| read(file).map(|(lora, _)| lora));
                Slots::Of(loras.collect::<Result<_>>()?)
            }
        };
        let exported = export(&ModelFolder::open(&self.model)?, &slots, &self.output)?;
        let adapted = |(component, layers): (Component, usize)| Adapted {
            component: component.to_string(),
            layers,
        };
        let summary = Summary {
            output: self.output,
            components: exported.components.into_iter().map(adapted).collect(),
        };
        match self.format {
            Format::Json => output::json(&summary),
            Format::Text => {
                let parts: Vec<String> = summary
                    .components
                    .iter()
                    .map(|c| format!("{} layers of {}", c.layers, c.component))
                    .collect();
                output::line(format!(
                    "{}: {} take adapters",
                    summary.output.display(),
                    parts.join(", ")
                ))
            }
        }
    }
}
