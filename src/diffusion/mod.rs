//! The forward diffusion process: what noise a timestep stands for.

pub mod schedule;

pub use schedule::{NoiseSchedule, PredictionType, Timestep};
