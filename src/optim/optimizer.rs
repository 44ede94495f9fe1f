//! The optimizer that a configuration names.

use std::sync::Arc;

use super::{Adafactor, AdamW, Follow, Gradient};
use crate::Result;
use crate::config::optimizer::{OptimizerConfig, OptimizerKind};
use crate::params::{Layout, ParamSet};

/// Any optimizer, with its state.
#[derive(Debug, Clone, PartialEq)]
pub enum Optimizer {
    /// Adam with decoupled weight decay.
    AdamW(AdamW),
    /// Second moments by rows and columns.
    Adafactor(Adafactor),
}

impl Optimizer {
    /// No steps taken, moments 0.
    pub fn new(config: &OptimizerConfig, layout: &Arc<Layout>) -> Self {
        match config.kind {
            OptimizerKind::Adamw => Self::AdamW(AdamW::new(config, layout)),
            OptimizerKind::Adafactor => Self::Adafactor(Adafactor::new(config, layout)),
        }
    }

    /// Numbers in both sets of moments that an optimizer of `kind` keeps for `layout`.
    pub fn moment_lens(kind: OptimizerKind, layout: &Arc<Layout>) -> [usize; 2] {
        match kind {
            OptimizerKind::Adamw => [layout.len(); 2],
            OptimizerKind::Adafactor => Adafactor::moment_layouts(layout).map(|layout| layout.len()),
        }
    }

    /// Optimizer steps taken.
    pub fn steps(&self) -> u64 {
        match self {
            Self::AdamW(adamw) => adamw.steps(),
            Self::Adafactor(adafactor) => adafactor.steps(),
        }
    }

    /// Both sets of moments, for a checkpoint.
    pub fn moments(&self) -> (&ParamSet, &ParamSet) {
        match self {
            Self::AdamW(adamw) => adamw.moments(),
            Self::Adafactor(adafactor) => adafactor.moments(),
        }
    }

    /// Goes on from a checkpoint; moments of other parameters are an error.
    ///
    /// # Errors
    /// They are of another optimizer or other parameters.
    pub fn restore(&mut self, steps: u64, first: ParamSet, second: ParamSet) -> Result<()> {
        match self {
            Self::AdamW(adamw) => adamw.restore(steps, first, second),
            Self::Adafactor(adafactor) => adafactor.restore(steps, first, second),
        }
    }

    /// One step: the gradient times `clip_factor` moves the policy at learning rate `lr`, and the reference follows where
    /// one is given.
    pub fn step(
        &mut self,
        policy: &mut ParamSet,
        gradient: &Gradient<'_>,
        clip_factor: f64,
        lr: f64,
        follow: Option<Follow<'_>>,
    ) {
        match self {
            Self::AdamW(adamw) => adamw.step(policy, gradient, clip_factor, lr, follow),
            Self::Adafactor(adafactor) => adafactor.step(policy, gradient, clip_factor, lr, follow),
        }
    }
}
