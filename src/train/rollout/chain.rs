//! Images made step by step, with every step kept: where it started, where it went, how probable it was.

use std::collections::BTreeMap;

use crate::Result;
use crate::diffusion::NoiseSchedule;
use crate::diffusion::sampler::GaussianStep;
use crate::generate::ImageNoise;
use crate::params::ParamSet;
use crate::pipeline::sampling::Guided;
use crate::pipeline::{Draw, Embedding, Guidance};
use crate::rng::Streams;
use crate::train::engine::{Engine, mean_square};
use crate::train::pictures::WithWeights;

/// Which image: its noise depends on these and the seed alone, as that of `ortdpo generate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageKey {
    /// Position of the prompt in the file.
    pub prompt: usize,
    /// Number of the image among those of the prompt.
    pub image: usize,
}

/// What the prompts of a round condition the denoiser on, by their positions.
pub type Embeddings = BTreeMap<usize, Embedding>;

/// One image with its way.
#[derive(Debug, Clone, PartialEq)]
pub struct Trajectory {
    /// Which image.
    pub key: ImageKey,
    /// Latents (C,H,W flat) before the first step and after each one; the last are those of the image.
    pub latents: Vec<Vec<f32>>,
    /// Of each step the error of the guided prediction, for the target that [`GaussianStep::target`] tells.
    pub errors: Vec<f32>,
}

impl Trajectory {
    /// Latents of the image.
    pub fn image(&self) -> &[f32] {
        self.latents
            .last()
            .expect("there are latents before the first step")
    }
}

/// How images are made.
pub struct Chain<'a> {
    /// Steps, the noisiest first.
    pub steps: &'a [GaussianStep],
    /// Guidance.
    pub guidance: Guidance,
    /// What guidance leads away from.
    pub negative: &'a Embedding,
    /// Of the prompts.
    pub embeddings: &'a Embeddings,
    /// Source of the images' noise.
    pub streams: Streams,
    /// The model's noise schedule.
    pub schedule: &'a NoiseSchedule,
}

impl Chain<'_> {
    /// Images that are made at once: as many as a run of the session has samples for, of which guidance takes two an image.
    pub fn at_once(&self, engine: &Engine) -> usize {
        let rows = if self.guidance.is_on() { 2 } else { 1 };
        (engine.geometry().samples / rows).max(1)
    }

    /// Makes the images of `keys`, at most [`Chain::at_once`], with `weights`.
    ///
    /// # Errors
    /// The denoiser fails.
    pub fn sample(
        &self,
        engine: &mut Engine,
        weights: &ParamSet,
        keys: &[ImageKey],
    ) -> Result<Vec<Trajectory>> {
        let prompts: Vec<&Embedding> = keys.iter().map(|key| &self.embeddings[&key.prompt]).collect();
        let mut noises: Vec<ImageNoise> = keys
            .iter()
            .map(|key| ImageNoise::new(&self.streams, key.prompt, key.image))
            .collect();
        let mut denoiser = WithWeights::new(engine, weights);
        let mut guided = Guided::new(&mut denoiser, self.guidance, &prompts, self.negative);
        let len = guided.latent_len();
        let mut fill = |image: usize, draw, values: &mut [f32]| noises[image].fill(draw, values);
        let mut latents = guided.draw(&mut fill, Draw::Initial);
        let mut trajectories: Vec<Trajectory> = keys
            .iter()
            .zip(latents.chunks_exact(len))
            .map(|(key, start)| Trajectory {
                key: *key,
                latents: vec![start.to_vec()],
                errors: Vec::with_capacity(self.steps.len()),
            })
            .collect();
        let mut target = vec![0.0; len];
        for (index, step) in self.steps.iter().enumerate() {
            let prediction = guided.predict(&latents, f64::from(step.timestep.0))?;
            let fresh = match step.is_random() {
                true => guided.draw(&mut fill, Draw::Step(index)),
                false => vec![0.0; latents.len()],
            };
            step.advance(&prediction, &fresh, &mut latents);
            let parts = latents.chunks_exact(len).zip(prediction.chunks_exact(len));
            for (trajectory, (next, prediction)) in trajectories.iter_mut().zip(parts) {
                step.target(trajectory.image(), next, &mut target);
                trajectory.errors.push(mean_square(prediction, &target));
                trajectory.latents.push(next.to_vec());
            }
        }
        Ok(trajectories)
    }
}
