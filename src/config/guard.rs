//! The `guard:` section: when a run counts as diverged, and what to do then. What the keys do is in
//! [`crate::train::guard`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::require;
use crate::Result;

/// When a run counts as diverged, and what to do then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GuardConfig {
    /// Trips when the median of the last 5 losses is above this many times the median of the run's first
    /// `warmup` losses; above 1. `null` turns it off.
    pub loss_spike: Option<f64>,
    /// Trips when the policy's denoising errors on preferred and on rejected images are both above this many
    /// times the initial policy's; above 1. `null` turns it off.
    pub error_growth: Option<f64>,
    /// Optimizer steps from which the starting level is taken; nothing trips before.
    pub warmup: u64,
    /// What happens when the guard trips.
    pub action: GuardAction,
    /// Factor of the learning rate after each rollback, above 0 and at most 1: the same steps at the same rate
    /// would diverge again.
    pub lr_factor: f64,
    /// Rollbacks after which the next trip stops the run.
    pub max_rollbacks: u32,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self {
            loss_spike: Some(5.0),
            error_growth: Some(2.0),
            warmup: 20,
            action: GuardAction::Stop,
            lr_factor: 0.5,
            max_rollbacks: 3,
        }
    }
}

/// What happens when the guard trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuardAction {
    /// The run ends with an error; its checkpoints stay.
    Stop,
    /// The run goes on from the newest checkpoint with a lower learning rate.
    Rollback,
}

impl GuardConfig {
    /// Checks every value; errors name the key.
    pub fn check(&self) -> Result<()> {
        for (key, ratio) in [
            ("guard.loss_spike", self.loss_spike),
            ("guard.error_growth", self.error_growth),
        ] {
            require(
                ratio.is_none_or(|ratio| ratio > 1.0 && ratio.is_finite()),
                key,
                format!("is {}", ratio.unwrap_or_default()),
                "Give a number above 1, or null to turn it off.",
            )?;
        }
        require(self.warmup >= 1, "guard.warmup", "is 0", "Give at least 1 step.")?;
        require(
            self.lr_factor > 0.0 && self.lr_factor <= 1.0,
            "guard.lr_factor",
            format!("is {}", self.lr_factor),
            "Give a number above 0 and at most 1.",
        )
    }
}
