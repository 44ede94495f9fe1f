//! Euler's method on the probability flow (arXiv 2206.00364, algorithm 2 without churn), as `EulerDiscreteScheduler`
//! of diffusers has it. Latents are `x_0 + σ · ε`.

use super::{Sampler, SamplerConfig, SamplerKind, check_call, estimate, sigmas, spacing};
use crate::Result;
use crate::diffusion::{NoiseSchedule, PredictionType};

/// `x ← x + (σ' − σ) · ε̂`.
pub(super) struct Euler {
    timesteps: Vec<f64>,
    /// One per call, and the end.
    sigmas: Vec<f64>,
    initial_sigma: f64,
    prediction: PredictionType,
}

impl Euler {
    pub(super) fn new(config: &SamplerConfig, schedule: &NoiseSchedule, steps: usize) -> Result<Self> {
        let kind = SamplerKind::Euler;
        let table = sigmas::Sigmas::new(schedule);
        let mut timesteps = spacing::timesteps(config, kind, schedule.train_timesteps(), steps)?;
        let mut sigmas: Vec<f64> = timesteps.iter().map(|t| table.at(*t)).collect();
        if config.karras() {
            sigmas = sigmas::karras(sigmas[0], sigmas[steps - 1], steps);
            timesteps = sigmas.iter().map(|sigma| table.timestep_of(*sigma)).collect();
        }
        sigmas.push(table.end(config));
        Ok(Self {
            initial_sigma: sigmas::initial(config, kind, sigmas[0]),
            timesteps,
            sigmas,
            prediction: schedule.prediction_type(),
        })
    }
}

impl Sampler for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn initial_sigma(&self) -> f64 {
        self.initial_sigma
    }

    fn scale_input(&self, call: usize, latents: &mut [f32]) {
        sigmas::scale_input(self.sigmas[call], latents);
    }

    fn step(
        &mut self,
        call: usize,
        model_output: &[f32],
        latents: &mut [f32],
        _noise: Option<&[f32]>,
    ) -> Result<()> {
        check_call(self.timesteps[call], model_output, latents)?;
        let noise = estimate::noise_of_sigma(self.prediction, self.sigmas[call]);
        let way = self.sigmas[call + 1] - self.sigmas[call];
        for (x, m) in latents.iter_mut().zip(model_output) {
            *x = (f64::from(*x) + way * noise.of(*x, *m)) as f32;
        }
        Ok(())
    }
}
