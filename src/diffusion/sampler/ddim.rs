//! DDIM (arXiv 2010.02502, equations 12 and 16), as `DDIMScheduler` of diffusers has it.

use super::estimate::{self, Combination};
use super::{Sampler, SamplerConfig, SamplerKind, add_noise, check_call, spacing};
use crate::Result;
use crate::diffusion::{NoiseSchedule, PredictionType, Timestep};

/// `x ← √ᾱ' · clip(x̂_0) + √(1−ᾱ'−s²) · ε̂ + s · noise`, where `s = η · √((1−ᾱ')/(1−ᾱ) · (1−ᾱ/ᾱ'))`.
pub(super) struct Ddim {
    timesteps: Vec<f64>,
    steps: Vec<Step>,
    clip: f64,
}

struct Step {
    clean: Combination,
    noise: Combination,
    to_clean: f64,
    to_noise: f64,
    fresh: f64,
}

impl Ddim {
    pub(super) fn new(config: &SamplerConfig, schedule: &NoiseSchedule, steps: usize) -> Result<Self> {
        let train = schedule.train_timesteps();
        let timesteps = spacing::timesteps(config, SamplerKind::Ddim, train, steps)?;
        check_first(config, schedule, &timesteps)?;
        let end = if config.set_alpha_to_one(SamplerKind::Ddim) {
            1.0
        } else {
            schedule.alpha_cumprod(Timestep(0))
        };
        // Whatever the spacing, a step goes down by the same whole number, also where that is not the next timestep.
        let stride = (train / steps) as f64;
        let step = |t: &f64| {
            let alpha = schedule.alpha_cumprod(Timestep(*t as u32));
            let next = if *t >= stride {
                schedule.alpha_cumprod(Timestep((t - stride) as u32))
            } else {
                end
            };
            let fresh = config.eta() * ((1.0 - next) / (1.0 - alpha) * (1.0 - alpha / next)).sqrt();
            Step {
                clean: estimate::clean(schedule.prediction_type(), alpha),
                noise: estimate::noise(schedule.prediction_type(), alpha),
                to_clean: next.sqrt(),
                to_noise: (1.0 - next - fresh * fresh).max(0.0).sqrt(),
                fresh,
            }
        };
        Ok(Self {
            steps: timesteps.iter().map(step).collect(),
            timesteps,
            clip: config.clip_range(),
        })
    }
}

impl Ddim {
    /// Of each step: the shares of latents and model output in its mean, and its standard deviation. Clipping, where it is
    /// configured, is left out: it is not linear.
    pub(super) fn linear(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        self.steps.iter().map(|step| {
            let share = |clean: f64, noise: f64| step.to_clean * clean + step.to_noise * noise;
            (
                share(step.clean.latents, step.noise.latents),
                share(step.clean.output, step.noise.output),
                step.fresh,
            )
        })
    }
}

/// Refuses to divide by a signal that is not there.
pub(super) fn check_first(config: &SamplerConfig, schedule: &NoiseSchedule, timesteps: &[f64]) -> Result<()> {
    let no_signal = timesteps
        .iter()
        .any(|t| schedule.alpha_cumprod(Timestep(*t as u32)) == 0.0);
    if no_signal && schedule.prediction_type() == PredictionType::Epsilon {
        return Err(config.bad(
            "rescales to zero terminal SNR, where a model that predicts noise says nothing about the image",
            "Set prediction_type to v_prediction if that is what the model predicts, or timestep_spacing to leading.",
        ));
    }
    Ok(())
}

impl Sampler for Ddim {
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
            *x = (step.to_clean * clean + step.to_noise * step.noise.of(*x, *m)) as f32;
        }
        add_noise(step.fresh, noise, latents);
        Ok(())
    }
}
