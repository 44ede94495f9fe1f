//! What goes into a step, and what comes out of it.

use crate::diffusion::Timestep;
use crate::pipeline::micro::TIME_IDS;

/// Noised samples with their targets, flat and in the order of the batch.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    /// Height and width of the latents.
    pub size: [usize; 2],
    /// x_t, `[N,C,H,W]`.
    pub noisy: Vec<f32>,
    /// What the denoiser should predict, `[N,C,H,W]`; with guidance inside the likelihood, what the guided prediction of the
    /// second half should be, `[N/2,C,H,W]`.
    pub target: Vec<f32>,
    /// Timestep of each sample.
    pub timesteps: Vec<Timestep>,
    /// Text conditioning, `[N,L,D]`.
    pub text: Vec<f32>,
    /// Pooled text embeddings, `[N,P]`; empty where the model has none.
    pub pooled: Vec<f32>,
    /// Micro-conditioning of each sample, which only SDXL's denoiser takes.
    pub time_ids: Vec<[f32; TIME_IDS]>,
}

/// Per-pair inputs of a step.
#[derive(Debug, Clone, Default)]
pub struct PairInputs {
    /// Loss weights.
    pub weight: Vec<f32>,
    /// Reward scales λ(t).
    pub reward_scale: Vec<f32>,
    /// 1, or 0.5 for a tie.
    pub label: Vec<f32>,
    /// Score of the preferred sample minus that of the rejected one; empty unless the objective needs it.
    pub score_gap: Vec<f32>,
    /// κ of each pair's denoising steps; empty unless the samples are such.
    pub precision: Vec<f32>,
    /// Errors of the policy that took the steps; empty unless the objective needs them.
    pub old_errors: Vec<f32>,
    /// How much better than expected the steps' images are; empty unless the objective needs them.
    pub advantage: Vec<f32>,
    /// Means of the objective's batch quantities over the whole optimizer batch; empty if a step is all of it.
    pub batch_means: Vec<f32>,
}

/// What the reference gave for a batch of samples; empty where the objective does not need it.
#[derive(Debug, Clone, Default)]
pub struct ReferenceValues {
    /// Errors, one per sample.
    pub errors: Vec<f32>,
    /// Predictions, `[N,C,H,W]` flat.
    pub predictions: Vec<f32>,
}

/// What a step measured, besides the gradients.
#[derive(Debug, Clone, Default)]
pub struct StepValues {
    /// Mean weighted loss.
    pub loss: f32,
    /// Errors of the policy, one per sample.
    pub errors: Vec<f32>,
    /// Errors of the reference, one per sample; empty without a reference.
    pub reference_errors: Vec<f32>,
    /// Reward signal, one per pair, or one per sample in the order of the batch; empty without a reference.
    pub reward_signal: Vec<f32>,
}
