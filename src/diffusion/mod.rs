//! The forward diffusion process, what noise a timestep stands for, and the samplers that run it backwards.

pub mod sampler;
pub mod schedule;

pub use sampler::{Sampler, SamplerConfig, SamplerKind, sampler};
pub use schedule::{NoiseSchedule, PredictionType, Timestep};
