//! From latents, noise and timesteps to what the denoiser is fed.

use super::engine::Samples;
use super::source::Text;
use crate::diffusion::{NoiseSchedule, Timestep};
use crate::pipeline::TimeIds;
use crate::pipeline::denoiser::Geometry;

impl Samples {
    /// Room for the samples of one run.
    pub fn with_geometry(geometry: &Geometry) -> Self {
        Self {
            size: geometry.latent_size(),
            noisy: Vec::with_capacity(geometry.samples * geometry.latent_len()),
            target: Vec::with_capacity(geometry.samples * geometry.latent_len()),
            timesteps: Vec::with_capacity(geometry.samples),
            text: Vec::with_capacity(geometry.samples * geometry.text_len()),
            pooled: Vec::with_capacity(geometry.samples * geometry.pooled_len()),
            time_ids: Vec::with_capacity(geometry.samples),
        }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.timesteps.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.timesteps.is_empty()
    }

    /// Forgets all samples and keeps the memory.
    pub fn clear(&mut self) {
        self.noisy.clear();
        self.target.clear();
        self.timesteps.clear();
        self.text.clear();
        self.pooled.clear();
        self.time_ids.clear();
    }

    /// Adds `latent` (C,H,W flat, scaled; of the batch's size) noised to timestep `t`, with its training target.
    pub fn push(
        &mut self,
        schedule: &NoiseSchedule,
        t: Timestep,
        latent: &[f32],
        noise: &[f32],
        (text, time_ids): (&Text, TimeIds),
    ) {
        let start = self.noisy.len();
        let end = start + latent.len();
        self.noisy.resize(end, 0.0);
        self.target.resize(end, 0.0);
        schedule.add_noise(t, latent, noise, &mut self.noisy[start..]);
        schedule.target(t, latent, noise, &mut self.target[start..]);
        self.condition(t, text, time_ids);
    }

    /// Adds a row `noisy` (C,H,W flat) at timestep `t`; its target is added apart, if it has one.
    pub fn push_row(&mut self, noisy: &[f32], t: Timestep, (text, time_ids): (&Text, TimeIds)) {
        self.noisy.extend_from_slice(noisy);
        self.condition(t, text, time_ids);
    }

    fn condition(&mut self, t: Timestep, text: &Text, time_ids: TimeIds) {
        self.time_ids.push(time_ids.0);
        self.timesteps.push(t);
        self.text.extend_from_slice(&text.hidden);
        self.pooled.extend_from_slice(&text.pooled);
    }

    /// Repeats the last sample until there are `samples`: sessions run batches of one size.
    pub fn pad_to(&mut self, samples: usize) {
        let Some(&t) = self.timesteps.last() else { return };
        let (latent, text) = (self.noisy.len() / self.len(), self.text.len() / self.len());
        let pooled = self.pooled.len() / self.len();
        while self.len() < samples {
            self.noisy.extend_from_within(self.noisy.len() - latent..);
            self.target.extend_from_within(self.target.len() - latent..);
            self.text.extend_from_within(self.text.len() - text..);
            self.pooled.extend_from_within(self.pooled.len() - pooled..);
            self.time_ids.extend_from_within(self.time_ids.len() - 1..);
            self.timesteps.push(t);
        }
    }

    /// The rows at `positions`, in that order, without targets.
    pub fn rows_at(&self, positions: impl Iterator<Item = usize>) -> Self {
        let (latent, text) = (self.noisy.len() / self.len(), self.text.len() / self.len());
        let pooled = self.pooled.len() / self.len();
        let part = |values: &[f32], i: usize, size: usize| values[i * size..(i + 1) * size].to_vec();
        let mut chosen = Self {
            size: self.size,
            ..Self::default()
        };
        for i in positions {
            chosen.noisy.extend(part(&self.noisy, i, latent));
            chosen.text.extend(part(&self.text, i, text));
            chosen.pooled.extend(part(&self.pooled, i, pooled));
            chosen.time_ids.push(self.time_ids[i]);
            chosen.timesteps.push(self.timesteps[i]);
        }
        chosen
    }
}
