//! The sampling loop: from noise to latents, with any denoiser that predicts for rows of samples.
//!
//! Generation runs it on a session of its own, training on the sessions it has, whose weights are inputs.

use std::ops::ControlFlow;

use super::denoiser::{Conditioning, Denoiser, Geometry};
use super::guidance::Guidance;
use super::text::Embedding;
use crate::diffusion::sampler::Sampler;
use crate::{Error, Result};

/// A denoiser for a fixed number of samples at a time.
pub trait Predict {
    /// Sizes of a run.
    fn geometry(&self) -> Geometry;

    /// Predictions (N,C,H,W) for `latents` (N,C,H,W), all at `timestep`; N is the geometry's number of samples.
    ///
    /// # Errors
    /// The run fails.
    fn predict(&mut self, latents: &[f32], timestep: f64, given: &Conditioning) -> Result<Vec<f32>>;
}

impl Predict for Denoiser {
    fn geometry(&self) -> Geometry {
        Denoiser::geometry(self)
    }

    fn predict(&mut self, latents: &[f32], timestep: f64, given: &Conditioning) -> Result<Vec<f32>> {
        Denoiser::predict(self, latents, timestep, given)
    }
}

/// Where the normal numbers of a sample come from: the start, or the noise that a sampler adds at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// The initial latents.
    Initial,
    /// The noise of this call of the sampler.
    Step(usize),
}

/// Fills in the normal numbers of one image of the batch.
pub type NoiseSource<'a> = dyn FnMut(usize, Draw, &mut [f32]) + 'a;

/// A batch of images on their way, with what they are conditioned on.
pub struct Guided<'a> {
    denoiser: &'a mut dyn Predict,
    guidance: Guidance,
    images: usize,
    /// What each row of a run is conditioned on; negative prompts first where there is guidance.
    runs: Vec<Conditioning>,
}

impl<'a> Guided<'a> {
    /// One image per prompt, moved away from `negative`.
    pub fn new(
        denoiser: &'a mut dyn Predict,
        guidance: Guidance,
        prompts: &[&Embedding],
        negative: &Embedding,
    ) -> Self {
        let samples = denoiser.geometry().samples;
        let away = match guidance.is_on() {
            true => prompts.len(),
            false => 0,
        };
        let mut rows: Vec<&Embedding> = std::iter::repeat_n(negative, away)
            .chain(prompts.iter().copied())
            .collect();
        let last = *rows.last().expect("there is a prompt");
        rows.resize(rows.len().next_multiple_of(samples), last);
        Self {
            runs: rows.chunks_exact(samples).map(conditioning).collect(),
            images: prompts.len(),
            denoiser,
            guidance,
        }
    }

    /// Values of one latent.
    pub fn latent_len(&self) -> usize {
        self.denoiser.geometry().latent_len()
    }

    /// The guided prediction (N,C,H,W) for one latent per prompt.
    ///
    /// # Errors
    /// The denoiser fails.
    pub fn predict(&mut self, latents: &[f32], timestep: f64) -> Result<Vec<f32>> {
        let len = self.latent_len();
        let samples = self.denoiser.geometry().samples;
        let mut rows = latents.to_vec();
        if self.guidance.is_on() {
            rows.extend_from_within(..);
        }
        // Rows that fill up the last run repeat the last latent.
        while rows.len() < self.runs.len() * samples * len {
            rows.extend_from_within(rows.len() - len..);
        }
        let mut prediction = Vec::with_capacity(rows.len());
        for (rows, given) in rows.chunks_exact(samples * len).zip(&self.runs) {
            prediction.extend(self.denoiser.predict(rows, timestep, given)?);
        }
        if self.guidance.is_on() {
            let mut prompt = prediction.split_off(self.images * len);
            prompt.truncate(self.images * len);
            self.guidance.combine(&prediction, &mut prompt, len);
            prediction = prompt;
        }
        prediction.truncate(self.images * len);
        Ok(prediction)
    }

    /// Latents (N,C,H,W) of one image per prompt. `on_step` hears how many calls of the denoiser are done, and may stop.
    ///
    /// # Errors
    /// The denoiser or the sampler fails; [`Error::Interrupted`] when `on_step` stopped.
    pub fn sample(
        &mut self,
        sampler: &mut dyn Sampler,
        noise: &mut NoiseSource<'_>,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<f32>> {
        let mut latents = self.draw(noise, Draw::Initial);
        let sigma = sampler.initial_sigma();
        latents
            .iter_mut()
            .for_each(|v| *v = (f64::from(*v) * sigma) as f32);
        let timesteps = sampler.timesteps().to_vec();
        for (call, timestep) in timesteps.into_iter().enumerate() {
            let mut scaled = latents.clone();
            sampler.scale_input(call, &mut scaled);
            let prediction = self.predict(&scaled, timestep)?;
            let fresh = sampler
                .needs_noise(call)
                .then(|| self.draw(noise, Draw::Step(call)));
            sampler.step(call, &prediction, &mut latents, fresh.as_deref())?;
            if on_step(call + 1).is_break() {
                return Err(Error::Interrupted("stopped while an image was made".into()));
            }
        }
        Ok(latents)
    }

    /// Normal numbers for every image.
    pub fn draw(&self, noise: &mut NoiseSource<'_>, what: Draw) -> Vec<f32> {
        let len = self.latent_len();
        let mut values = vec![0.0; self.images * len];
        for (image, slot) in values.chunks_exact_mut(len).enumerate() {
            noise(image, what, slot);
        }
        values
    }
}

/// What the rows of one run are conditioned on.
fn conditioning(rows: &[&Embedding]) -> Conditioning {
    Conditioning {
        text: rows.iter().flat_map(|row| row.hidden.iter().copied()).collect(),
        pooled: rows
            .iter()
            .flat_map(|row| row.pooled.iter().flatten().copied())
            .collect(),
    }
}
