//! Preference optimisation for text-to-image diffusion models on stock ONNX Runtime.

#![warn(missing_docs)]

pub mod ablate;
pub mod adapter;
pub mod autodiff;
pub mod config;
pub mod data;
pub mod dataset_tools;
pub mod device;
pub mod diffusion;
pub mod draws;
mod error;
pub mod eval;
pub mod forecast;
pub mod fsutil;
pub mod generate;
pub mod kernels;
pub mod margin;
pub mod model_folder;
pub mod objective;
pub mod onnx;
pub mod optim;
pub mod pairs;
pub mod params;
pub mod picture;
pub mod pipeline;
mod placeholder;
pub mod plot;
pub mod progress;
pub mod prompts;
pub mod reference;
pub mod report;
pub mod resample;
pub mod reward;
pub mod rng;
pub mod runtime;
pub mod score;
pub mod setmetric;
pub mod stats;
pub mod table;
pub mod tensor;
pub mod text;
pub mod timestep;
pub mod train;
pub mod traingraph;
pub mod yaml;

pub use error::{Error, Result};
