//! DPM-Solver++ of second order, multistep, midpoint (arXiv 2211.01095, algorithm 2), as
//! `DPMSolverMultistepScheduler` of diffusers has it. Latents are `√ᾱ · x_0 + √(1−ᾱ) · ε`.

use super::{Sampler, SamplerConfig, check_call, estimate, sigmas, spacing};
use crate::Result;
use crate::diffusion::{NoiseSchedule, PredictionType};

/// With fewer steps than this, `lower_order_final` makes the last step one of first order.
const FEW_STEPS: usize = 15;

/// With `a = √ᾱ`, `s = √(1−ᾱ)`, `h = ln(a'/s') − ln(a/s)` and `h_0` that of the step before:
/// `x ← s'/s · x + a' (1 − e^(−h)) · (x̂_0 + h/(2h_0) · (x̂_0 − previous x̂_0))`, without the difference at first order.
pub(super) struct DpmSolver {
    timesteps: Vec<f64>,
    /// `s/a`; one per call, and the end.
    sigmas: Vec<f64>,
    prediction: PredictionType,
    /// Whether the last step is of first order.
    plain_end: bool,
    /// `x̂_0` of the call before; empty before the first.
    previous: Vec<f64>,
}

impl DpmSolver {
    pub(super) fn new(config: &SamplerConfig, schedule: &NoiseSchedule, steps: usize) -> Result<Self> {
        let table = sigmas::Sigmas::new(schedule);
        let last = table.count_above_lambda(config.lambda_min_clipped()).max(1);
        let mut timesteps = spacing::dpm_timesteps(config, schedule.train_timesteps(), last, steps)?;
        let mut sigmas: Vec<f64> = timesteps.iter().map(|t| table.at(*t)).collect();
        if config.karras() {
            sigmas = sigmas::karras(table.highest(), table.lowest(), steps);
            timesteps = sigmas
                .iter()
                .map(|sigma| table.timestep_of(*sigma).round_ties_even())
                .collect();
        }
        let end = table.end(config);
        sigmas.push(end);
        let few = config.lower_order_final() && timesteps.len() < FEW_STEPS;
        Ok(Self {
            timesteps,
            sigmas,
            prediction: schedule.prediction_type(),
            plain_end: config.euler_at_final() || few || end == 0.0,
            previous: Vec::new(),
        })
    }

    /// `h / (2 h_0)` of a call of second order.
    fn curvature(&self, call: usize) -> Option<f64> {
        let first_order = call == 0 || (call + 1 == self.timesteps.len() && self.plain_end);
        if first_order {
            return None;
        }
        let step = |index: usize| (self.sigmas[index] / self.sigmas[index + 1]).ln();
        Some(step(call) / (2.0 * step(call - 1)))
    }
}

impl Sampler for DpmSolver {
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
        let (sigma, next) = (self.sigmas[call], self.sigmas[call + 1]);
        let signal = |sigma: f64| 1.0 / (sigma * sigma + 1.0).sqrt();
        let clean = estimate::clean(self.prediction, signal(sigma).powi(2));
        // e^(−h) is the ratio of the noise levels.
        let to_clean = signal(next) * (1.0 - next / sigma);
        let to_latents = next * signal(next) / (sigma * signal(sigma));
        let curvature = self.curvature(call).unwrap_or(0.0);
        self.previous.resize(latents.len(), 0.0);
        for ((x, m), previous) in latents.iter_mut().zip(model_output).zip(&mut self.previous) {
            let estimate = clean.of(*x, *m);
            let extrapolated = estimate + curvature * (estimate - *previous);
            *x = (to_latents * f64::from(*x) + to_clean * extrapolated) as f32;
            *previous = estimate;
        }
        Ok(())
    }
}
