//! Pictures that the model under training draws for a few fixed prompts, from the same noise every time.
//!
//! The training sessions draw them: weights are inputs there, so any set can be shown without loading another denoiser.
//! Only the VAE decoder and the reward models are loaded for the moment they are needed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use image::RgbImage;
use ndarray::ArrayView4;

use super::engine::{Engine, Samples};
use super::model::Model;
use crate::config::samples::SamplesConfig;
use crate::diffusion::sampler::{SamplerConfig, sampler};
use crate::diffusion::{NoiseSchedule, Timestep};
use crate::generate::ImageNoise;
use crate::model_folder::ModelFolder;
use crate::params::ParamSet;
use crate::picture::{Cell, grid, write_png};
use crate::pipeline::denoiser::{Conditioning, Geometry};
use crate::pipeline::sampling::{Guided, Predict};
use crate::pipeline::{
    Adapters, Embedding, Guidance, PromptTokens, TextEncoders, VaeDecoder, VaePrecision, encode_negative,
};
use crate::reward::RewardModel;
use crate::rng::Streams;
use crate::runtime::SessionOptions;
use crate::setmetric::{Distance, mean_pairwise};
use crate::{Error, Result, prompts};

/// What is needed to draw and rate the pictures.
pub struct Pictures {
    config: SamplesConfig,
    texts: Vec<String>,
    embeddings: Vec<Embedding>,
    negative: Embedding,
    sampler: SamplerConfig,
    folder: ModelFolder,
    session: SessionOptions,
    vae: VaePrecision,
}

/// What was drawn and what the reward models said.
pub struct Drawn {
    /// Prompt by prompt, `images_per_prompt` each.
    pub images: Vec<RgbImage>,
    /// Mean of each reward, by `reward.NAME`, and of the distances within prompts, by `diversity.NAME`.
    pub means: BTreeMap<String, f64>,
}

/// A training session as a denoiser with given weights.
pub struct WithWeights<'a> {
    engine: &'a mut Engine,
    weights: &'a ParamSet,
}

impl<'a> WithWeights<'a> {
    /// `engine` with `weights` in the place of the policy.
    pub fn new(engine: &'a mut Engine, weights: &'a ParamSet) -> Self {
        Self { engine, weights }
    }
}

impl Predict for WithWeights<'_> {
    fn geometry(&self) -> Geometry {
        self.engine.geometry()
    }

    /// Training timesteps are whole: those of samplers that space them otherwise are rounded.
    fn predict(&mut self, latents: &[f32], timestep: f64, given: &Conditioning) -> Result<Vec<f32>> {
        let geometry = self.geometry();
        let samples = Samples {
            size: geometry.latent_size(),
            time_ids: vec![geometry.picture_ids().0; geometry.samples],
            noisy: latents.to_vec(),
            target: vec![0.0; latents.len()],
            timesteps: vec![Timestep(timestep.round() as u32); geometry.samples],
            text: given.text.clone(),
            pooled: given.pooled.clone(),
        };
        self.engine.errors(self.weights, &samples)?;
        self.engine.predictions()
    }
}

impl Pictures {
    /// Reads and encodes the prompts and opens every reward model once, so that what is wrong shows before the first step.
    /// `None` where the configuration asks for no pictures.
    ///
    /// # Errors
    /// The prompts cannot be read, or a network of the pipeline or a reward model cannot be used.
    pub fn prepare(
        config: &SamplesConfig,
        model: &Model,
        session: &SessionOptions,
        vae: VaePrecision,
    ) -> Result<Option<Self>> {
        if !config.is_on() {
            return Ok(None);
        }
        let mut texts = config.prompts.clone();
        if let Some(file) = &config.file {
            texts.extend(prompts::read(file)?.into_iter().map(|prompt| prompt.text));
        }
        texts.truncate(config.count.unwrap_or(texts.len()));
        let mut encoders = TextEncoders::load(&model.folder, session, 0, &Adapters::default())?;
        let tokens: Vec<PromptTokens> = texts
            .iter()
            .map(|text| encoders.tokenize(text))
            .collect::<Result<_>>()?;
        let negative = encode_negative(&mut encoders, &model.folder, None)?;
        let mut sampler = SamplerConfig::from_file(&model.folder.scheduler_config()?)?;
        if let Some(kind) = config.sampler {
            sampler = sampler.with_kind(kind);
        }
        VaeDecoder::load(&model.folder, session, vae)?;
        for model in config.rewards.iter().chain(&config.features) {
            RewardModel::open(model, session)?;
        }
        Ok(Some(Self {
            embeddings: encoders.encode(&tokens.iter().collect::<Vec<_>>())?,
            config: config.clone(),
            folder: model.folder.clone(),
            session: session.clone(),
            vae,
            texts,
            negative,
            sampler,
        }))
    }

    /// Draws all pictures with `weights` and rates them. `progress` hears how many are done and may stop.
    ///
    /// # Errors
    /// A network fails; [`Error::Interrupted`] when `progress` stopped.
    pub fn draw(
        &self,
        engine: &mut Engine,
        weights: &ParamSet,
        schedule: &NoiseSchedule,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Drawn> {
        let images = self.images(engine, weights, schedule, progress)?;
        let prompts: Vec<&str> = (0..images.len()).map(|i| self.prompt_of(i)).collect();
        let mut means = BTreeMap::new();
        for name in &self.config.rewards {
            let mut reward = RewardModel::open(name, &self.session)?;
            let scores = reward.score(&images, &prompts)?;
            let mean = scores.iter().sum::<f64>() / scores.len() as f64;
            means.insert(format!("reward.{}", reward.manifest().name), mean);
        }
        if let Some(name) = &self.config.features {
            let mut extractor = RewardModel::open(name, &self.session)?;
            let diversity = self.diversity(&mut extractor, &images)?;
            means.insert(format!("diversity.{}", extractor.manifest().name), diversity);
        }
        Ok(Drawn { images, means })
    }

    /// Mean over prompts of the mean distance between their pictures.
    fn diversity(&self, extractor: &mut RewardModel, images: &[RgbImage]) -> Result<f64> {
        let distance = Distance::of(extractor);
        let (mut sum, mut prompts) = (0.0, 0.0);
        for of_prompt in images.chunks(self.config.images_per_prompt) {
            let features = extractor.embed_images(of_prompt)?;
            if let Some(mean) = mean_pairwise(features.view(), distance) {
                sum += mean;
                prompts += 1.0;
            }
        }
        Ok(sum / prompts)
    }

    fn images(
        &self,
        engine: &mut Engine,
        weights: &ParamSet,
        schedule: &NoiseSchedule,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<RgbImage>> {
        let guidance = Guidance::new(self.config.guidance);
        let [c, h, w] = engine.geometry().latent;
        let rows = if guidance.is_on() { 2 } else { 1 };
        let at_once = (engine.geometry().samples / rows).max(1);
        let mut vae = VaeDecoder::load(&self.folder, &self.session, self.vae)?;
        let all: Vec<usize> = (0..self.texts.len() * self.config.images_per_prompt).collect();
        let streams = Streams::new(self.config.seed);
        let mut images = Vec::with_capacity(all.len());
        for part in all.chunks(at_once) {
            let prompts: Vec<&Embedding> = part
                .iter()
                .map(|i| &self.embeddings[i / self.config.images_per_prompt])
                .collect();
            let mut noises: Vec<ImageNoise> = part
                .iter()
                .map(|i| {
                    let (prompt, image) = (
                        i / self.config.images_per_prompt,
                        i % self.config.images_per_prompt,
                    );
                    ImageNoise::new(&streams, prompt, image)
                })
                .collect();
            let mut sampler = sampler(&self.sampler, schedule, self.config.steps)?;
            let mut denoiser = WithWeights::new(engine, weights);
            let latents = Guided::new(&mut denoiser, guidance, &prompts, &self.negative).sample(
                &mut *sampler,
                &mut |image, draw, values| noises[image].fill(draw, values),
                &mut |_| ControlFlow::Continue(()),
            )?;
            let latents = ArrayView4::from_shape((part.len(), c, h, w), &latents)
                .expect("one latent per image was sampled");
            images.extend(vae.decode(latents)?);
            if progress(images.len()).is_break() {
                return Err(Error::Interrupted("stopped while pictures were drawn".into()));
            }
        }
        Ok(images)
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.texts.len() * self.config.images_per_prompt
    }

    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn prompt_of(&self, image: usize) -> &str {
        &self.texts[image / self.config.images_per_prompt]
    }

    /// Writes the pictures as one sheet, a prompt to a row where it has several.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_sheet(&self, path: &Path, images: &[RgbImage]) -> Result<()> {
        let cells: Vec<Cell> = images
            .iter()
            .enumerate()
            .map(|(i, image)| Cell {
                image,
                caption: self.prompt_of(i),
            })
            .collect();
        let columns = match self.config.images_per_prompt {
            1 => COLUMNS.min(images.len()),
            several => several,
        };
        write_png(path, &grid(&cells, columns), &[])
    }
}

/// Pictures in a row where every prompt has one.
const COLUMNS: usize = 8;
