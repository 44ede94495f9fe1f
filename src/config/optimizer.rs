//! The `optimizer:` section. What the keys do is in [`crate::optim`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::require;
use crate::Result;

/// How gradients become steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The optimizer.
    pub kind: OptimizerKind,
    /// Learning rate after warm-up, before the schedule lowers it.
    pub lr: f64,
    /// Multiply `lr` by the number of pairs per optimizer step, as the original Diffusion-DPO script does.
    pub scale_lr: bool,
    /// Decay rates of AdamW's first and second moment, each in [0, 1).
    pub betas: [f64; 2],
    /// Added to the square root of AdamW's second moment; positive.
    pub eps: f64,
    /// Decoupled weight decay: each step first shrinks the weights by lr × weight_decay.
    pub weight_decay: f64,
    /// Gradients of a larger global norm are scaled down to it; `null` turns clipping off.
    pub clip_norm: Option<f64>,
    /// How the learning rate changes over the run.
    pub schedule: LrScheduleConfig,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adamw,
            lr: 1.0e-4,
            scale_lr: false,
            betas: [0.9, 0.999],
            eps: 1.0e-8,
            weight_decay: 0.01,
            clip_norm: Some(1.0),
            schedule: LrScheduleConfig::default(),
        }
    }
}

/// The optimizers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay.
    Adamw,
    /// Second moments by rows and columns, which takes next to no memory; without momentum, and with updates of at most
    /// the learning rate in root mean square. Of the published SDXL recipe; `betas` and `eps` have no part in it.
    Adafactor,
}

/// How the learning rate changes over the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LrScheduleConfig {
    /// Shape after warm-up.
    pub kind: LrScheduleKind,
    /// Steps over which the learning rate rises linearly from 0.
    pub warmup: u64,
}

impl Default for LrScheduleConfig {
    fn default() -> Self {
        Self {
            kind: LrScheduleKind::Cosine,
            warmup: 20,
        }
    }
}

/// Shape of the learning rate after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduleKind {
    /// Stays.
    Constant,
    /// Falls on a straight line to 0 at the last step.
    Linear,
    /// Falls on half a cosine to 0 at the last step.
    Cosine,
}

impl OptimizerConfig {
    /// The learning rate that steps really use at its highest, for `pairs` pairs per optimizer step.
    pub fn effective_lr(&self, pairs: usize) -> f64 {
        if self.scale_lr {
            self.lr * pairs as f64
        } else {
            self.lr
        }
    }

    /// Checks every value; errors name the key.
    pub fn check(&self) -> Result<()> {
        let non_negative = |value: f64| value.is_finite() && value >= 0.0;
        require(
            non_negative(self.lr),
            "optimizer.lr",
            format!("is {}", self.lr),
            "Give a number that is not negative.",
        )?;
        require(
            self.betas.iter().all(|beta| (0.0..1.0).contains(beta)),
            "optimizer.betas",
            format!("are {:?}", self.betas),
            "Give two numbers from 0 to below 1.",
        )?;
        require(
            self.eps > 0.0 && self.eps.is_finite(),
            "optimizer.eps",
            format!("is {}", self.eps),
            "Give a positive number.",
        )?;
        require(
            non_negative(self.weight_decay),
            "optimizer.weight_decay",
            format!("is {}", self.weight_decay),
            "Give a number that is not negative.",
        )?;
        require(
            self.clip_norm.is_none_or(|norm| norm > 0.0 && norm.is_finite()),
            "optimizer.clip_norm",
            format!("is {}", self.clip_norm.unwrap_or_default()),
            "Give a positive number, or null to turn clipping off.",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_is_the_default() {
        let yaml = "{kind: adamw, lr: 1.0e-4, weight_decay: 0.01, clip_norm: 1.0, schedule: {kind: cosine, warmup: 20}}";
        let config: OptimizerConfig = serde_yaml::from_str(yaml).unwrap();
        assert_eq!(config, OptimizerConfig::default());
        config.check().unwrap();
    }

    #[test]
    fn impossible_values_name_their_key() {
        for (yaml, key) in [
            ("lr: -1", "optimizer.lr"),
            ("betas: [0.9, 1.0]", "optimizer.betas"),
            ("eps: 0", "optimizer.eps"),
            ("weight_decay: .nan", "optimizer.weight_decay"),
            ("clip_norm: 0", "optimizer.clip_norm"),
        ] {
            let config: OptimizerConfig = serde_yaml::from_str(yaml).unwrap();
            let error = config.check().expect_err(yaml).to_string();
            assert!(error.starts_with(&format!("{key}: ")), "{yaml}: {error}");
        }
    }

    /// The published launchers give lr 1e-8 at 2048 pairs per step and train at 2.048e-5.
    #[test]
    fn scaled_learning_rate_is_the_published_one() {
        let config = OptimizerConfig {
            lr: 1e-8,
            scale_lr: true,
            ..OptimizerConfig::default()
        };
        assert!((config.effective_lr(2048) - 2.048e-5).abs() < 1e-18);
    }
}
