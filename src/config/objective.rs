//! The `objective:` section: what is optimised, with each method's own published defaults.
//!
//! A new objective is a struct with its keys, defaults and checks, a variant of [`ObjectiveConfig`], and a line
//! in each match below it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::require;
use crate::Result;

/// What is optimised. Another `kind` starts from that method's own defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ObjectiveConfig {
    /// Diffusion-DPO: prefer the preferred image more than the reference does (Wallace et al. 2024).
    Dpo(DpoConfig),
    /// Supervised fine-tuning on the preferred images; no reference takes part.
    Sft(SftConfig),
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self::Dpo(DpoConfig::default())
    }
}

impl ObjectiveConfig {
    /// The method's name in the file.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dpo(_) => "dpo",
            Self::Sft(_) => "sft",
        }
    }

    /// The method's β in its own convention, where it has one.
    pub fn beta(&self) -> Option<f64> {
        match self {
            Self::Dpo(dpo) => Some(dpo.beta),
            Self::Sft(_) => None,
        }
    }

    /// Whether the loss compares the policy with a reference.
    pub fn has_reference(&self) -> bool {
        match self {
            Self::Dpo(_) => true,
            Self::Sft(_) => false,
        }
    }

    /// Checks every value; errors name the key.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Dpo(dpo) => dpo.check(),
            Self::Sft(SftConfig {}) => Ok(()),
        }
    }
}

/// Keys of the `dpo` objective: `loss = −log σ(½·beta·λ(t)·m)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DpoConfig {
    /// Strength of the margin, in the original code's convention (2000 to 5000, errors averaged over pixels
    /// and channels); the logit's coefficient is half of it. Positive.
    pub beta: f64,
    /// Assumed share of wrong labels, from 0 to below 0.5.
    pub label_smoothing: f64,
}

impl Default for DpoConfig {
    fn default() -> Self {
        Self {
            beta: 2000.0,
            label_smoothing: 0.0,
        }
    }
}

impl DpoConfig {
    fn check(&self) -> Result<()> {
        require(
            self.beta > 0.0 && self.beta.is_finite(),
            "objective.beta",
            format!("is {}", self.beta),
            "Give a positive number; 2000 to 5000 is usual for diffusion models.",
        )?;
        require(
            (0.0..0.5).contains(&self.label_smoothing),
            "objective.label_smoothing",
            format!("is {}", self.label_smoothing),
            "Give a number from 0 to below 0.5: at 0.5 the labels would say nothing.",
        )
    }
}

/// The `sft` objective has no keys.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SftConfig {}
