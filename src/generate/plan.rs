//! What is to be made, and what of it shapes the images.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::batches::Work;
use crate::diffusion::NoiseSchedule;
use crate::diffusion::sampler::{SamplerConfig, SamplerKind, sampler};
use crate::model_folder::{Component, ModelFolder};
use crate::pipeline::{AdapterRef, Guidance};
use crate::prompts::Prompt;
use crate::{Error, Result};

/// Images to make.
#[derive(Debug, Clone)]
pub struct GeneratePlan {
    /// Pipeline folder.
    pub model: PathBuf,
    /// Adapters, all applied at once.
    pub adapters: Vec<AdapterRef>,
    /// Prompts; their positions are part of what the noise depends on.
    pub prompts: Vec<Prompt>,
    /// Negative prompt of all images; `None` is the pipeline's own, empty or zeros.
    pub negative: Option<String>,
    /// Steps of the sampler.
    pub steps: usize,
    /// Guidance.
    pub guidance: Guidance,
    /// Sampler, instead of the pipeline's own.
    pub sampler: Option<SamplerKind>,
    /// η of DDIM, instead of the pipeline's own.
    pub eta: Option<f64>,
    /// Source of all noise.
    pub seed: u64,
    /// Images of each prompt.
    pub images_per_prompt: usize,
    /// Images made at a time.
    pub batch: usize,
    /// Height in pixels; the model's own by default.
    pub height: Option<usize>,
    /// Width in pixels; the model's own by default.
    pub width: Option<usize>,
    /// Layers of the text encoders that are left out at the end.
    pub clip_skip: usize,
    /// Where to write the noise that images begin with, for other programs; it shapes no image.
    pub noise: Option<PathBuf>,
}

impl GeneratePlan {
    /// A plan for `prompts` with usual settings: 30 steps, guidance 7.5, an image a prompt.
    pub fn new(model: impl Into<PathBuf>, prompts: Vec<Prompt>) -> Self {
        Self {
            model: model.into(),
            adapters: Vec::new(),
            prompts,
            negative: None,
            steps: 30,
            guidance: Guidance::new(7.5),
            sampler: None,
            eta: None,
            seed: 0,
            images_per_prompt: 1,
            batch: 8,
            height: None,
            width: None,
            clip_skip: 0,
            noise: None,
        }
    }

    /// Every image, prompt by prompt.
    pub(super) fn images(&self) -> impl Iterator<Item = Work> {
        let images = self.images_per_prompt;
        (0..self.prompts.len()).flat_map(move |prompt_index| {
            (0..images).map(move |image_index| Work {
                prompt_index,
                image_index,
            })
        })
    }

    /// How the sampler of `model` is set up for this plan.
    ///
    /// # Errors
    /// The scheduler's config is missing or unusable.
    pub fn sampler_config(&self, model: &ModelFolder) -> Result<SamplerConfig> {
        let mut config = SamplerConfig::from_file(&model.scheduler_config()?)?;
        if let Some(kind) = self.sampler {
            config = config.with_kind(kind);
        }
        if let Some(eta) = self.eta {
            config = config.with_eta(eta);
        }
        Ok(config)
    }

    /// Sampler and noise schedule of `model` for this plan, which a sampler was made of without complaint.
    pub(super) fn sampling(&self, model: &ModelFolder) -> Result<(SamplerConfig, NoiseSchedule)> {
        let config = self.sampler_config(model)?;
        let schedule = NoiseSchedule::from_file(&model.scheduler_config()?)?;
        sampler(&config, &schedule, self.steps)?;
        Ok((config, schedule))
    }

    pub(super) fn check(&self) -> Result<()> {
        let bad = |option: &str, what: &str| Err(Error::bad(option, what, "Give at least one."));
        let Guidance { scale, rescale } = self.guidance;
        if !scale.is_finite() {
            let what = format!("is {scale}");
            return Err(Error::bad("--guidance", what, "Give a number; 1 is no guidance."));
        }
        if !(0.0..=1.0).contains(&rescale) {
            let what = format!("is {rescale}");
            return Err(Error::bad(
                "--guidance-rescale",
                what,
                "Give a number from 0 to 1.",
            ));
        }
        match () {
            () if self.prompts.is_empty() => bad("--prompts", "holds no prompt"),
            () if self.steps == 0 => bad("--steps", "is 0"),
            () if self.images_per_prompt == 0 => bad("--images-per-prompt", "is 0"),
            () if self.batch == 0 => bad("--batch", "is 0"),
            () => Ok(()),
        }
    }
}

/// All that shapes the pixels of a folder's images, apart from the prompts: `generate.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Pipeline folder as it was given; another place with the same content is the same model.
    pub model: String,
    /// Hash of the pipeline's files.
    pub model_hash: String,
    /// Adapters as they were given.
    pub adapters: Vec<String>,
    /// Hashes of their files, with their scales.
    pub adapter_hashes: Vec<String>,
    /// Negative prompt.
    pub negative: Option<String>,
    /// Sampler.
    pub sampler: String,
    /// η, where the sampler has one.
    pub eta: f64,
    /// Steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f64,
    /// How far the guided prediction is rescaled.
    pub guidance_rescale: f64,
    /// Source of all noise.
    pub seed: u64,
    /// Height asked for.
    pub height: Option<usize>,
    /// Width asked for.
    pub width: Option<usize>,
    /// Layers of the text encoders left out.
    pub clip_skip: usize,
    /// Version of this program.
    pub version: String,
}

impl Settings {
    /// Those of `plan` with `model`, whose files are read for their hash.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn of(plan: &GeneratePlan, model: &ModelFolder) -> Result<Self> {
        let sampler = plan.sampler_config(model)?;
        let hash = |adapter: &AdapterRef| {
            let path = adapter.file()?;
            let bytes = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
            Ok(format!("{}:{}", blake3::hash(&bytes).to_hex(), adapter.scale))
        };
        Ok(Self {
            model: plan.model.display().to_string(),
            model_hash: Self::hash_of(model)?,
            adapters: plan.adapters.iter().map(AdapterRef::to_string).collect(),
            adapter_hashes: plan.adapters.iter().map(hash).collect::<Result<_>>()?,
            negative: plan.negative.clone(),
            sampler: sampler.kind()?.to_string(),
            eta: sampler.eta(),
            steps: plan.steps,
            guidance: plan.guidance.scale,
            guidance_rescale: plan.guidance.rescale,
            seed: plan.seed,
            height: plan.height,
            width: plan.width,
            clip_skip: plan.clip_skip,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// Hash of the files of `model` that images depend on.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn hash_of(model: &ModelFolder) -> Result<String> {
        let used =
            |component: &Component| *component != Component::VaeEncoder && model.folder(*component).is_dir();
        let components: Vec<Component> = model.components().iter().copied().filter(used).collect();
        Ok(model.hash(&components)?.to_string())
    }

    /// The first setting in which `other` gives other images, as (name, own value, other value).
    pub fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
        let pairs: [(&'static str, String, String); 12] = [
            ("model", self.model_hash.clone(), other.model_hash.clone()),
            (
                "adapters",
                text(&self.adapter_hashes),
                text(&other.adapter_hashes),
            ),
            ("negative prompt", text(&self.negative), text(&other.negative)),
            ("sampler", self.sampler.clone(), other.sampler.clone()),
            ("eta", text(&self.eta), text(&other.eta)),
            ("steps", text(&self.steps), text(&other.steps)),
            ("guidance", text(&self.guidance), text(&other.guidance)),
            (
                "guidance rescale",
                text(&self.guidance_rescale),
                text(&other.guidance_rescale),
            ),
            ("seed", text(&self.seed), text(&other.seed)),
            ("height", text(&self.height), text(&other.height)),
            ("width", text(&self.width), text(&other.width)),
            ("CLIP-skip", text(&self.clip_skip), text(&other.clip_skip)),
        ];
        pairs.into_iter().find(|(_, own, theirs)| own != theirs)
    }
}
