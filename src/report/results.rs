//! `results.json` of an evaluation. Whatever a version of the program leaves out is empty here, what it adds is ignored.

use indexmap::IndexMap;
use serde::Deserialize;

/// What was found.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Results {
    /// The model that win rates are against.
    pub baseline: Option<String>,
    /// Coverage of all intervals.
    pub level: Option<f64>,
    /// Over all prompts.
    pub models: Vec<ModelResult>,
    /// Over the prompts of each value of the field that results are grouped by.
    pub groups: IndexMap<String, Vec<ModelResult>>,
}

/// Results of a model.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ModelResult {
    pub name: String,
    pub images: usize,
    /// Images that some reward could not score.
    pub unscored: usize,
    pub rewards: IndexMap<String, RewardResult>,
    pub average_win_rate: Option<Rate>,
    /// FID, diversity and the like.
    pub set_metrics: IndexMap<String, Option<f64>>,
}

/// Results by one reward.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RewardResult {
    pub mean: Option<f64>,
    pub standard_error: Option<f64>,
    pub against_baseline: Option<Comparison>,
}

/// A model against the baseline.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Comparison {
    pub wins: usize,
    pub ties: usize,
    pub losses: usize,
    pub win_rate: Option<Rate>,
    /// Mean difference of the scores.
    pub difference: Option<Rate>,
}

/// A mean with its interval.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Rate {
    pub value: f64,
    #[serde(default)]
    pub interval: Option<Interval>,
}

/// A confidence interval.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}
