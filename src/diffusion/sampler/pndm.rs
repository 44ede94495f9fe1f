//! PLMS: pseudo linear multistep sampling (arXiv 2202.09778, equations 9 and 12), as `PNDMScheduler` of diffusers has
//! it with `skip_prk_steps`, the setting of Stable Diffusion. The second call repeats the first step with the mean of
//! both outputs, so there is one call more than steps.

use super::estimate::{self, Combination};
use super::{Sampler, SamplerConfig, SamplerKind, check_call, spacing};
use crate::Result;
use crate::diffusion::{NoiseSchedule, Timestep};

/// Adams–Bashforth weights of the latest outputs, newest first, by how many there are.
const WEIGHTS: [&[f64]; 4] = [
    &[1.0],
    &[3.0 / 2.0, -1.0 / 2.0],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];
/// The call that repeats the first step.
const CORRECTION: usize = 1;

/// `x ← √(ᾱ'/ᾱ) · x − (ᾱ' − ᾱ) / (ᾱ √(1−ᾱ') + √(ᾱ (1−ᾱ) ᾱ')) · ε̂`, where ε̂ is a combination of the latest outputs.
pub(super) struct Pndm {
    timesteps: Vec<f64>,
    steps: Vec<Step>,
    /// Outputs of earlier calls, newest first, without the correction's.
    outputs: Vec<Vec<f32>>,
    /// The latents before the first step.
    start: Vec<f32>,
}

struct Step {
    noise: Combination,
    to_latents: f64,
    to_noise: f64,
}

impl Step {
    fn new(schedule: &NoiseSchedule, alpha: f64, next: f64) -> Self {
        let denominator = alpha * (1.0 - next).sqrt() + (alpha * (1.0 - alpha) * next).sqrt();
        Self {
            noise: estimate::noise(schedule.prediction_type(), alpha),
            to_latents: (next / alpha).sqrt(),
            to_noise: -(next - alpha) / denominator,
        }
    }
}

impl Pndm {
    pub(super) fn new(config: &SamplerConfig, schedule: &NoiseSchedule, steps: usize) -> Result<Self> {
        let train = schedule.train_timesteps();
        if schedule.alpha_cumprod(Timestep(train as u32 - 1)) == 0.0 {
            return Err(config.bad(
                "rescales to zero terminal SNR, which pndm cannot start from",
                "Choose another sampler.",
            ));
        }
        let mut timesteps = spacing::timesteps(config, SamplerKind::Pndm, train, steps)?;
        if let Some(second) = timesteps.get(CORRECTION).copied() {
            timesteps.insert(CORRECTION, second);
        }
        let stride = (train / steps) as f64;
        let end = if config.set_alpha_to_one(SamplerKind::Pndm) {
            1.0
        } else {
            schedule.alpha_cumprod(Timestep(0))
        };
        let alpha_at = |t: f64| {
            if t < 0.0 {
                end
            } else {
                schedule.alpha_cumprod(Timestep(t as u32))
            }
        };
        let step = |(call, t): (usize, &f64)| {
            let from = if call == CORRECTION { t + stride } else { *t };
            Step::new(schedule, alpha_at(from), alpha_at(from - stride))
        };
        Ok(Self {
            steps: timesteps.iter().enumerate().map(step).collect(),
            timesteps,
            outputs: Vec::new(),
            start: Vec::new(),
        })
    }

    /// The combination of outputs that a call steps along.
    fn combine(&mut self, call: usize, model_output: &[f32]) -> Vec<f64> {
        if call == CORRECTION {
            let both = model_output.iter().zip(&self.outputs[0]);
            return both.map(|(a, b)| (f64::from(*a) + f64::from(*b)) / 2.0).collect();
        }
        self.outputs.truncate(WEIGHTS.len() - 1);
        self.outputs.insert(0, model_output.to_vec());
        let weights = WEIGHTS[self.outputs.len() - 1];
        let mut sum = vec![0.0; model_output.len()];
        for (weight, output) in weights.iter().zip(&self.outputs) {
            for (sum, value) in sum.iter_mut().zip(output) {
                *sum += weight * f64::from(*value);
            }
        }
        sum
    }
}

impl Sampler for Pndm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(
        &mut self,
        call: usize,
        model_output: &[f32],
        latents: &mut [f32],
        _noise: Option<&[f32]>,
    ) -> Result<()> {
        check_call(self.timesteps[call], model_output, latents)?;
        match call {
            0 => self.start = latents.to_vec(),
            CORRECTION => latents.copy_from_slice(&self.start),
            _ => {}
        }
        let direction = self.combine(call, model_output);
        let step = &self.steps[call];
        for (x, m) in latents.iter_mut().zip(direction) {
            let noise = step.noise.latents * f64::from(*x) + step.noise.output * m;
            *x = (step.to_latents * f64::from(*x) + step.to_noise * noise) as f32;
        }
        Ok(())
    }
}
