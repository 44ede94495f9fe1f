//! Objectives: small functions of per-sample likelihoods. One file each.
//!
//! An objective knows nothing of how the reference moves or how timesteps are chosen and weighed; those rules work under
//! every objective that has a reference.

mod dpo;
mod sft;

pub use dpo::Dpo;
pub use sft::Sft;

use crate::Result;
use crate::onnx::{Graph, ValueId};

/// What an objective sees of one optimizer batch, as values of the step graph. `P` is the number of pairs.
#[derive(Debug, Clone, Copy)]
pub struct Likelihoods {
    /// Errors of the policy on the preferred samples, `[P]`.
    pub e_w: ValueId,
    /// Errors of the policy on the rejected samples, `[P]`; absent for objectives without pairs.
    pub e_l: Option<ValueId>,
    /// Errors of the reference on the preferred samples, `[P]`.
    pub ref_w: Option<ValueId>,
    /// Errors of the reference on the rejected samples, `[P]`.
    pub ref_l: Option<ValueId>,
    /// Reward scale λ(t) of each pair, `[P]`.
    pub reward_scale: ValueId,
    /// How surely the preferred sample is preferred, `[P]`: 1, or 0.5 for a tie that is kept.
    pub label: ValueId,
}

/// What an objective gives back.
#[derive(Debug, Clone, Copy)]
pub struct Losses {
    /// Loss per pair (or sample), before weights, `[P]`.
    pub loss: ValueId,
    /// The reward signal whose variance the timestep rule tracks, `[P]`; `None` without a reference.
    pub reward_signal: Option<ValueId>,
}

/// A preference objective on the `denoising` likelihood.
pub trait Objective: Send + Sync {
    /// Whether samples come in pairs.
    fn needs_pairs(&self) -> bool;
    /// Whether a reference model takes part.
    fn needs_reference(&self) -> bool;
    /// Coefficient of the margin `m` in the logit, in the method's own convention; logged as `beta_effective`.
    fn beta_effective(&self) -> Option<f64>;
    /// Adds the loss to the graph.
    fn build(&self, graph: &mut Graph, likelihoods: &Likelihoods) -> Result<Losses>;
}
