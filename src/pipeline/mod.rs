//! A text-to-image pipeline: prompts to images with the networks of a pipeline folder.
//!
//! ```text
//! prompt ─► text.rs (tokenizers, text encoders) ─► Embedding ─┐
//! noise ─► sampler ⇄ sampling.rs: denoiser.rs, guidance.rs ◄──┘
//!             └─► latents ─► vae.rs ─► image
//! adapters.rs: LoRA and fine-tuned weights in the graphs of denoiser and text encoders
//! merge.rs, adaptable.rs: pipeline folders with adapters in their weights, and with inputs for adapters
//! ```
//!
//! The data cache and training use the same encoders and the same static denoiser.

pub mod adaptable;
pub mod adapters;
pub mod compare;
pub mod denoiser;
mod derived_folder;
mod factors;
pub mod geometry;
pub mod guidance;
mod hidden_states;
mod latent;
pub mod merge;
pub mod micro;
mod misfit;
pub mod network;
mod replacement;
pub mod sampling;
mod sizes;
pub mod text;
mod vae;
pub mod weight_copies;

use std::ops::ControlFlow;

use image::RgbImage;
use ndarray::ArrayView4;

use crate::Result;
use crate::adapter::content;
use crate::diffusion::sampler::Sampler;
use crate::model_folder::{Component, JsonFile, ModelFolder};
use crate::onnx::Model;
use crate::runtime::SessionOptions;
use denoiser::Denoiser;
use sampling::Guided;

pub use adapters::{Adapted, AdapterRef, Adapters};
pub use derived_folder::read_network;
pub use guidance::Guidance;
pub use latent::{LatentScaling, Moments};
pub use micro::TimeIds;
pub use sampling::{Draw, NoiseSource};
pub use sizes::Sizes;
pub use text::{Embedding, PromptTokens, TextEncoders};
pub use vae::{VaeDecoder, VaeEncoder, VaePrecision};

/// What is fixed when a pipeline is loaded.
#[derive(Debug, Clone)]
pub struct PipelineOptions {
    /// How sessions are built.
    pub session: SessionOptions,
    /// What the VAE computes in.
    pub vae: VaePrecision,
    /// Images made at a time.
    pub batch: usize,
    /// How predictions for prompt and negative prompt are combined.
    pub guidance: Guidance,
    /// Layers of the text encoders that are left out at the end, for prompts; not for the negative one, as in diffusers.
    pub clip_skip: usize,
    /// What images are moved away from. `None` is the empty prompt, or zeros where the pipeline says so, as SDXL does.
    pub negative: Option<String>,
    /// Height and width of the images in pixels; the model's own by default.
    pub size: [Option<usize>; 2],
}

impl Default for PipelineOptions {
    fn default() -> Self {
        Self {
            session: SessionOptions::default(),
            vae: VaePrecision::default(),
            batch: 1,
            guidance: Guidance::new(7.5),
            clip_skip: 0,
            negative: None,
            size: [None; 2],
        }
    }
}

/// A pipeline ready to make images of one size.
#[derive(Debug)]
pub struct Pipeline {
    text: TextEncoders,
    denoiser: Denoiser,
    vae: VaeDecoder,
    guidance: Guidance,
    /// Images made at a time.
    batch: usize,
    /// Height and width in pixels.
    size: [usize; 2],
    /// What images are moved away from.
    negative: Embedding,
    /// Weights that are mapped; removed when nobody reads them any more.
    _folders: Vec<tempfile::TempDir>,
}

impl Pipeline {
    /// Loads the networks of `model` with adapters.
    ///
    /// # Errors
    /// A file is missing or is not what it should be; an adapter does not fit; the size is not one that the model can
    /// make.
    pub fn load(model: &ModelFolder, adapters: &[AdapterRef], options: &PipelineOptions) -> Result<Self> {
        let adapters = Adapters::read(adapters, model)?;
        let text_encoders = |skip| TextEncoders::load(model, &options.session, skip, &adapters);
        let mut text = text_encoders(options.clip_skip)?;
        let negative = match options.clip_skip {
            0 => encode_negative(&mut text, model, options.negative.as_deref())?,
            _ => encode_negative(&mut text_encoders(0)?, model, options.negative.as_deref())?,
        };
        let vae = VaeDecoder::load(model, &options.session, options.vae)?;
        let component = model.denoiser()?;
        let unet = Model::read(model.network(component)?)?;
        let sizes = Sizes::read(model, &unet)?;
        let size = sizes.image(options.size, ["--height", "--width"])?;
        let samples = options.batch * if options.guidance.is_on() { 2 } else { 1 };
        let geometry = sizes.sample(size, &negative).with_samples(samples);
        let graph = denoiser::load(&unet, &geometry, adapters.replaces(component))?;
        let Adapted { graph, folders } = adapters.apply(graph, component)?;

        Ok(Self {
            denoiser: Denoiser::new(&unet, &graph, geometry, &options.session)?,
            text,
            vae,
            guidance: options.guidance,
            batch: options.batch,
            size,
            negative,
            _folders: folders,
        })
    }

    /// Checks that every file which [`Pipeline::load`] reads is there and all of it, and that the adapters fit, before
    /// anything is loaded.
    ///
    /// # Errors
    /// The first file of which that does not hold.
    pub fn check_files(model: &ModelFolder, adapters: &[AdapterRef]) -> Result<()> {
        model.check_files(&text::components(model)?)?;
        model.check_files(&[model.denoiser()?, Component::VaeDecoder, Component::Scheduler])?;
        let check = |adapter: &AdapterRef| content::check_file(&adapter.file()?);
        adapters.iter().try_for_each(check)?;
        Adapters::read(adapters, model).map(drop)
    }

    /// Height and width of the images in pixels.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Shape of an image's latent, (C,H,W).
    pub fn latent_shape(&self) -> [usize; 3] {
        self.denoiser.geometry().latent
    }

    /// Images made at a time.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// What prompts condition the denoiser on.
    ///
    /// # Errors
    /// A text encoder fails.
    pub fn encode_prompts(&mut self, prompts: &[&str]) -> Result<Vec<Embedding>> {
        let tokens: Vec<PromptTokens> = prompts
            .iter()
            .map(|p| self.text.tokenize(p))
            .collect::<Result<_>>()?;
        self.text.encode(&tokens.iter().collect::<Vec<_>>())
    }

    /// Latents (N,C,H,W) of one image per prompt, at most as many as a batch has. `on_step` hears how many calls of the
    /// denoiser are done, and may stop.
    ///
    /// # Errors
    /// The denoiser or the sampler fails; [`Error::Interrupted`] when `on_step` stopped.
    pub fn sample(
        &mut self,
        sampler: &mut dyn Sampler,
        prompts: &[&Embedding],
        noise: &mut NoiseSource<'_>,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<f32>> {
        Guided::new(&mut self.denoiser, self.guidance, prompts, &self.negative)
            .sample(sampler, noise, on_step)
    }

    /// Images from latents (N,C,H,W).
    ///
    /// # Errors
    /// The VAE fails, or gives values that are no numbers.
    pub fn decode(&mut self, latents: &[f32]) -> Result<Vec<RgbImage>> {
        let [c, h, w] = self.latent_shape();
        let images = latents.len() / (c * h * w);
        let latents = ArrayView4::from_shape((images, c, h, w), latents)
            .expect("the number of images was computed from the length");
        self.vae.decode(latents)
    }
}

/// What images are moved away from: `negative`, or where it is not given the empty prompt, or zeros where the pipeline
/// says so, as SDXL does.
///
/// # Errors
/// A text encoder fails.
pub fn encode_negative(
    text: &mut TextEncoders,
    model: &ModelFolder,
    negative: Option<&str>,
) -> Result<Embedding> {
    let tokens = text.tokenize(negative.unwrap_or(""))?;
    let embedding = text.encode(&[&tokens])?.remove(0);
    let index = JsonFile::read(model.root().join("model_index.json"))?;
    let forced = index
        .get("force_zeros_for_empty_prompt")
        .and_then(|v| v.as_bool());
    let zeros = negative.is_none() && text::is_xl(model) && forced.unwrap_or(true);
    Ok(if zeros { embedding.zeroed() } else { embedding })
}
