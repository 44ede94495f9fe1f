//! `ortdpo generate`: images for prompts.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use ortdpo::diffusion::sampler::SamplerKind;
use ortdpo::generate::{self, GenerateOptions, GeneratePlan, Generated};
use ortdpo::pipeline::{AdapterRef, Guidance, VaePrecision};
use ortdpo::progress::Console;
use ortdpo::prompts::{self, Prompt};
use ortdpo::runtime::{Arena, SessionOptions};
use ortdpo::{Error, Result};
use serde::Serialize;

use super::compute::Compute;
use super::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  ortdpo generate --model models/tiny-sd --prompt 'a cat and a rocket on a yellow background' --output out
  ortdpo generate --model models/tiny-sd --prompts models/tiny-sd/prompts/test.txt --images-per-prompt 4 \\
      --steps 20 --guidance 3 --output out
  ortdpo generate --model sdxl-onnx --adapter runs/a/pytorch_lora_weights.safetensors:0.8 \\
      --prompts PartiPrompts.tsv --sampler dpm++2m --seed 7 --output out/adapted

The noise of an image depends on the seed, the position of its prompt and its number alone. An interrupted \
run goes on with the same command.";

/// Asks the run to end after the images that are done.
static STOP: AtomicBool = AtomicBool::new(false);

/// Make images for prompts
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Generate {
    /// Pipeline folder, as `optimum-cli export onnx` writes it
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Adapter (or the folder of a run), and how much it counts; can be given several times
    #[arg(long, value_name = "FILE[:SCALE]")]
    adapter: Vec<AdapterRef>,
    #[command(flatten)]
    prompts: Prompts,
    /// Folder for the images; one that was begun with the same settings is filled up
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    size: Size,
    /// Source of all noise
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Images of each prompt
    #[arg(long, default_value_t = 1, value_name = "N")]
    images_per_prompt: usize,
    /// Images made at a time: more need more memory, and use many cores better
    #[arg(long, default_value_t = 8, value_name = "N")]
    batch: usize,
    /// Also write the noise that images begin with, for other programs to begin with the same: safetensors, a tensor an image
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    #[command(flatten)]
    compute: Compute,
    /// Compute the VAE in single precision, also where it was exported in half precision, which may overflow
    #[arg(long)]
    vae_fp32: bool,
    /// How to print the summary
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Args)]
#[group(required = true, multiple = true)]
struct Prompts {
    /// Prompts: lines of text, TSV or parquet with a prompt column, JSON or JSON lines
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    /// One prompt; can be given several times
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
}

#[derive(Args)]
struct Sampling {
    /// What to move away from [default: empty; zeros for SDXL]
    #[arg(long, value_name = "TEXT")]
    negative: Option<String>,
    /// Steps of the sampler
    #[arg(long, default_value_t = 30, value_name = "N")]
    steps: usize,
    /// Guidance scale; 1 is none
    #[arg(long, default_value_t = 7.5, value_name = "W")]
    guidance: f64,
    /// How far guided predictions are brought back to the unguided ones' spread, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "PHI")]
    guidance_rescale: f64,
    /// ddim, ddpm, euler, euler-a, dpm++2m or pndm [default: the pipeline's own]
    #[arg(long, value_name = "NAME")]
    sampler: Option<SamplerKind>,
    /// Share of fresh noise in every step of ddim, 0 to 1 [default: 0]
    #[arg(long, value_name = "ETA")]
    eta: Option<f64>,
    /// Layers of the text encoder to leave out at the end
    #[arg(long, default_value_t = 0, value_name = "N")]
    clip_skip: usize,
}

#[derive(Args)]
struct Size {
    /// Height of the images in pixels [default: the model's own]
    #[arg(long, value_name = "PIXELS")]
    height: Option<usize>,
    /// Width of the images in pixels [default: the model's own]
    #[arg(long, value_name = "PIXELS")]
    width: Option<usize>,
}

#[derive(Serialize)]
struct Summary {
    output: PathBuf,
    images: usize,
    made: usize,
    kept: usize,
    seconds: f64,
    images_per_second: Option<f64>,
}

impl Generate {
    /// Does what was asked for.
    pub fn run(self, quiet: bool) -> Result<()> {
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed))
            .map_err(|e| Error::Runtime(format!("cannot listen for Ctrl-C: {e}")))?;
        let options = GenerateOptions {
            session: SessionOptions {
                arena: Arena::Shared,
                ..self.compute.session()
            },
            vae: VaePrecision::of(self.vae_fp32),
            console: Console::new(quiet),
            stop: &STOP,
        };
        let (output, format) = (self.output.clone(), self.format);
        let made = generate::run(&self.into_plan()?, &output, &options)?;
        let summary = Summary::new(output, &made);
        match format {
            Format::Json => output::json(&summary),
            Format::Text => output::line(summary.text()),
        }
    }

    fn into_plan(self) -> Result<GeneratePlan> {
        let prompts = match self.prompts.prompts {
            Some(path) => prompts::read(&path)?,
            None => self.prompts.prompt.into_iter().map(Prompt::new).collect(),
        };
        Ok(GeneratePlan {
            adapters: self.adapter,
            negative: self.sampling.negative,
            steps: self.sampling.steps,
            guidance: Guidance {
                scale: self.sampling.guidance,
                rescale: self.sampling.guidance_rescale,
            },
            sampler: self.sampling.sampler,
            eta: self.sampling.eta,
            seed: self.seed,
            images_per_prompt: self.images_per_prompt,
            batch: self.batch,
            height: self.size.height,
            width: self.size.width,
            clip_skip: self.sampling.clip_skip,
            noise: self.noise,
            ..GeneratePlan::new(self.model, prompts)
        })
    }
}

impl Summary {
    fn new(output: PathBuf, generated: &Generated) -> Self {
        let images = generated.records.len();
        let rate = generated.made as f64 / generated.seconds;
        Self {
            output,
            images,
            made: generated.made,
            kept: images - generated.made,
            seconds: generated.seconds,
            images_per_second: (generated.made > 0).then_some(rate),
        }
    }

    fn text(&self) -> String {
        let made = match self.images_per_second {
            None => "all were there already".to_owned(),
            Some(rate) => format!(
                "{} made in {:.1} s ({rate:.2} a second), {} kept",
                self.made, self.seconds, self.kept
            ),
        };
        let output = self.output.display();
        format!(
            "{} images in {output}: {made}\n{output}/images.jsonl: a record an image; contact-sheet.png: an overview",
            self.images
        )
    }
}
