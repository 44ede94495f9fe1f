//! Noise levels as ratios `σ = √((1−ᾱ)/ᾱ)`, which Euler's method and DPM-Solver++ reckon in.

use super::config::{FinalSigma, SamplerConfig};
use crate::diffusion::{NoiseSchedule, Timestep};

/// Stands for `ᾱ = 0`, whose σ would be infinite; diffusers takes the smallest 16-bit float.
const LEAST_ALPHA: f64 = 1.0 / (1u32 << 24) as f64;
/// Curvature of the noise levels of Karras et al. (arXiv 2206.00364, equation 5).
const KARRAS_RHO: f64 = 7.0;

/// σ of every training timestep, rising.
pub(super) struct Sigmas(Vec<f64>);

impl Sigmas {
    pub(super) fn new(schedule: &NoiseSchedule) -> Self {
        let sigma = |t: u32| {
            let alpha = match schedule.alpha_cumprod(Timestep(t)) {
                0.0 => LEAST_ALPHA,
                alpha => alpha,
            };
            ((1.0 - alpha) / alpha).sqrt()
        };
        Self((0..schedule.train_timesteps() as u32).map(sigma).collect())
    }

    pub(super) fn lowest(&self) -> f64 {
        self.0[0]
    }

    pub(super) fn highest(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    /// σ at a timestep that may lie between two training timesteps.
    pub(super) fn at(&self, t: f64) -> f64 {
        let below = t.floor() as usize;
        match self.0.get(below + 1) {
            Some(above) => self.0[below] + (above - self.0[below]) * (t - t.floor()),
            None => self.highest(),
        }
    }

    /// The timestep whose σ this is, by linear interpolation of `ln σ`.
    pub(super) fn timestep_of(&self, sigma: f64) -> f64 {
        let last = self.0.len() - 1;
        let above = self.0.partition_point(|s| *s <= sigma).clamp(1, last);
        let (low, high) = (self.0[above - 1].ln(), self.0[above].ln());
        let share = ((sigma.ln() - low) / (high - low)).clamp(0.0, 1.0);
        (above - 1) as f64 + share
    }

    /// Number of training timesteps whose `λ = −ln σ` is at least `lowest`.
    pub(super) fn count_above_lambda(&self, lowest: f64) -> usize {
        self.0.partition_point(|sigma| -sigma.ln() >= lowest)
    }

    /// The σ after the last step.
    pub(super) fn end(&self, config: &SamplerConfig) -> f64 {
        match config.final_sigma() {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin => self.lowest(),
        }
    }
}

/// `count` noise levels from `highest` down to `lowest`, evenly in their seventh roots.
pub(super) fn karras(highest: f64, lowest: f64, count: usize) -> Vec<f64> {
    let root = |sigma: f64| sigma.powf(1.0 / KARRAS_RHO);
    let (from, to) = (root(highest), root(lowest));
    let last = count.saturating_sub(1).max(1) as f64;
    (0..count)
        .map(|index| (from + (to - from) * index as f64 / last).powf(KARRAS_RHO))
        .collect()
}

/// What Euler's method multiplies unit noise with, given its first (highest) σ.
pub(super) fn initial(config: &SamplerConfig, kind: super::SamplerKind, highest: f64) -> f64 {
    match config.spacing(kind) {
        super::Spacing::Leading => (highest * highest + 1.0).sqrt(),
        super::Spacing::Trailing | super::Spacing::Linspace => highest,
    }
}

/// Divides latents `x_0 + σ · ε` so that their variance is 1, as in training.
pub(super) fn scale_input(sigma: f64, latents: &mut [f32]) {
    let factor = (sigma * sigma + 1.0).sqrt();
    for value in latents {
        *value = (f64::from(*value) / factor) as f32;
    }
}
