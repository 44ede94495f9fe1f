//! Samplers: the rules that turn noise into latents, one call of the denoiser after the other.
//!
//! Each kind is in a file of its own and equals the scheduler class of diffusers that it is named after, step for
//! step. A sampler is told which pipeline it serves by [`SamplerConfig`] (the pipeline's `scheduler_config.json`)
//! and [`NoiseSchedule`] (the same file's training side). The caller's loop:
//!
//! ```text
//! latents = unit noise · initial_sigma
//! for call in 0..timesteps().len():
//!     input = latents, through scale_input(call)
//!     output = denoiser(input, timesteps()[call])        guidance happens here
//!     step(call, output, latents, fresh unit noise if needs_noise(call))
//! ```
//!
//! Coefficients are computed in f64 and latents kept in f32; diffusers has both in f32.

mod config;
mod ddim;
mod ddpm;
mod dpm_solver;
mod estimate;
mod euler;
mod euler_ancestral;
mod gaussian;
mod pndm;
mod sigmas;
mod spacing;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub use config::SamplerConfig;
use config::Spacing;
pub use gaussian::{GaussianStep, expect_clean, gaussian_steps};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::NoiseSchedule;
use crate::{Error, Result};

/// The sampling rules that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerKind {
    /// Denoising diffusion implicit models, with noise when `eta` is above 0 (arXiv 2010.02502).
    Ddim,
    /// Ancestral sampling of the original paper (arXiv 2006.11239).
    Ddpm,
    /// Euler's method on the probability flow (arXiv 2206.00364).
    Euler,
    /// Euler's method with fresh noise in every step.
    #[serde(rename = "euler-a")]
    EulerAncestral,
    /// DPM-Solver++ of second order, multistep, midpoint (arXiv 2211.01095).
    #[serde(rename = "dpm++2m")]
    DpmSolverPp2M,
    /// Pseudo linear multistep (PLMS): PNDM without Runge-Kutta warm-up (arXiv 2202.09778).
    Pndm,
}

impl SamplerKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::Ddim,
        Self::Ddpm,
        Self::Euler,
        Self::EulerAncestral,
        Self::DpmSolverPp2M,
        Self::Pndm,
    ];

    /// The name used on the command line and in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Ddpm => "ddpm",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-a",
            Self::DpmSolverPp2M => "dpm++2m",
            Self::Pndm => "pndm",
        }
    }

    /// The scheduler class of diffusers that it equals.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Ddim => "DDIMScheduler",
            Self::Ddpm => "DDPMScheduler",
            Self::Euler => "EulerDiscreteScheduler",
            Self::EulerAncestral => "EulerAncestralDiscreteScheduler",
            Self::DpmSolverPp2M => "DPMSolverMultistepScheduler",
            Self::Pndm => "PNDMScheduler",
        }
    }

    /// All names, for messages.
    fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| {
            Error::bad(
                "sampler",
                format!("{name:?} is not known"),
                format!("Choose one of {}.", Self::names()),
            )
        })
    }
}

/// One image's, or one batch's, way from noise to latents. Slices are f32, (N,C,H,W) flat, all of one size.
///
/// Calls are numbered from 0 and made in order: multistep rules remember earlier outputs.
pub trait Sampler {
    /// The timestep that the denoiser is fed in each call; PNDM's repeated one included.
    fn timesteps(&self) -> &[f64];

    /// Factor of the initial unit noise.
    fn initial_sigma(&self) -> f64 {
        1.0
    }

    /// Turns a copy of the latents into the denoiser's input.
    fn scale_input(&self, _call: usize, _latents: &mut [f32]) {}

    /// Whether [`Sampler::step`] wants fresh unit noise in this call.
    fn needs_noise(&self, _call: usize) -> bool {
        false
    }

    /// Replaces the latents by the next, less noisy ones.
    ///
    /// # Errors
    /// The denoiser's output is not finite.
    ///
    /// # Panics
    /// If sizes differ, calls are out of order, or noise is missing: the caller's mistakes.
    fn step(
        &mut self,
        call: usize,
        model_output: &[f32],
        latents: &mut [f32],
        noise: Option<&[f32]>,
    ) -> Result<()>;
}

/// The configured sampler for `steps` steps.
///
/// # Errors
/// The configuration asks for something that is not supported, or does not fit the number of steps.
pub fn sampler(
    config: &SamplerConfig,
    schedule: &NoiseSchedule,
    steps: usize,
) -> Result<Box<dyn Sampler + Send>> {
    let kind = config.kind()?;
    config.check(kind)?;
    Ok(match kind {
        SamplerKind::Ddim => Box::new(ddim::Ddim::new(config, schedule, steps)?),
        SamplerKind::Ddpm => Box::new(ddpm::Ddpm::new(config, schedule, steps)?),
        SamplerKind::Euler => Box::new(euler::Euler::new(config, schedule, steps)?),
        SamplerKind::EulerAncestral => {
            Box::new(euler_ancestral::EulerAncestral::new(config, schedule, steps)?)
        }
        SamplerKind::DpmSolverPp2M => Box::new(dpm_solver::DpmSolver::new(config, schedule, steps)?),
        SamplerKind::Pndm => Box::new(pndm::Pndm::new(config, schedule, steps)?),
    })
}

/// Checks what every rule requires of a call.
fn check_call(timestep: f64, model_output: &[f32], latents: &[f32]) -> Result<()> {
    assert_eq!(
        model_output.len(),
        latents.len(),
        "the denoiser's output has the latents' size"
    );
    if model_output.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(Error::bad(
        "denoiser",
        format!("predicted NaN or infinity at timestep {timestep}"),
        "Lower the guidance scale and the adapters' scales; a model in half precision may need its full-precision file.",
    ))
}

/// Adds `scale · noise` to the latents; a scale of 0 needs no noise.
fn add_noise(scale: f64, noise: Option<&[f32]>, latents: &mut [f32]) {
    if scale == 0.0 {
        return;
    }
    let noise = noise.expect("callers ask needs_noise first");
    assert_eq!(noise.len(), latents.len(), "noise has the latents' size");
    for (x, n) in latents.iter_mut().zip(noise) {
        *x = (f64::from(*x) + scale * f64::from(*n)) as f32;
    }
}
