//! DDIM with η > 0 as a chain of Gaussian steps: what reinforcement learning on denoising trajectories needs.
//!
//! A step draws `x' ~ N(μ, σ²)`, and its mean is linear in what the network predicts: `μ = carry·x + predict·m`. Its
//! log-probability, averaged over C,H,W as in the code of DDPO (arXiv 2305.13301), D3PO (2311.13231) and DPOK (2305.16381), is
//!
//! ```text
//! logp = mean[ −(x' − μ)²/(2σ²) − ln σ − ½·ln 2π ]
//!      = −κ·e + c,     e = mean[(m − target)²],   target = (x' − carry·x)/predict,   κ = predict²/(2σ²)
//! ```
//!
//! that is, a denoising error with another target. Everything that is made for denoising errors therefore works on
//! trajectories, with κ as a weight of each sample.

use std::f64::consts::TAU;

use super::ddim::Ddim;
use super::{Sampler, SamplerConfig, estimate};
use crate::Result;
use crate::diffusion::{NoiseSchedule, Timestep};

/// One step of a trajectory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GaussianStep {
    /// The timestep that the network is fed.
    pub timestep: Timestep,
    /// Share of `x` in the mean.
    pub carry: f64,
    /// Share of the network's prediction in the mean.
    pub predict: f64,
    /// Standard deviation; 0 in a step that is not random, which has no density and is never trained on.
    pub sigma: f64,
}

/// The steps of a DDIM trajectory, the noisiest first.
///
/// # Errors
/// The configuration does not fit the number of steps.
pub fn gaussian_steps(
    config: &SamplerConfig,
    schedule: &NoiseSchedule,
    steps: usize,
) -> Result<Vec<GaussianStep>> {
    let ddim = Ddim::new(config, schedule, steps)?;
    let timesteps = ddim.timesteps().to_vec();
    let step = |(t, (carry, predict, sigma)): (&f64, (f64, f64, f64))| GaussianStep {
        timestep: Timestep(*t as u32),
        carry,
        predict,
        sigma,
    };
    Ok(timesteps.iter().zip(ddim.linear()).map(step).collect())
}

/// Replaces the latents `x` at timestep `t` by the clean ones that the prediction expects.
pub fn expect_clean(schedule: &NoiseSchedule, t: Timestep, prediction: &[f32], x: &mut [f32]) {
    let clean = estimate::clean(schedule.prediction_type(), schedule.alpha_cumprod(t));
    for (x, m) in x.iter_mut().zip(prediction) {
        *x = clean.of(*x, *m) as f32;
    }
}

impl GaussianStep {
    /// Whether the step is random, and so has a log-probability.
    pub fn is_random(&self) -> bool {
        self.sigma > 0.0
    }

    /// Replaces the latents `x` by `x'`; `noise` is unit noise. All slices have one size.
    pub fn advance(&self, prediction: &[f32], noise: &[f32], x: &mut [f32]) {
        for ((x, m), z) in x.iter_mut().zip(prediction).zip(noise) {
            let mean = self.carry * f64::from(*x) + self.predict * f64::from(*m);
            *x = (mean + self.sigma * f64::from(*z)) as f32;
        }
    }

    /// Writes what the network would have to predict at `x` for `next` to be the mean.
    pub fn target(&self, x: &[f32], next: &[f32], target: &mut [f32]) {
        for ((t, x), next) in target.iter_mut().zip(x).zip(next) {
            *t = ((f64::from(*next) - self.carry * f64::from(*x)) / self.predict) as f32;
        }
    }

    /// κ: how much the error of the prediction counts in the log-probability.
    ///
    /// # Panics
    /// If the step is not random: it has no density.
    pub fn precision(&self) -> f64 {
        assert!(self.is_random(), "only random steps have a density");
        self.predict * self.predict / (2.0 * self.sigma * self.sigma)
    }

    /// Log-probability of a step whose prediction is off its target by the mean squared error `error`.
    pub fn log_prob(&self, error: f64) -> f64 {
        -self.precision() * error - self.sigma.ln() - 0.5 * TAU.ln()
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        config: Value,
        eta: f64,
        steps: usize,
        calls: Vec<Call>,
    }

    #[derive(Deserialize)]
    struct Call {
        timestep: u32,
        x: Vec<f32>,
        prediction: Vec<f32>,
        noise: Vec<f32>,
        next: Vec<f64>,
        log_prob: Option<f64>,
        /// Of `next` under another prediction, as for the reference.
        other_prediction: Vec<f32>,
        other_log_prob: Option<f64>,
    }

    fn error(prediction: &[f32], target: &[f32]) -> f64 {
        let squares = prediction
            .iter()
            .zip(target)
            .map(|(p, t)| f64::from(p - t).powi(2));
        squares.sum::<f64>() / prediction.len() as f64
    }

    #[test]
    fn steps_and_log_probabilities_equal_the_published_formula() {
        let text = include_str!("../../../tests/fixtures/log_prob.json");
        let cases: Vec<Case> = serde_json::from_str(text).unwrap();
        let mut random = 0;
        for case in &cases {
            let text = case.config.to_string();
            let config = SamplerConfig::from_json(&text, "test")
                .unwrap()
                .with_eta(case.eta);
            let schedule = NoiseSchedule::from_json(&text, "test").unwrap();
            let steps = gaussian_steps(&config, &schedule, case.steps).unwrap();
            assert_eq!(steps.len(), case.calls.len());
            for (step, call) in steps.iter().zip(&case.calls) {
                assert_eq!(step.timestep.0, call.timestep);
                assert_eq!(step.is_random(), call.log_prob.is_some(), "{step:?}");
                let mut x = call.x.clone();
                step.advance(&call.prediction, &call.noise, &mut x);
                for (x, next) in x.iter().zip(&call.next) {
                    assert!(
                        (f64::from(*x) - next).abs() < 1e-5 * next.abs().max(1.0),
                        "{step:?}"
                    );
                }
                let (Some(own), Some(other)) = (call.log_prob, call.other_log_prob) else {
                    continue;
                };
                random += 1;
                let mut target = vec![0.0; x.len()];
                step.target(&call.x, &x, &mut target);
                for (prediction, wanted) in [(&call.prediction, own), (&call.other_prediction, other)] {
                    let found = step.log_prob(error(prediction, &target));
                    let off = (found - wanted).abs() / wanted.abs().max(1.0);
                    assert!(off < 2e-5, "{step:?}: {found} instead of {wanted}");
                }
            }
        }
        assert!(random >= 30, "{random}");
    }
}
