//! The `data:` section: where the preference pairs are and how they become training samples. What the keys do is
//! in [`crate::data`].

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::require;
use crate::Result;

/// Preference pairs and how they become training samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Schema of the files.
    #[serde(default)]
    pub kind: DataKind,
    /// Folder of the data set's files.
    pub path: PathBuf,
    /// Side of the square images in pixels; the shortest side is resized to it and the rest cropped.
    pub resolution: u32,
    /// What happens to pairs without a preferred image.
    #[serde(default)]
    pub ties: Ties,
    /// Probability that a pair is trained with an empty prompt, the same for both images, from 0 to 1.
    #[serde(default = "default_prompt_dropout")]
    pub prompt_dropout: f64,
}

/// Schemas of preference data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    /// Parquet files with Pick-a-Pic's columns.
    #[default]
    Pickapic,
}

/// What happens to pairs without a preferred image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ties {
    /// They are left out and counted.
    #[default]
    Drop,
    /// They stay, with a label of one half.
    Soft,
}

fn default_prompt_dropout() -> f64 {
    0.2
}

impl DataConfig {
    /// Checks every value; errors name the key.
    pub fn check(&self) -> Result<()> {
        require(
            self.resolution >= 8,
            "data.resolution",
            format!("is {}", self.resolution),
            "Give at least 8 pixels.",
        )?;
        require(
            (0.0..=1.0).contains(&self.prompt_dropout),
            "data.prompt_dropout",
            format!("is {}", self.prompt_dropout),
            "Give a probability from 0 to 1.",
        )
    }
}
