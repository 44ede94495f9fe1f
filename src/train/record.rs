//! What every step was computed from and gave, in files that other programs read: `ortdpo train --record DIR`.
//!
//! ```text
//! DIR/initial.safetensors          the policy before the first step (named as the run's results are)
//! DIR/step-000001-part-0.safetensors
//!     sample, target [N,C,H,W]  timestep [N]  encoder_hidden_states [N,L,D]  text_embeds [N,P]  time_ids [N,6] (SDXL)
//!     weight, reward_scale, label [P] …        what the loss was told of each pair
//!     loss [1]  errors [N]  reference_errors [N]  reward_signal [P]
//! ```
//!
//! `scripts/check_trajectory.py` replays them in PyTorch.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use super::engine::{PairInputs, Samples, StepValues};
use crate::adapter::{NamedTensor, Precision, write_tensors};
use crate::pipeline::denoiser::Geometry;
use crate::pipeline::micro::TIME_IDS;
use crate::{Error, Result};

/// Writes what steps were computed from into a folder.
pub struct Recorder {
    folder: PathBuf,
}

impl Recorder {
    /// A record in `folder`, which does not exist yet.
    ///
    /// # Errors
    /// It does.
    pub fn new(folder: &Path) -> Result<Self> {
        match folder.exists() {
            false => Ok(Self {
                folder: folder.to_owned(),
            }),
            true => Err(Error::bad(
                folder.display().to_string(),
                "is there already",
                "Give --record a folder that does not exist yet.",
            )),
        }
    }

    /// Makes the folder; returns where the policy before the first step belongs.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn begin(&self) -> Result<PathBuf> {
        fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder, "create the folder"))?;
        Ok(self.folder.join("initial.safetensors"))
    }

    /// One part of the batch of step `step`: what it was computed from, and what came of it.
    ///
    /// # Errors
    /// The disk is full.
    pub fn part(
        &self,
        step: u64,
        part: usize,
        geometry: &Geometry,
        samples: &Samples,
        inputs: &PairInputs,
        values: &StepValues,
    ) -> Result<()> {
        let timesteps: Vec<f32> = samples.timesteps.iter().map(|t| t.0 as f32).collect();
        let loss = [values.loss];
        let geometry = geometry.with_latent_size(samples.size);
        let latents = |values: &[f32]| {
            let rows = values.len() / geometry.latent_len();
            [&[rows], geometry.latent.as_slice()].concat()
        };
        let rows = samples.timesteps.len();
        let (noisy, target) = (latents(&samples.noisy), latents(&samples.target));
        let text = [&[rows], geometry.text.as_slice()].concat();
        let time_ids = match geometry.added {
            Some(_) => samples.time_ids.as_flattened(),
            None => &[],
        };
        let shaped: [(&str, Vec<usize>, &[f32]); 5] = [
            ("sample", noisy, &samples.noisy),
            ("target", target, &samples.target),
            ("encoder_hidden_states", text, &samples.text),
            ("text_embeds", vec![rows, geometry.pooled_len()], &samples.pooled),
            ("time_ids", vec![rows, TIME_IDS], time_ids),
        ];
        let vectors: [(&str, &[f32]); 13] = [
            ("timestep", &timesteps),
            ("weight", &inputs.weight),
            ("reward_scale", &inputs.reward_scale),
            ("label", &inputs.label),
            ("score_gap", &inputs.score_gap),
            ("precision", &inputs.precision),
            ("old_errors", &inputs.old_errors),
            ("advantage", &inputs.advantage),
            ("batch_means", &inputs.batch_means),
            ("loss", &loss),
            ("errors", &values.errors),
            ("reference_errors", &values.reference_errors),
            ("reward_signal", &values.reward_signal),
        ];
        let vectors = vectors.map(|(name, values)| (name, vec![values.len()], values));
        let tensors = shaped.into_iter().chain(vectors);
        let tensors = tensors
            .filter(|(.., values)| !values.is_empty())
            .map(|(name, shape, values)| NamedTensor {
                name: name.to_owned(),
                shape,
                precision: Precision::Fp32,
                values: Box::new(move || Ok(Cow::Borrowed(values))),
            });
        let path = self
            .folder
            .join(format!("step-{step:06}-part-{part}.safetensors"));
        write_tensors(&path, &[("format", "pt".to_owned())], tensors.collect())
    }
}
