//! `ortdpo eval`: models compared by rewards on the same prompts and seeds.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use ortdpo::eval::config::{EvalConfig, EvalPlan, ModelConfig, SetMetricConfig, json_schema};
use ortdpo::eval::{self, EvalOptions, merge, tables};
use ortdpo::progress::Console;
use ortdpo::runtime::{self, ExecutionProvider, RuntimeOptions};
use ortdpo::table::Format;
use ortdpo::{Error, Result};

use super::output;

const EXAMPLES: &str = "\
Examples:
  ortdpo eval --config examples/eval-demo.yaml --output runs/eval
  ortdpo eval --model base=models/tiny-sd --model dpo=models/tiny-sd+runs/demo \\
      --prompts models/tiny-sd/prompts/test.txt --reward clip,judge --steps 20 --guidance 3 --output runs/eval
  ortdpo eval --config examples/eval-demo.yaml --images other=pictures/other --format markdown
  ortdpo eval --merge runs/eval-a runs/eval-b --format latex

Images of one seed, prompt and number start from the same noise in every model. What is there already is not made \
again: with one model more, only that model runs.";

/// Asks the run to end; what is done is kept.
static STOP: AtomicBool = AtomicBool::new(false);

/// Compare models: the same prompts and seeds, mean rewards, win rates with intervals
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Eval {
    /// The evaluation in YAML; options below are added to it or win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A pipeline with adapters, and its name in tables; can be given several times
    #[arg(long, value_name = "NAME=DIR[+ADAPTER[:SCALE]]…")]
    model: Vec<String>,
    /// Images made elsewhere, and their name in tables; can be given several times
    #[arg(long, value_name = "NAME=DIR|JSONL")]
    images: Vec<String>,
    /// Prompts: lines of text, TSV or parquet with a prompt column, JSON or JSON lines; can be given several times
    #[arg(long, value_name = "FILE")]
    prompts: Vec<PathBuf>,
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    sampling: Sampling,
    /// Folder of the evaluation [default: runs/ and the name of the configuration file]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print the models of several evaluations as one; refused if they were made under different manifests
    #[arg(long, value_name = "DIR", num_args = 2.., conflicts_with_all = ["config", "model", "images"])]
    merge: Vec<PathBuf>,
    /// How to print the results: text, markdown, csv, json or latex
    #[arg(long, default_value_t = Format::Text, value_name = "NAME")]
    format: Format,
    /// Print the JSON Schema of evaluation files, for editors, and end
    #[arg(long)]
    print_schema: bool,
}

#[derive(Args)]
struct What {
    /// Rewards: folders, or names below models/, $ORTDPO_REWARDS and the user's data directory
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    reward: Vec<String>,
    /// Seeds [default: 0]
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    seed: Vec<u64>,
    /// Images of each prompt and seed [default: 1]
    #[arg(long, value_name = "N")]
    images_per_prompt: Option<usize>,
    /// Use only so many prompts, the first ones
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The model that win rates are against [default: the first]
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// Feature extractor for FID and KID (with a reference), Vendi score and diversity; can be given several times
    #[arg(long, value_name = "NAME|DIR[=REFERENCE]")]
    features: Vec<String>,
    /// Prompt field whose values get results of their own
    #[arg(long, value_name = "FIELD")]
    group_by: Option<String>,
}

#[derive(Args)]
struct Sampling {
    /// Steps of the sampler [default: 50]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Guidance scale; 1 is none [default: 7.5]
    #[arg(long, value_name = "W")]
    guidance: Option<f64>,
    /// ddim, ddpm, euler, euler-a, dpm++2m or pndm [default: the pipeline's own]
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,
    /// Images made at a time [default: 8]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Where to compute [default: cpu]
    #[arg(long, value_name = "NAME")]
    ep: Option<ExecutionProvider>,
    /// Threads [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Compute VAEs in single precision, also those exported in half precision, which may overflow
    #[arg(long)]
    vae_fp32: bool,
}

impl Eval {
    /// Does what was asked for.
    pub fn run(self, quiet: bool) -> Result<()> {
        if self.print_schema {
            return output::line(json_schema().trim_end());
        }
        if !self.merge.is_empty() {
            let results = merge::merge(&self.merge, self.output.as_deref())?;
            return output::line(tables::render(&results, self.format));
        }
        let (format, folder) = (self.format, self.folder());
        let plan = self.into_plan()?;
        runtime::init(&RuntimeOptions::default())?;
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed))
            .map_err(|e| Error::Runtime(format!("cannot listen for Ctrl-C: {e}")))?;
        let console = Console::new(quiet);
        let options = EvalOptions { console, stop: &STOP };
        let results = eval::run(&plan, &folder, &options)?;
        console.say(&format!(
            "{}: results, tables, images and scores",
            folder.display()
        ));
        output::line(tables::render(&results, format))
    }

    fn folder(&self) -> PathBuf {
        let name = self.config.as_ref().and_then(|config| config.file_stem());
        let default = || PathBuf::from("runs").join(name.unwrap_or("eval".as_ref()));
        self.output.clone().unwrap_or_else(default)
    }

    fn into_plan(self) -> Result<EvalPlan> {
        let (mut config, document) = match &self.config {
            None => (EvalConfig::empty(), None),
            Some(path) => {
                let (config, document) = EvalConfig::read(path)?;
                (config, Some(document))
            }
        };
        for text in &self.model {
            let (name, rest) = named("--model", text)?;
            let mut parts = rest.split('+');
            config.models.push(ModelConfig {
                name,
                model: parts.next().map(PathBuf::from),
                adapters: parts.map(str::to_owned).collect(),
                images: None,
            });
        }
        for text in &self.images {
            let (name, folder) = named("--images", text)?;
            config.models.push(ModelConfig {
                name,
                images: Some(folder.into()),
                ..ModelConfig::default()
            });
        }
        config.prompts.extend(self.prompts);
        self.what.apply(&mut config);
        self.sampling.apply(&mut config);
        EvalPlan::of(config).map_err(|error| match &document {
            Some(document) => located(document, error),
            None => error,
        })
    }
}

/// Puts file and line before a complaint about a key of the file; other places stay as they are.
fn located(document: &ortdpo::yaml::Document, error: Error) -> Error {
    match &error {
        Error::BadInput { place, .. } if document.known_depth(&ortdpo::yaml::steps_of(place)) > 0 => {
            document.locate(error)
        }
        _ => error,
    }
}

fn named<'a>(option: &str, text: &'a str) -> Result<(String, &'a str)> {
    match text.split_once('=') {
        Some((name, rest)) if !name.is_empty() && !rest.is_empty() => Ok((name.to_owned(), rest)),
        _ => Err(Error::bad(
            option,
            format!("{text} has no name"),
            format!("Write it with a name for the tables: {option} base={text}"),
        )),
    }
}

impl What {
    fn apply(self, config: &mut EvalConfig) {
        config.rewards.extend(self.reward);
        if !self.seed.is_empty() {
            config.seeds = self.seed;
        }
        config.images_per_prompt = self.images_per_prompt.unwrap_or(config.images_per_prompt);
        config.limit = self.limit.or(config.limit);
        config.baseline = self.baseline.or(config.baseline.take());
        config.set_metrics.extend(self.features.iter().map(|text| {
            let (features, reference) = match text.split_once('=') {
                Some((features, reference)) => (features, Some(reference.into())),
                None => (text.as_str(), None),
            };
            SetMetricConfig {
                features: features.to_owned(),
                reference,
            }
        }));
        config.group_by = self.group_by.or(config.group_by.take());
    }
}

impl Sampling {
    fn apply(self, config: &mut EvalConfig) {
        let sampling = &mut config.sampling;
        sampling.steps = self.steps.unwrap_or(sampling.steps);
        sampling.guidance = self.guidance.unwrap_or(sampling.guidance);
        sampling.sampler = self.sampler.or(sampling.sampler.take());
        let runtime = &mut config.runtime;
        runtime.batch = self.batch.unwrap_or(runtime.batch);
        runtime.vae_fp32 |= self.vae_fp32;
        runtime.ep = self.ep.unwrap_or(runtime.ep);
        runtime.threads = self.threads.unwrap_or(runtime.threads);
    }
}
