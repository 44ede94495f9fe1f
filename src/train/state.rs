//! Everything that moves during a run. What is here, and nothing else, is what a checkpoint has to hold.

use std::borrow::Cow;

use rayon::prelude::*;

use super::loss_scale::LossScale;
use super::model::Model;
use crate::Result;
use crate::config::Config;
use crate::optim::{LrSchedule, Optimizer};
use crate::params::ParamSet;
use crate::reference::{ReferenceRule, ReferenceWeights, lerp};
use crate::timestep::TimestepRule;

/// See the module's text.
pub struct State {
    /// Optimizer steps taken.
    pub step: u64,
    /// θ.
    pub policy: ParamSet,
    /// The reference; the same memory as θ0 until it moves, or a file.
    pub reference: ReferenceWeights,
    /// θ0, which never moves; kept because adapters start from random factors or a file.
    pub initial: ParamSet,
    /// Moving average of θ, where `train.policy_ema` asks for one.
    pub average: Option<Average>,
    /// Optimizer with its moments.
    pub optimizer: Optimizer,
    /// How the reference moves.
    pub reference_rule: ReferenceRule,
    /// How timesteps are drawn and weighed.
    pub timestep_rule: TimestepRule,
    /// Learning rate of every step.
    pub schedule: LrSchedule,
    /// Scale of the loss, where gradients are of half precision.
    pub loss_scale: Option<LossScale>,
    /// Factor on the learning rate, lowered by rollbacks of the divergence guard.
    pub lr_factor: f64,
    /// Whether weights and moments are those of an earlier step, because the newer ones are on the device.
    pub is_behind: bool,
}

/// A moving average of the policy, for evaluation; the training never sees it.
pub struct Average {
    decay: f64,
    /// The average.
    pub weights: ParamSet,
}

impl Average {
    /// The policy's share after optimizer step `step`.
    pub fn share(&self, step: u64) -> f32 {
        let rising = (1.0 + step as f64) / (10.0 + step as f64);
        (1.0 - self.decay.min(rising)) as f32
    }

    /// Follows the policy after optimizer step `step`. The decay rises to its final value, or the initial weights would
    /// stay in the average for long.
    pub fn follow(&mut self, policy: &ParamSet, step: u64) {
        let share = self.share(step);
        self.weights
            .values_mut()
            .par_iter_mut()
            .zip(policy.values())
            .for_each(|(average, theta)| *average = lerp(*average, *theta, share));
    }
}

impl State {
    /// Stops a program that would go on with the weights of an earlier step.
    pub fn assert_current(&self) {
        assert!(
            !self.is_behind,
            "weights are fetched from the device before they are looked at"
        );
    }

    /// The reference's weights, which take memory of their own while they are held if they come from a file.
    pub fn reference(&self) -> Cow<'_, ParamSet> {
        self.assert_current();
        self.reference.read(&self.initial)
    }

    /// The weights that are evaluated: the average where there is one, else the policy.
    pub fn evaluated(&self) -> &ParamSet {
        self.assert_current();
        match &self.average {
            Some(average) => &average.weights,
            None => &self.policy,
        }
    }

    /// The state before the first step.
    pub fn new(config: &Config, model: &Model, initial: ParamSet) -> Result<Self> {
        let layout = initial.layout().clone();
        Ok(Self {
            step: 0,
            policy: initial.clone(),
            reference: ReferenceWeights::resident(&initial),
            average: config.train.policy_ema.map(|decay| Average {
                decay,
                weights: initial.clone(),
            }),
            optimizer: Optimizer::new(&config.optimizer, &layout),
            reference_rule: ReferenceRule::new(&config.reference)?,
            timestep_rule: TimestepRule::new(&config.timestep, &model.schedule)?,
            schedule: LrSchedule::new(&config.optimizer, config.train.pairs_per_step, config.train.steps),
            initial,
            loss_scale: config
                .runtime
                .mixed_precision
                .scales_loss()
                .then(LossScale::default),
            lr_factor: 1.0,
            is_behind: false,
        })
    }
}
