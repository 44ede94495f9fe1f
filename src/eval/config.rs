//! What is compared, on what, by which rewards: the YAML file of `ortdpo eval`, checked into an [`EvalPlan`].
//!
//! docs/eval.schema.json gives the file to editors; examples/eval-*.yaml are whole ones.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::diffusion::sampler::SamplerKind;
use crate::pipeline::AdapterRef;
use crate::prompts::{self, Prompt, SET_FIELD};
use crate::runtime::ExecutionProvider;
use crate::stats::{Bootstrap, Resampling};
use crate::yaml::{self, Document, Schema, nearest};
use crate::{Error, Result};

const EXAMPLE: &str = "examples/eval-demo.yaml is a whole file.";

static SCHEMA: LazyLock<Schema> =
    LazyLock::new(|| Schema::of::<EvalConfig>(|path| format!("Write `{path}`; {EXAMPLE}")));

/// An evaluation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// What is compared.
    pub models: Vec<ModelConfig>,
    /// Prompt files; of several, each prompt's field `set` is its file's name.
    pub prompts: Vec<PathBuf>,
    /// Use only so many prompts, the first ones.
    pub limit: Option<usize>,
    /// Reward models: folders, or names below models/, $ORTDPO_REWARDS and the user's data directory.
    pub rewards: Vec<String>,
    /// Seeds; every model makes the same images of each. [0] if empty.
    pub seeds: Vec<u64>,
    /// Images of each prompt and seed.
    #[serde(default = "one")]
    pub images_per_prompt: usize,
    /// Name of the model that win rates are against; the first one if not set.
    pub baseline: Option<String>,
    /// Prompt field (Category, style, set, …) whose values get results of their own.
    pub group_by: Option<String>,
    /// Metrics of each model's images as a set: FID, KID, diversity.
    pub set_metrics: Vec<SetMetricConfig>,
    /// How images are made.
    pub sampling: SamplingConfig,
    /// How confidence intervals are computed.
    pub bootstrap: BootstrapConfig,
    /// What computes.
    pub runtime: RuntimeConfig,
}

/// A model: a pipeline with adapters, or a folder of images that were made elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Its name in tables; letters, digits, dots, dashes and underscores.
    pub name: String,
    /// Pipeline folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Adapters, as FILE or FILE:SCALE; the folder of a training run will do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<String>,
    /// Images made elsewhere: a folder or an images.jsonl with the prompt of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
}

/// Metrics in one space of features.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetMetricConfig {
    /// What turns images into features: a folder with reward.yaml, or a name as for rewards. It gives the Vendi score and,
    /// where a prompt has several images, their mean distance (LPIPS for the kind `perceptual`).
    pub features: String,
    /// Statistics (npz of this program, pytorch-fid or clean-fid) or pictures that FID and KID are against; without it
    /// there is neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<PathBuf>,
}

/// How images are made: the same for all models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingConfig {
    /// Steps of the sampler.
    pub steps: usize,
    /// Guidance scale; 1 is none.
    pub guidance: f64,
    /// How far guided predictions are brought back to the unguided ones' spread, 0 to 1.
    pub guidance_rescale: f64,
    /// ddim, ddpm, euler, euler-a, dpm++2m or pndm; each pipeline's own if not set.
    pub sampler: Option<String>,
    /// Share of fresh noise in every step of ddim, 0 to 1.
    pub eta: Option<f64>,
    /// What to move away from.
    pub negative: Option<String>,
    /// Height of the images in pixels; the model's own if not set.
    pub height: Option<usize>,
    /// Width of the images in pixels; the model's own if not set.
    pub width: Option<usize>,
    /// Layers of the text encoder to leave out at the end.
    pub clip_skip: usize,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            steps: 50,
            guidance: 7.5,
            guidance_rescale: 0.0,
            sampler: None,
            eta: None,
            negative: None,
            height: None,
            width: None,
            clip_skip: 0,
        }
    }
}

/// How confidence intervals are computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BootstrapConfig {
    /// How often prompts are drawn again.
    pub resamples: usize,
    /// Coverage, between 0 and 1.
    pub level: f64,
    /// Seed of the draws.
    pub seed: u64,
    /// What is drawn: prompts with all their images, or also images within each.
    pub draw: DrawConfig,
}

/// What a bootstrap draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrawConfig {
    /// Prompts with all their images: the interval speaks for other prompts.
    Prompts,
    /// Prompts, then images of each: it speaks for other prompts and other seeds.
    PromptsAndImages,
}

impl Default for BootstrapConfig {
    fn default() -> Self {
        let Bootstrap {
            resamples,
            level,
            seed,
        } = Bootstrap::default();
        Self {
            resamples,
            level,
            seed,
            draw: DrawConfig::Prompts,
        }
    }
}

impl BootstrapConfig {
    /// As the statistics take it.
    pub fn bootstrap(&self) -> Bootstrap {
        Bootstrap {
            resamples: self.resamples,
            level: self.level,
            seed: self.seed,
        }
    }

    /// As the statistics take it.
    pub fn resampling(&self) -> Resampling {
        match self.draw {
            DrawConfig::Prompts => Resampling::Clusters,
            DrawConfig::PromptsAndImages => Resampling::Hierarchical,
        }
    }
}

/// What computes. None of it changes images beyond rounding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// Execution provider.
    pub ep: ExecutionProvider,
    /// Threads; 0 for all.
    pub threads: usize,
    /// Images made at a time.
    pub batch: usize,
    /// Whether VAEs compute in single precision, also those exported in half precision, in which SDXL's own overflows.
    pub vae_fp32: bool,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            ep: ExecutionProvider::default(),
            threads: 0,
            batch: 8,
            vae_fp32: false,
        }
    }
}

fn one() -> usize {
    1
}

/// The JSON Schema of evaluation files, for editors, as text.
pub fn json_schema() -> String {
    let mut schema = SCHEMA.json().clone();
    schema["title"] = "ortdpo evaluation".into();
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema has text keys only");
    text.push('\n');
    text
}

/// Whether an evaluation file has this key at its top.
pub(crate) fn is_key(name: &str) -> bool {
    SCHEMA.root().property(name).is_some()
}

impl EvalConfig {
    /// An evaluation of nothing, to be filled from the command line.
    pub fn empty() -> Self {
        Self {
            images_per_prompt: 1,
            ..Self::default()
        }
    }

    /// Reads a file; what it lacks may still come from the command line.
    ///
    /// # Errors
    /// An unknown key or a value of the wrong type, with file and line.
    pub fn read(path: &Path) -> Result<(Self, Document)> {
        yaml::read(path, &SCHEMA, EXAMPLE)
    }
}

/// A checked evaluation with its prompts read.
#[derive(Debug, Clone)]
pub struct EvalPlan {
    /// What is compared.
    pub models: Vec<ModelPlan>,
    /// Prompts in the order of their files.
    pub prompts: Vec<Prompt>,
    /// Where they are from.
    pub prompt_files: Vec<PathBuf>,
    /// Rewards, as they were named.
    pub rewards: Vec<String>,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Images of each prompt and seed.
    pub images_per_prompt: usize,
    /// The model that win rates are against; none if there is only one.
    pub baseline: Option<String>,
    /// Prompt field whose values get results of their own.
    pub group_by: Option<String>,
    /// Metrics of sets.
    pub set_metrics: Vec<SetMetricConfig>,
    /// How images are made.
    pub sampling: SamplingConfig,
    /// [`SamplingConfig::sampler`], understood.
    pub sampler: Option<SamplerKind>,
    /// How confidence intervals are computed.
    pub bootstrap: BootstrapConfig,
    /// What computes.
    pub runtime: RuntimeConfig,
}

/// A model to compare.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelPlan {
    /// Name in tables, and of its folder.
    pub name: String,
    /// Where its images come from.
    pub source: ImageSource,
}

/// Where images come from.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageSource {
    /// They are made.
    Pipeline {
        /// Pipeline folder.
        model: PathBuf,
        /// Adapters, all applied at once.
        adapters: Vec<AdapterRef>,
    },
    /// They are there: a folder or a list.
    Folder(PathBuf),
}

impl EvalPlan {
    /// Checks `config` and reads its prompts.
    ///
    /// # Errors
    /// The first thing that is wrong; its place is the key.
    pub fn of(config: EvalConfig) -> Result<Self> {
        let needed = |key: &str, what: &str| Err(Error::bad(key, "is empty", format!("{what}; {EXAMPLE}")));
        match () {
            () if config.models.is_empty() => return needed("models", "Name at least one model"),
            () if config.prompts.is_empty() => return needed("prompts", "Name at least one file of prompts"),
            () if config.rewards.is_empty() => return needed("rewards", "Name at least one reward"),
            () => {}
        }
        check_numbers(&config)?;
        let models = plan_models(&config.models)?;
        let baseline = baseline(config.baseline, &models)?;
        let sampler = config.sampling.sampler.as_deref().map(str::parse).transpose();
        let sampler = sampler.map_err(|error: Error| at("sampling.sampler", error))?;
        let prompts = read_prompts(&config.prompts, config.limit)?;
        check_group(config.group_by.as_deref(), &prompts)?;
        Ok(Self {
            models,
            prompts,
            prompt_files: config.prompts,
            rewards: config.rewards,
            seeds: if config.seeds.is_empty() {
                vec![0]
            } else {
                config.seeds
            },
            images_per_prompt: config.images_per_prompt,
            baseline,
            group_by: config.group_by,
            set_metrics: config.set_metrics,
            sampling: config.sampling,
            sampler,
            bootstrap: config.bootstrap,
            runtime: config.runtime,
        })
    }
}

/// The same complaint at the place of a key.
fn at(key: &str, error: Error) -> Error {
    match error {
        Error::BadInput { what, remedy, .. } => Error::bad(key, what, remedy),
        other => other,
    }
}

fn check_numbers(config: &EvalConfig) -> Result<()> {
    let at_least_one = |key: &str, value: usize| match value {
        0 => Err(Error::bad(key, "is 0", "Give 1 or more.")),
        _ => Ok(()),
    };
    at_least_one("images_per_prompt", config.images_per_prompt)?;
    at_least_one("limit", config.limit.unwrap_or(1))?;
    at_least_one("sampling.steps", config.sampling.steps)?;
    at_least_one("runtime.batch", config.runtime.batch)?;
    at_least_one("bootstrap.resamples", config.bootstrap.resamples)?;
    let level = config.bootstrap.level;
    if !(level > 0.0 && level < 1.0) {
        return Err(Error::bad(
            "bootstrap.level",
            format!("is {level}"),
            "Give a number between 0 and 1.",
        ));
    }
    let mut seen = HashSet::new();
    match config.seeds.iter().find(|seed| !seen.insert(**seed)) {
        None => Ok(()),
        Some(seed) => Err(Error::bad(
            "seeds",
            format!("names {seed} twice"),
            "Give each seed once.",
        )),
    }
}

fn plan_models(configs: &[ModelConfig]) -> Result<Vec<ModelPlan>> {
    let mut names = HashSet::new();
    let mut models = Vec::with_capacity(configs.len());
    for (index, config) in configs.iter().enumerate() {
        let name = &config.name;
        check_name(&format!("models[{index}].name"), name, &mut names)?;
        models.push(ModelPlan {
            name: name.clone(),
            source: image_source(index, config)?,
        });
    }
    Ok(models)
}

/// Refuses a name that cannot be that of a folder, or that was there before.
pub(crate) fn check_name<'a>(place: &str, name: &'a str, names: &mut HashSet<&'a str>) -> Result<()> {
    let is_plain = |c: char| c.is_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
        let what = format!("is {name:?}, which cannot be the name of a folder");
        let remedy = "Use letters, digits, dots, dashes and underscores.";
        return Err(Error::bad(place, what, remedy));
    }
    match names.insert(name) {
        true => Ok(()),
        false => Err(Error::bad(
            place,
            format!("is {name} again"),
            "Give each a name of its own.",
        )),
    }
}

fn image_source(index: usize, config: &ModelConfig) -> Result<ImageSource> {
    let adapters_at = format!("models[{index}].adapters");
    match (&config.model, &config.images) {
        (Some(model), None) => {
            let adapters = config.adapters.iter().map(|text| text.parse::<AdapterRef>());
            let adapters = adapters.collect::<Result<_, String>>();
            Ok(ImageSource::Pipeline {
                model: model.clone(),
                adapters: adapters
                    .map_err(|what| Error::bad(adapters_at, what, "Write FILE or FILE:SCALE."))?,
            })
        }
        (None, Some(_)) if !config.adapters.is_empty() => {
            let what = "are given for images that are made already";
            Err(Error::bad(adapters_at, what, "Leave them out."))
        }
        (None, Some(images)) => Ok(ImageSource::Folder(images.clone())),
        _ => {
            let what = "is neither a pipeline nor a folder of images, or both";
            Err(Error::bad(
                format!("models[{index}]"),
                what,
                "Give either `model` or `images`.",
            ))
        }
    }
}

fn baseline(named: Option<String>, models: &[ModelPlan]) -> Result<Option<String>> {
    let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
    match named {
        Some(name) if names.contains(&name.as_str()) => Ok(Some(name)),
        Some(name) => {
            let guess = nearest(&name, &names).map_or(String::new(), |near| format!("Did you mean {near}? "));
            let remedy = format!("{guess}The models are {}.", names.join(", "));
            Err(Error::bad(
                "baseline",
                format!("is {name}, which is none of the models"),
                remedy,
            ))
        }
        None => Ok((names.len() > 1).then(|| names[0].to_owned())),
    }
}

fn read_prompts(files: &[PathBuf], limit: Option<usize>) -> Result<Vec<Prompt>> {
    let mut prompts = Vec::new();
    for file in files {
        let mut read = prompts::read(file)?;
        if files.len() > 1 {
            let name = file.file_stem().unwrap_or_default().to_string_lossy();
            for prompt in &mut read {
                prompt
                    .fields
                    .entry(SET_FIELD.to_owned())
                    .or_insert_with(|| name.to_string());
            }
        }
        prompts.append(&mut read);
    }
    prompts.truncate(limit.unwrap_or(usize::MAX));
    Ok(prompts)
}

fn check_group(field: Option<&str>, prompts: &[Prompt]) -> Result<()> {
    let Some(field) = field else { return Ok(()) };
    let mut known: Vec<&str> = prompts
        .iter()
        .flat_map(|prompt| prompt.fields.keys())
        .map(String::as_str)
        .collect();
    known.sort_unstable();
    known.dedup();
    match known.contains(&field) {
        true => Ok(()),
        false => {
            let fields = match known.is_empty() {
                true => "the prompts have no fields".to_owned(),
                false => format!("they have {}", known.join(", ")),
            };
            let remedy = "Name one of the prompt file's columns, or leave it out.";
            Err(Error::bad(
                "group_by",
                format!("is {field}, which no prompt has; {fields}"),
                remedy,
            ))
        }
    }
}
