//! The `samples:` section: pictures that the model draws while it is trained, and what reward models say of them.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::require;
use crate::Result;
use crate::diffusion::SamplerKind;

/// Which pictures are drawn at every evaluation (`train.eval_every`), into `samples/` of the run's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SamplesConfig {
    /// Prompts; none and no `file` draws nothing.
    pub prompts: Vec<String>,
    /// A file with more prompts: lines, TSV, JSON, JSON lines or parquet.
    pub file: Option<PathBuf>,
    /// Prompts that are used, from the first on; `null` for all.
    pub count: Option<usize>,
    /// Pictures of each prompt.
    pub images_per_prompt: usize,
    /// Steps of the sampler.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f64,
    /// Sampler, instead of the pipeline's own.
    pub sampler: Option<SamplerKind>,
    /// Source of the pictures' noise: the same as `ortdpo generate --seed`.
    pub seed: u64,
    /// Reward models that rate the pictures, by name or folder; their means are logged as `reward.NAME`.
    pub rewards: Vec<String>,
    /// A feature extractor, by name or folder: the mean distance between the pictures of a prompt is logged as
    /// `diversity.NAME`. Needs two pictures of each prompt.
    pub features: Option<String>,
}

impl Default for SamplesConfig {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            file: None,
            count: None,
            images_per_prompt: 1,
            steps: 20,
            guidance: 7.5,
            sampler: None,
            seed: 0,
            rewards: Vec::new(),
            features: None,
        }
    }
}

impl SamplesConfig {
    /// Whether pictures are drawn.
    pub fn is_on(&self) -> bool {
        !self.prompts.is_empty() || self.file.is_some()
    }

    /// Checks every value; errors name the key.
    pub fn check(&self) -> Result<()> {
        for (key, number) in [
            ("samples.images_per_prompt", self.images_per_prompt),
            ("samples.steps", self.steps),
            ("samples.count", self.count.unwrap_or(1)),
        ] {
            require(number >= 1, key, "is 0", "Give at least 1.")?;
        }
        require(
            self.guidance >= 0.0 && self.guidance.is_finite(),
            "samples.guidance",
            format!("is {}", self.guidance),
            "Give a number that is not negative; 7.5 is usual.",
        )?;
        for (key, is_set) in [
            ("samples.rewards", !self.rewards.is_empty()),
            ("samples.features", self.features.is_some()),
        ] {
            require(
                !is_set || self.is_on(),
                key,
                "is set, but no pictures are drawn",
                "Give samples.prompts or samples.file.",
            )?;
        }
        require(
            self.features.is_none() || self.images_per_prompt >= 2,
            "samples.features",
            "measures the distance between the pictures of a prompt, and each has one",
            "Give samples.images_per_prompt 2 or more, or leave it out.",
        )
    }
}
