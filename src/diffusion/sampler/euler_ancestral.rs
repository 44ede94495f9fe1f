//! Euler's method with fresh noise in every step, as `EulerAncestralDiscreteScheduler` of diffusers has it (after
//! k-diffusion). Latents are `x_0 + σ · ε`.

use super::{Sampler, SamplerConfig, SamplerKind, add_noise, check_call, estimate, sigmas, spacing};
use crate::Result;
use crate::diffusion::{NoiseSchedule, PredictionType};

/// `x ← x + (σ_down − σ) · ε̂ + σ_up · noise`, where `σ_up² = σ'²(σ² − σ'²)/σ²` and `σ_down² + σ_up² = σ'²`.
pub(super) struct EulerAncestral {
    timesteps: Vec<f64>,
    /// One per call, and 0 at the end.
    sigmas: Vec<f64>,
    initial_sigma: f64,
    prediction: PredictionType,
}

impl EulerAncestral {
    pub(super) fn new(config: &SamplerConfig, schedule: &NoiseSchedule, steps: usize) -> Result<Self> {
        let kind = SamplerKind::EulerAncestral;
        let table = sigmas::Sigmas::new(schedule);
        let timesteps = spacing::timesteps(config, kind, schedule.train_timesteps(), steps)?;
        let sigmas: Vec<f64> = timesteps.iter().map(|t| table.at(*t)).chain([0.0]).collect();
        Ok(Self {
            initial_sigma: sigmas::initial(config, kind, sigmas[0]),
            timesteps,
            sigmas,
            prediction: schedule.prediction_type(),
        })
    }

    /// `σ_up`: how much of the next noise level is fresh.
    fn fresh(&self, call: usize) -> f64 {
        let (from, to) = (self.sigmas[call], self.sigmas[call + 1]);
        to * (1.0 - (to / from).powi(2)).sqrt()
    }
}

impl Sampler for EulerAncestral {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn initial_sigma(&self) -> f64 {
        self.initial_sigma
    }

    fn scale_input(&self, call: usize, latents: &mut [f32]) {
        sigmas::scale_input(self.sigmas[call], latents);
    }

    fn needs_noise(&self, call: usize) -> bool {
        self.fresh(call) > 0.0
    }

    fn step(
        &mut self,
        call: usize,
        model_output: &[f32],
        latents: &mut [f32],
        noise: Option<&[f32]>,
    ) -> Result<()> {
        check_call(self.timesteps[call], model_output, latents)?;
        let (from, to) = (self.sigmas[call], self.sigmas[call + 1]);
        let down = to * to / from;
        let direction = estimate::noise_of_sigma(self.prediction, from);
        for (x, m) in latents.iter_mut().zip(model_output) {
            *x = (f64::from(*x) + (down - from) * direction.of(*x, *m)) as f32;
        }
        add_noise(self.fresh(call), noise, latents);
        Ok(())
    }
}
