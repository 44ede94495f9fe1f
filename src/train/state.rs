//! Everything that moves during a run. What is here, and nothing else, is what a checkpoint has to hold.

use super::model::Model;
use crate::Result;
use crate::config::Config;
use crate::optim::{AdamW, LrSchedule};
use crate::params::ParamSet;
use crate::reference::ReferenceRule;
use crate::timestep::TimestepRule;

/// See the module's text.
pub struct State {
    /// Optimizer steps taken.
    pub step: u64,
    /// θ.
    pub policy: ParamSet,
    /// The reference.
    pub reference: ParamSet,
    /// θ0, which never moves; kept because adapters start from random factors or a file.
    pub initial: ParamSet,
    /// Optimizer with its moments.
    pub adamw: AdamW,
    /// How the reference moves.
    pub reference_rule: ReferenceRule,
    /// How timesteps are drawn and weighed.
    pub timestep_rule: TimestepRule,
    /// Learning rate of every step.
    pub schedule: LrSchedule,
    /// Factor on the learning rate, lowered by rollbacks of the divergence guard.
    pub lr_factor: f64,
}

impl State {
    /// The state before the first step.
    pub fn new(config: &Config, model: &Model, initial: ParamSet) -> Result<Self> {
        let layout = initial.layout().clone();
        Ok(Self {
            step: 0,
            policy: initial.clone(),
            reference: initial.clone(),
            adamw: AdamW::new(&config.optimizer, &layout),
            reference_rule: ReferenceRule::new(&config.reference)?,
            timestep_rule: TimestepRule::new(&config.timestep, &model.schedule)?,
            schedule: LrSchedule::new(&config.optimizer, config.train.pairs_per_step, config.train.steps),
            initial,
            lr_factor: 1.0,
        })
    }
}
