//! The `train:` section: how long, in what portions, and what happens how often.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::require;
use crate::Result;

/// Length of the run, size of a step, and how often to evaluate and save.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Pairs per optimizer step.
    pub pairs_per_step: usize,
    /// Equal parts that a step's pairs are computed in, one after another, to save memory; divides
    /// `pairs_per_step`. The result is that of one part, up to rounding.
    pub accumulate: usize,
    /// Optimizer steps between evaluations on held-out pairs; 0: only before the first and after the last.
    pub eval_every: u64,
    /// Held-out pairs that an evaluation uses, from the first on; `null` for all.
    pub eval_pairs: Option<usize>,
    /// Draws (timestep, noise) per held-out pair, stratified over the timesteps.
    pub eval_draws: usize,
    /// Optimizer steps between checkpoints; 0: only after the last step.
    pub checkpoint_every: u64,
    /// Newest checkpoints that are kept.
    pub keep: usize,
    /// What the best evaluation is judged by: `acc_init` or `margin_init`, or `reward.NAME` for the mean of one of
    /// `samples.rewards`. Its checkpoint is kept beside the newest, and its weights are written to `best/` of the run's
    /// folder. `null` judges none.
    pub keep_best: Option<String>,
    /// Decay of a moving average of the policy that is evaluated and sampled instead of the policy, from 0 to below 1;
    /// over the first steps it rises to that as (1 + step)/(10 + step). Its weights are written to `ema/` of the run's
    /// folder. `null` keeps none.
    pub policy_ema: Option<f64>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 400,
            pairs_per_step: 16,
            accumulate: 1,
            eval_every: 50,
            eval_pairs: None,
            eval_draws: 16,
            checkpoint_every: 100,
            keep: 3,
            keep_best: None,
            policy_ema: None,
        }
    }
}

impl TrainConfig {
    /// Pairs that are computed at once.
    pub fn pairs_per_part(&self) -> usize {
        self.pairs_per_step / self.accumulate
    }

    /// Whether an evaluation follows optimizer step `step`; steps count from 1, 0 is before the first.
    pub fn evaluates_at(&self, step: u64) -> bool {
        step == 0 || self.is_due(self.eval_every, step)
    }

    /// Whether a checkpoint follows optimizer step `step`; steps count from 1.
    pub fn saves_at(&self, step: u64) -> bool {
        self.is_due(self.checkpoint_every, step)
    }

    fn is_due(&self, every: u64, step: u64) -> bool {
        step == self.steps || every > 0 && step > 0 && step.is_multiple_of(every)
    }

    /// Checks every value; errors name the key.
    pub fn check(&self) -> Result<()> {
        let at_least_one = |value: usize, key: &str| require(value >= 1, key, "is 0", "Give at least 1.");
        require(self.steps >= 1, "train.steps", "is 0", "Give at least 1.")?;
        at_least_one(self.pairs_per_step, "train.pairs_per_step")?;
        at_least_one(self.accumulate, "train.accumulate")?;
        at_least_one(self.eval_pairs.unwrap_or(1), "train.eval_pairs")?;
        at_least_one(self.eval_draws, "train.eval_draws")?;
        at_least_one(self.keep, "train.keep")?;
        let decay = self.policy_ema.unwrap_or(0.0);
        require(
            (0.0..1.0).contains(&decay),
            "train.policy_ema",
            format!("is {decay}"),
            "Give a number from 0 to below 1; 0.999 is usual.",
        )?;
        require(
            self.pairs_per_step.is_multiple_of(self.accumulate),
            "train.accumulate",
            format!(
                "is {}, which does not divide train.pairs_per_step, {}",
                self.accumulate, self.pairs_per_step
            ),
            "pairs_per_step counts the pairs of a whole optimizer step; give a number of equal parts.",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_after_which_step() {
        let train = TrainConfig {
            steps: 45,
            eval_every: 20,
            checkpoint_every: 0,
            ..TrainConfig::default()
        };
        let steps = |due: &dyn Fn(u64) -> bool| (0..=45).filter(|step| due(*step)).collect::<Vec<_>>();
        assert_eq!(steps(&|step| train.evaluates_at(step)), [0, 20, 40, 45]);
        assert_eq!(steps(&|step| train.saves_at(step)), [45]);
        let saving = TrainConfig {
            checkpoint_every: 15,
            ..train
        };
        assert_eq!(steps(&|step| saving.saves_at(step)), [15, 30, 45]);
    }
}
