//! The command line: one file per subcommand, each only arguments and printing.

pub mod ablate;
pub mod adapter;
pub mod bench;
pub mod compute;
pub mod data;
pub mod derive;
pub mod dims;
pub mod doctor;
pub mod eval;
pub mod fault;
pub mod fid;
pub mod generate;
pub mod merge;
pub mod output;
pub mod pairs;
pub mod plan;
pub mod report;
pub mod score;
pub mod settings;
pub mod show;
pub mod train;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ortdpo::Result;
use ortdpo::runtime::{self, RuntimeOptions};

const EXAMPLES: &str = "\
Examples:
  ortdpo doctor                     what this machine can do
  ortdpo doctor models/tiny-sd      whether a pipeline folder is complete and loads
  ortdpo derive unet.onnx -o unet-grad.onnx --dim batch=2
                                    a model that also computes the gradients of its weights
  ortdpo show unet.onnx --dim batch=2
                                    a model as text, with every shape
  ortdpo bench --model models/tiny-sd --pairs 16
                                    what a training step costs here
  ortdpo plan examples/stable-ema.yaml
                                    what a training run will take
  ortdpo train --config examples/stable-ema.yaml
                                    preference training
  ortdpo eval --config examples/eval-demo.yaml
                                    models compared by rewards, with win rates
  ortdpo ablate --config examples/ablate-tiny.yaml --output runs/ablate-tiny
                                    methods under strategies with several seeds
  ortdpo generate --model models/tiny-sd --prompt 'a small apple on a blue background' --output out
                                    images
  ortdpo adapter convert runs/demo style.safetensors --to kohya
                                    a run's adapter for ComfyUI and web UIs
  ortdpo report runs/demo -o report.html
                                    a run's curves and settings, as a page
  ortdpo pairs --images out --reward clip --output pairs
                                    preference pairs for training
  ortdpo data inspect pairs         what a preference data set of any kind holds
  ortdpo fid --features inception --images out --reference coco.npz
                                    FID, KID, diversity

Exit codes: 0 done, 2 something in the input to mend, 130 interrupted, 1 anything else.";

/// Preference optimisation for text-to-image diffusion models on stock ONNX Runtime.
#[derive(Parser)]
#[command(name = "ortdpo", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every subcommand.
#[derive(Args)]
pub struct Global {
    /// ONNX Runtime's shared library or the folder it is in [default: ORT_DYLIB_PATH, else .ort/ in or above
    /// the working directory, else .ort/ in or above the program's folder]
    #[arg(long, global = true, value_name = "FILE")]
    ort_lib: Option<PathBuf>,
    /// Print results and errors only
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    Ablate(ablate::Ablate),
    Adapter(adapter::Adapter),
    Bench(bench::Bench),
    Data(data::Data),
    Derive(derive::Derive),
    Doctor(doctor::Doctor),
    Fid(fid::Fid),
    Eval(Box<eval::Eval>),
    Generate(generate::Generate),
    Merge(merge::Merge),
    Report(report::Report),
    Pairs(pairs::Pairs),
    Plan(plan::Plan),
    Score(score::Score),
    Show(show::Show),
    Train(train::Train),
}

impl Cli {
    /// Does what was asked for.
    pub fn run(self) -> Result<()> {
        // Named on purpose: if it will not do, say so whatever the command. Otherwise it is looked for when needed.
        if self.global.ort_lib.is_some() {
            runtime::init(&RuntimeOptions {
                ort_lib: self.global.ort_lib.clone(),
            })?;
        }
        match self.command {
            Command::Ablate(command) => command.run(self.global.quiet),
            Command::Adapter(command) => command.run(self.global.quiet),
            Command::Bench(command) => command.run(),
            Command::Data(command) => command.run(self.global.quiet),
            Command::Derive(command) => command.run(),
            Command::Doctor(command) => command.run(),
            Command::Fid(command) => command.run(self.global.quiet),
            Command::Eval(command) => command.run(self.global.quiet),
            Command::Generate(command) => command.run(self.global.quiet),
            Command::Merge(command) => command.run(),
            Command::Report(command) => command.run(),
            Command::Pairs(command) => command.run(self.global.quiet),
            Command::Plan(command) => command.run(self.global.quiet),
            Command::Score(command) => command.run(self.global.quiet),
            Command::Show(command) => command.run(),
            Command::Train(command) => command.run(self.global.quiet),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
