//! What an engine is built for.

use crate::autodiff::Recompute;
use crate::config::runtime::{MixedPrecision, WeightCopies};
use crate::objective::Objective;
use crate::onnx::Model;
use crate::pipeline::denoiser::Geometry;
use crate::runtime::SessionOptions;
use crate::traingraph::Reference;

/// What is to be built.
pub struct EngineOptions<'a> {
    /// The UNet.
    pub model: &'a Model,
    /// Sizes; `samples` are the rows of a step.
    pub geometry: Geometry,
    /// Further heights and widths of latents that steps are taken on.
    pub other_sizes: &'a [[usize; 2]],
    /// Guidance scale inside the likelihood.
    pub guidance: Option<f64>,
    /// Pairs of a run.
    pub pairs: usize,
    /// Whether a run is a whole optimizer batch.
    pub whole_batch: bool,
    /// The objective.
    pub objective: &'a dyn Objective,
    /// Where the reference's errors come from.
    pub reference: Reference,
    /// Samples of the anchor, if it is on.
    pub anchor_samples: Option<usize>,
    /// Whether sessions keep second copies of the weights.
    pub copies: WeightCopies,
    /// What backward passes compute again.
    pub recompute: Recompute,
    /// What the denoiser is computed in.
    pub mixed_precision: MixedPrecision,
    /// Whether gradients stay on the device; not with further sizes of latents.
    pub gradients_on_device: bool,
    /// How sessions are built.
    pub session: SessionOptions,
}

impl EngineOptions<'_> {
    /// The same run at another level of recomputation.
    pub fn recomputing(&self, recompute: Recompute) -> Self {
        Self {
            recompute,
            session: self.session.clone(),
            ..*self
        }
    }

    /// The same run on latents of one of its other sizes.
    pub(crate) fn sized(&self, size: [usize; 2]) -> Self {
        Self {
            geometry: self.geometry.with_latent_size(size),
            session: self.session.clone(),
            ..*self
        }
    }
}
