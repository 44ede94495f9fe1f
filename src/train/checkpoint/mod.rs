//! Checkpoints: everything that moves during a run, so that a resumed run equals an uninterrupted one by bits.
//!
//! ```text
//! checkpoints/step-N/
//!   policy.safetensors  reference.safetensors  initial.safetensors         θ, the reference, θ0
//!   first_moment.safetensors  second_moment.safetensors                    the optimizer
//!   average.safetensors                                                    moving average of θ, where one is kept
//!   rollouts.safetensors                                                   what online objectives learn from
//!   state.json                                                             the rest
//!   checksums.json                                                         BLAKE3 of every other file
//! ```
//!
//! With `reference.storage: bf16` the reference is given by its difference from θ0.
//!
//! The folder is written under another name and renamed when every byte is on the disk: one that has its name is
//! whole. Checksums are compared on reading. Random numbers need no state: their streams are keyed by what they are for.

mod identity;
mod store;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use identity::RunIdentity;
pub use store::CheckpointStore;

use super::guard::GuardState;
use super::loss_scale::LossScale;
use super::rollout::RolloutState;
use super::summary::HeldOutScores;
use crate::data::LoaderState;
use crate::params::ParamSet;
use crate::reference::ReferenceState;
use crate::timestep::TimestepState;

/// The part of a run's state that is not tensors. Serialised as JSON, it comes back bit for bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimizer steps taken.
    pub step: u64,
    /// The optimizer's own count, for its corrections.
    pub optimizer_steps: u64,
    /// Where the loader stands.
    pub loader: LoaderState,
    /// Where rollouts stand, for online objectives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollouts: Option<RolloutState>,
    /// Statistics of the timestep rule.
    pub timestep: TimestepState,
    /// Decisions of the reference rule.
    pub reference: ReferenceState,
    /// What the divergence guard has seen.
    pub guard: GuardState,
    /// Scale of the loss, where gradients are of half precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// Held-out scores before the first step.
    pub initial: Option<HeldOutScores>,
    /// What was found of the pictures drawn before the first step.
    #[serde(default)]
    pub initial_pictures: BTreeMap<String, f64>,
    /// The best evaluation so far, where `train.keep_best` names what it is judged by.
    pub best: Option<Best>,
    /// Seconds that the run has taken so far, over all its parts.
    pub seconds: f64,
    /// Which run this is.
    pub identity: RunIdentity,
}

/// The evaluation with the highest value of the metric that `train.keep_best` names.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Optimizer step it followed.
    pub step: u64,
    /// The metric's value.
    pub value: f64,
}

impl Best {
    /// The better of the best so far and a new evaluation; the earlier one of two alike.
    pub fn or(best: Option<Self>, step: u64, value: f64) -> Self {
        let new = Self { step, value };
        best.filter(|best| best.value >= value).unwrap_or(new)
    }
}

/// The tensors of a run, to be saved.
#[derive(Debug, Clone, Copy)]
pub struct Tensors<'a> {
    /// θ.
    pub policy: &'a ParamSet,
    /// The reference.
    pub reference: &'a ParamSet,
    /// θ0.
    pub initial: &'a ParamSet,
    /// AdamW's first moment; Adafactor's means of rows.
    pub first_moment: &'a ParamSet,
    /// AdamW's second moment; Adafactor's means of columns.
    pub second_moment: &'a ParamSet,
    /// Moving average of θ, where one is kept.
    pub average: Option<&'a ParamSet>,
    /// Latents and value network of rollouts, for online objectives.
    pub rollouts: Option<&'a ParamSet>,
}

/// A checkpoint that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Everything but tensors.
    pub state: RunState,
    /// θ.
    pub policy: ParamSet,
    /// The reference.
    pub reference: ParamSet,
    /// θ0.
    pub initial: ParamSet,
    /// AdamW's first moment; Adafactor's means of rows.
    pub first_moment: ParamSet,
    /// AdamW's second moment; Adafactor's means of columns.
    pub second_moment: ParamSet,
    /// Moving average of θ, where one is kept.
    pub average: Option<ParamSet>,
    /// Latents and value network of rollouts, for online objectives.
    pub rollouts: Option<ParamSet>,
}

#[cfg(test)]
mod tests;
