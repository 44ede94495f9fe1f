//! The `rollout:` and `buffer:` sections: how online objectives make the images they learn from, and what they learn from
//! them.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::require;
use crate::Result;

/// How images are made and rated; for online objectives only. The sampler is DDIM, whose steps have a density.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    /// A file of prompts: lines, TSV, JSON, JSON lines or parquet; `null` takes the captions of the training pairs. With a file,
    /// `data` can be left out: then nothing is evaluated on held-out pairs.
    pub prompts: Option<PathBuf>,
    /// Prompts that are used, from the first on, labelled ones too; `null` for all.
    pub count: Option<usize>,
    /// Reward model that rates the images, by name or folder.
    pub reward: String,
    /// Ratings of images that `ortdpo generate` made of the initial model, instead of a reward model: its `images.jsonl` with
    /// a number `label` added to each line. The images' steps are taken again from their noise.
    pub labels: Option<PathBuf>,
    /// Steps of the sampler.
    pub steps: usize,
    /// Randomness of the steps: 1 is that of DDPM. With 0 steps have no density; only `online_dpo` can use them.
    pub eta: f64,
    /// Guidance scale, while images are made and inside the likelihood of a step. Up to 1 there is no guidance.
    pub guidance: f64,
    /// What guidance leads away from; `null` is what the pipeline takes for no prompt.
    pub negative: Option<String>,
    /// Images of a prompt in a round.
    pub images_per_prompt: usize,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            prompts: None,
            count: None,
            reward: "clip".into(),
            labels: None,
            steps: 20,
            eta: 1.0,
            guidance: 5.0,
            negative: None,
            images_per_prompt: 4,
        }
    }
}

/// What is learnt from a round of images; for online objectives only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BufferConfig {
    /// Prompts of a round.
    pub prompts: usize,
    /// How often a round is gone through before the next one is made.
    pub passes: usize,
    /// Denoising steps of each image, or of each pair of images, in a pass; `null` for all. With `online_dpo`: draws of
    /// timestep and noise.
    pub steps_per_image: Option<usize>,
    /// Which images of a prompt become pairs.
    pub pairs: BufferPairs,
    /// Whose rewards an image is compared with, for `ddpo`.
    pub baseline: RewardBaseline,
    /// Whether `dpok` takes rewards in standard deviations above the mean of the first round, so that its weights mean the
    /// same for every reward model; else as they are.
    pub standardize: bool,
    /// Rewards remembered of each prompt, for the baseline `prompt`.
    pub history: usize,
    /// Rewards that have to be known of a prompt before it is compared with itself; until then with the whole round.
    pub min_count: usize,
}

/// Which images of a prompt become pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BufferPairs {
    /// All whose rewards differ.
    All,
    /// The best one and the worst one.
    BestWorst,
}

/// Whose mean and standard deviation an advantage is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RewardBaseline {
    /// Those of the prompt's latest images, over rounds; of the whole round while too few are known (DDPO). For tens of
    /// prompts, which come again often.
    Prompt,
    /// Those of the whole round.
    Round,
    /// Those of the prompt's images in this round (as in GRPO). For any number of prompts.
    Group,
}

impl Default for BufferConfig {
    fn default() -> Self {
        Self {
            prompts: 8,
            passes: 1,
            steps_per_image: Some(5),
            pairs: BufferPairs::All,
            baseline: RewardBaseline::Group,
            standardize: true,
            history: 32,
            min_count: 16,
        }
    }
}

impl RolloutConfig {
    /// Checks every value; errors name the key.
    pub fn check(&self) -> Result<()> {
        for (key, number) in [
            ("rollout.steps", self.steps),
            ("rollout.images_per_prompt", self.images_per_prompt),
            ("rollout.count", self.count.unwrap_or(1)),
        ] {
            require(number >= 1, key, "is 0", "Give at least 1.")?;
        }
        require(
            self.guidance >= 0.0 && self.guidance.is_finite(),
            "rollout.guidance",
            format!("is {}", self.guidance),
            "Give a number that is not negative; 5 is usual.",
        )?;
        require(
            (0.0..=1.0).contains(&self.eta),
            "rollout.eta",
            format!("is {}", self.eta),
            "Give a number from 0 to 1; 1 is usual.",
        )
    }
}

impl BufferConfig {
    /// Checks every value; errors name the key.
    pub fn check(&self) -> Result<()> {
        for (key, number) in [
            ("buffer.prompts", self.prompts),
            ("buffer.passes", self.passes),
            ("buffer.steps_per_image", self.steps_per_image.unwrap_or(1)),
            ("buffer.min_count", self.min_count),
        ] {
            require(number >= 1, key, "is 0", "Give at least 1.")?;
        }
        require(
            self.history >= self.min_count,
            "buffer.history",
            format!(
                "is {}, less than buffer.min_count, {}",
                self.history, self.min_count
            ),
            "Remember at least as many rewards as are needed.",
        )
    }
}
