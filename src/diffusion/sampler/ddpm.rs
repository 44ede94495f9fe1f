//! DDPM's ancestral sampling (arXiv 2006.11239, equations 6 and 7), as `DDPMScheduler` of diffusers has it.

use super::config::Variance;
use super::estimate::{self, Combination};
use super::{Sampler, SamplerConfig, SamplerKind, add_noise, check_call, ddim, spacing};
use crate::Result;
use crate::diffusion::{NoiseSchedule, Timestep};

/// diffusers takes the variance's logarithm in some variants and therefore keeps it from 0 in all.
const LEAST_VARIANCE: f64 = 1e-20;

/// `x ← √ᾱ'·β/(1−ᾱ) · clip(x̂_0) + √α·(1−ᾱ')/(1−ᾱ) · x + s · noise`, with `α = ᾱ/ᾱ'` and `β = 1−α` of the step taken.
pub(super) struct Ddpm {
    timesteps: Vec<f64>,
    steps: Vec<Step>,
    clip: f64,
}

struct Step {
    clean: Combination,
    to_clean: f64,
    to_latents: f64,
    fresh: f64,
}

impl Ddpm {
    pub(super) fn new(config: &SamplerConfig, schedule: &NoiseSchedule, steps: usize) -> Result<Self> {
        let timesteps = spacing::timesteps(config, SamplerKind::Ddpm, schedule.train_timesteps(), steps)?;
        ddim::check_first(config, schedule, &timesteps)?;
        let alpha_at = |t: f64| schedule.alpha_cumprod(Timestep(t as u32));
        let step = |index: usize| {
            let t = timesteps[index];
            let alpha = alpha_at(t);
            let next = timesteps.get(index + 1).map_or(1.0, |next| alpha_at(*next));
            let (step_alpha, step_beta) = (alpha / next, 1.0 - alpha / next);
            let variance = match config.variance() {
                Variance::Small => ((1.0 - next) / (1.0 - alpha) * step_beta).max(LEAST_VARIANCE),
                Variance::Large => step_beta,
            };
            Step {
                clean: estimate::clean(schedule.prediction_type(), alpha),
                to_clean: next.sqrt() * step_beta / (1.0 - alpha),
                to_latents: step_alpha.sqrt() * (1.0 - next) / (1.0 - alpha),
                fresh: if t > 0.0 { variance.sqrt() } else { 0.0 },
            }
        };
        Ok(Self {
            steps: (0..timesteps.len()).map(step).collect(),
            clip: config.clip_range(),
            timesteps,
        })
    }
}

impl Sampler for Ddpm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn needs_noise(&self, call: usize) -> bool {
        self.steps[call].fresh > 0.0
    }

    fn step(
        &mut self,
        call: usize,
        model_output: &[f32],
        latents: &mut [f32],
        noise: Option<&[f32]>,
    ) -> Result<()> {
        check_call(self.timesteps[call], model_output, latents)?;
        let step = &self.steps[call];
        for (x, m) in latents.iter_mut().zip(model_output) {
            let clean = step.clean.of(*x, *m).clamp(-self.clip, self.clip);
            *x = (step.to_clean * clean + step.to_latents * f64::from(*x)) as f32;
        }
        add_noise(step.fresh, noise, latents);
        Ok(())
    }
}
