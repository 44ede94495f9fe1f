//! `ortdpo bench`: what a training step of a model costs on this machine.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ortdpo::autodiff::Recompute;
use ortdpo::config::runtime::{MixedPrecision, WeightCopies};
use ortdpo::model_folder::ModelFolder;
use ortdpo::onnx::Model;
use ortdpo::pipeline::geometry;
use ortdpo::runtime::{self, Arena, ExecutionProvider, RuntimeOptions, SessionOptions, has_bfloat16};
use ortdpo::train::bench::{self, BenchOptions, BenchReport};
use ortdpo::train::prepare;
use ortdpo::traingraph::Reference;
use ortdpo::{Error, Result};

use super::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  ortdpo bench --model models/tiny-sd --pairs 16
  ortdpo bench --model sd15-onnx --pairs 1 --latent 32x32 --steps 8 --threads 2";

/// Time LoRA Diffusion-DPO steps of a model on random inputs, before any data is prepared
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Bench {
    /// Pipeline folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Pairs of a step
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pairs: usize,
    /// Height and width of the latents [default: the model's own size]
    #[arg(long, value_name = "HxW", value_parser = latent)]
    latent: Option<(usize, usize)>,
    /// LoRA rank
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    rank: usize,
    /// Layers with an adapter
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_values = ["to_q", "to_k", "to_v", "to_out.0"])]
    targets: Vec<String>,
    /// Steps to run; the first two are not in the median
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    steps: usize,
    /// CPU threads [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Execution provider; an error if it does not work
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    ep: ExecutionProvider,
    /// Whether policy and reference are one graph, or a session each
    #[arg(long, value_enum, default_value = "two")]
    sessions: Sessions,
    /// Whether sessions keep second copies of the weights in their kernels' own layouts
    #[arg(long, value_enum, default_value = "auto")]
    weight_copies: Copies,
    /// What the backward pass computes again instead of keeping it: none, norm-attention or block
    #[arg(long, value_name = "LEVEL", default_value = "none")]
    recompute: Recompute,
    /// Compute in half precision with a scaled loss, as `runtime.mixed_precision: fp16` does
    #[arg(long)]
    fp16: bool,
    /// Compute in bfloat16, as `runtime.mixed_precision: bf16` does
    #[arg(long, conflicts_with = "fp16")]
    bf16: bool,
    /// Let CUDA leave operators of the step to the CPU, as `runtime.cpu_fallback` does
    #[arg(long)]
    cpu_fallback: bool,
    /// Write ONNX Runtime's own profile of every session below this path; steps are slower then
    #[arg(long, value_name = "PREFIX")]
    profile: Option<PathBuf>,
    /// How to print the result
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Sessions {
    /// One graph holds policy and reference.
    One,
    /// The reference runs in the forward session that evaluation uses; what `train` does.
    Two,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Copies {
    /// Of weights up to 512 MB.
    Auto,
    /// Fastest, several times the weights' memory.
    All,
    /// The model file's pages are the weights.
    None,
}

impl Bench {
    /// Does what was asked for.
    pub fn run(self) -> Result<()> {
        if self.bf16 && !has_bfloat16(self.ep) {
            return Err(Error::bad(
                "--bf16",
                format!("{} computes nothing in bfloat16 here", self.ep.name()),
                "Use --fp16, or --ep cuda.",
            ));
        }
        runtime::init(&RuntimeOptions::default())?;
        let folder = ModelFolder::open(&self.model)?;
        let options = BenchOptions {
            geometry: geometry::declared(&folder, 2 * self.pairs, self.latent.map(|(h, w)| [h, w]))?,
            pairs: self.pairs,
            rank: self.rank,
            targets: self.targets,
            steps: self.steps,
            reference: match self.sessions {
                Sessions::One => Reference::Branch,
                Sessions::Two => Reference::Input,
            },
            copies: match self.weight_copies {
                Copies::Auto => WeightCopies::Auto,
                Copies::All => WeightCopies::All,
                Copies::None => WeightCopies::None,
            },
            recompute: self.recompute,
            mixed_precision: match (self.fp16, self.bf16) {
                (true, _) => MixedPrecision::Fp16,
                (_, true) => MixedPrecision::Bf16,
                _ => MixedPrecision::No,
            },
            session: SessionOptions {
                ep: self.ep,
                threads: self.threads.unwrap_or(0),
                arena: Arena::Shared,
                only_on_cpu: prepare::only_on_cpu(self.ep, self.cpu_fallback),
                profile: self.profile.clone(),
                ..SessionOptions::default()
            },
        };
        let denoiser = Model::read(folder.network(folder.denoiser()?)?)?;
        let report = bench::run(&denoiser, &options)?;
        match self.format {
            Format::Json => output::json(&report),
            Format::Text => output::line(text(&report, self.pairs)),
        }
    }
}

fn text(report: &BenchReport, pairs: usize) -> String {
    let mb = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.0} MB"));
    let step = report.median_step_seconds;
    let forward = report.median_forward_seconds;
    let forward = forward.map_or("-".to_owned(), |s| format!("{s:.3} s"));
    let row = |name: &str, value: String| [name.to_owned(), value];
    let rows = [
        row("trainable values", report.trainable.to_string()),
        row("load", format!("{:.2} s", report.load_seconds)),
        row("time", format!("{step:.3} s (median)")),
        row("of it the reference's forward pass", forward),
        row("pairs a second", format!("{:.2}", pairs as f64 / step)),
        row("peak memory", mb(report.peak_rss_mb)),
        row("of it not backed by a file", mb(report.anonymous_mb)),
    ];
    let head = format!("step of {pairs} pairs");
    output::table([head.as_str(), ""], rows)
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("give a natural number".to_owned()),
    }
}

/// `HxW`.
fn latent(text: &str) -> Result<(usize, usize), String> {
    let (h, w) = text.split_once('x').ok_or("write HxW, such as 32x32")?;
    Ok((at_least_one(h)?, at_least_one(w)?))
}
