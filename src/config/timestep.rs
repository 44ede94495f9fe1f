//! The `timestep:` section: where training samples timesteps, and how the loss and the reward are
//! weighed over them. What the keys do is in [`crate::timestep`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::require;
use crate::Result;

/// Where timesteps are sampled and how they are weighed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TimestepConfig {
    /// Number of equal bins of the training timesteps; bin 0 is the noisiest.
    pub bins: usize,
    /// Distribution that training timesteps are drawn from.
    pub sampling: SamplingConfig,
    /// Weight of a sample's loss by its timestep, normalised so that its mean under the sampling is 1.
    pub weighting: WeightingConfig,
    /// Factor of the margin by timestep, inside the objective.
    pub reward_scale: RewardScaleConfig,
    /// `true`: the weight is the normalised one. `false`: it is 1 + lambda × the normalised one.
    pub replace: bool,
    /// Share of the weighted loss that is added to the plain one; used when `replace` is `false`.
    pub lambda: f64,
}

impl Default for TimestepConfig {
    fn default() -> Self {
        Self {
            bins: 10,
            sampling: SamplingConfig::Uniform {},
            weighting: WeightingConfig::None {},
            reward_scale: RewardScaleConfig::None,
            replace: true,
            lambda: 1.0,
        }
    }
}

/// Distribution of the training timesteps.
// Variants without keys are empty structs, not units: serde refuses unknown keys only in structs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SamplingConfig {
    /// Every training timestep alike.
    Uniform {},
    /// Bin k with probability proportional to gamma^k, then uniform inside the bin: noisy ones more often.
    Geometric {
        /// Ratio between the probabilities of neighbouring bins, above 0 and at most 1.
        #[serde(default = "default_geometric_gamma")]
        gamma: f64,
    },
    /// Uniform from `min` to `max`, both included.
    Range {
        /// Smallest timestep drawn.
        min: u32,
        /// Largest timestep drawn.
        max: u32,
    },
    /// A probability per bin, then uniform inside the bin.
    Table {
        /// One weight per bin, bin 0 (the noisiest) first; they need not sum to 1.
        weights: Vec<f64>,
    },
}

/// Weight of the loss by timestep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum WeightingConfig {
    /// Every timestep weighs 1.
    None {},
    /// Bins whose reward signal varies more weigh less: (v + floor × mean of v)^(-power).
    Variance(VarianceConfig),
    /// Min-SNR: min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v prediction.
    MinSnr {
        /// SNR above which the weight falls off, positive.
        #[serde(default = "default_min_snr_gamma")]
        gamma: f64,
    },
    /// A weight per bin.
    Table {
        /// One weight per bin, bin 0 (the noisiest) first; only their ratios matter.
        weights: Vec<f64>,
    },
}

/// Keys of the `variance` weighting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VarianceConfig {
    /// What a bin's past keeps of its influence at each optimizer step that adds to the bin, in [0, 1).
    pub decay: f64,
    /// 0.5 equalises the scale of the reward over the bins, 1 is inverse variance. Not negative.
    pub power: f64,
    /// Added to every variance, as a share of their mean; positive, so that no weight is infinite.
    pub floor: f64,
    /// Samples that each sampled bin must have seen before any weight differs from 1; at least 2.
    pub warmup: u64,
    /// Optimizer steps after which the weights stay as they are (or, if later, when warm-up ends).
    pub freeze_after: Option<u64>,
}

impl Default for VarianceConfig {
    fn default() -> Self {
        Self {
            decay: 0.99,
            power: 0.5,
            floor: 0.05,
            warmup: 64,
            freeze_after: None,
        }
    }
}

/// Factor of the margin by timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RewardScaleConfig {
    /// Every timestep 1.
    None,
    /// From 1 at the least to 2 at the noisiest timestep, as 1/sqrt(SNR) rises.
    InverseSqrtSnr,
}

impl TimestepConfig {
    /// Checks every value that does not depend on the model; errors name the key.
    pub fn check(&self) -> Result<()> {
        require(self.bins >= 1, "timestep.bins", "is 0", "Give at least 1 bin.")?;
        require(
            self.lambda.is_finite() && self.lambda >= 0.0,
            "timestep.lambda",
            format!("is {}", self.lambda),
            "Give a number that is not negative.",
        )?;
        self.check_sampling()?;
        self.check_weighting()
    }

    fn check_sampling(&self) -> Result<()> {
        match &self.sampling {
            SamplingConfig::Uniform {} => Ok(()),
            SamplingConfig::Geometric { gamma } => require(
                *gamma > 0.0 && *gamma <= 1.0,
                "timestep.sampling.gamma",
                format!("is {gamma}"),
                "Give a number above 0 and at most 1.",
            ),
            SamplingConfig::Range { min, max } => require(
                min <= max,
                "timestep.sampling",
                format!("has min {min} above max {max}"),
                "Exchange them.",
            ),
            SamplingConfig::Table { weights } => check_table(weights, self.bins, "timestep.sampling.weights"),
        }
    }

    fn check_weighting(&self) -> Result<()> {
        match &self.weighting {
            WeightingConfig::None {} => Ok(()),
            WeightingConfig::Variance(variance) => variance.check(),
            WeightingConfig::MinSnr { gamma } => require(
                *gamma > 0.0 && gamma.is_finite(),
                "timestep.weighting.gamma",
                format!("is {gamma}"),
                "Give a positive number.",
            ),
            WeightingConfig::Table { weights } => {
                check_table(weights, self.bins, "timestep.weighting.weights")
            }
        }
    }
}

impl VarianceConfig {
    fn check(&self) -> Result<()> {
        require(
            (0.0..1.0).contains(&self.decay),
            "timestep.weighting.decay",
            format!("is {}", self.decay),
            "Give a number from 0 to below 1.",
        )?;
        require(
            self.power >= 0.0 && self.power.is_finite(),
            "timestep.weighting.power",
            format!("is {}", self.power),
            "Give a number that is not negative; 0.5 equalises the reward scale, 1 is inverse variance.",
        )?;
        require(
            self.floor > 0.0 && self.floor.is_finite(),
            "timestep.weighting.floor",
            format!("is {}", self.floor),
            "Give a positive number, so that a bin without variance has a finite weight.",
        )?;
        require(
            self.warmup >= 2,
            "timestep.weighting.warmup",
            format!("is {}", self.warmup),
            "Give at least 2: one sample has no variance.",
        )
    }
}

fn check_table(weights: &[f64], bins: usize, place: &str) -> Result<()> {
    require(
        weights.len() == bins,
        place,
        format!("holds {} weights for {bins} bins", weights.len()),
        "Give one weight per bin, or set timestep.bins.",
    )?;
    let usable = weights.iter().all(|w| w.is_finite() && *w >= 0.0) && weights.iter().any(|w| *w > 0.0);
    require(
        usable,
        place,
        "holds a negative or no positive weight",
        "Give weights of 0 and above, not all 0.",
    )
}

fn default_geometric_gamma() -> f64 {
    0.9
}

fn default_min_snr_gamma() -> f64 {
    5.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_take_the_published_values() {
        let yaml = "sampling: {kind: geometric}\nweighting: {kind: variance, power: 1.0}\nreward_scale: inverse_sqrt_snr";
        let config: TimestepConfig = serde_yaml::from_str(yaml).unwrap();
        assert_eq!(config.sampling, SamplingConfig::Geometric { gamma: 0.9 });
        let variance = VarianceConfig {
            power: 1.0,
            ..VarianceConfig::default()
        };
        assert_eq!(config.weighting, WeightingConfig::Variance(variance));
        assert_eq!(config.reward_scale, RewardScaleConfig::InverseSqrtSnr);
        config.check().unwrap();
    }

    #[test]
    fn unknown_keys_are_refused_at_every_depth() {
        for yaml in [
            "bin: 10",
            "sampling: {kind: uniform, gamma: 0.9}",
            "sampling: {kind: geometric, gama: 0.9}",
            "weighting: {kind: none, power: 1}",
            "weighting: {kind: variance, powr: 1}",
        ] {
            let error = serde_yaml::from_str::<TimestepConfig>(yaml).expect_err(yaml);
            assert!(error.to_string().contains("unknown field"), "{yaml}: {error}");
        }
    }

    #[test]
    fn impossible_values_name_their_key() {
        for (yaml, key) in [
            ("bins: 0", "timestep.bins"),
            ("sampling: {kind: geometric, gamma: 0}", "timestep.sampling.gamma"),
            ("sampling: {kind: range, min: 900, max: 100}", "timestep.sampling"),
            (
                "sampling: {kind: table, weights: [1, 2]}",
                "timestep.sampling.weights",
            ),
            (
                "bins: 2\nweighting: {kind: table, weights: [1, -1]}",
                "timestep.weighting.weights",
            ),
            (
                "weighting: {kind: variance, floor: 0}",
                "timestep.weighting.floor",
            ),
            (
                "weighting: {kind: variance, decay: 1}",
                "timestep.weighting.decay",
            ),
            ("weighting: {kind: min_snr, gamma: 0}", "timestep.weighting.gamma"),
            ("lambda: -1", "timestep.lambda"),
        ] {
            let config: TimestepConfig = serde_yaml::from_str(yaml).unwrap();
            let error = config.check().expect_err(yaml).to_string();
            assert!(error.starts_with(&format!("{key}: ")), "{yaml}: {error}");
        }
    }

    #[test]
    fn a_config_survives_writing_and_reading() {
        let config = TimestepConfig {
            sampling: SamplingConfig::Range { min: 0, max: 750 },
            weighting: WeightingConfig::Variance(VarianceConfig::default()),
            ..TimestepConfig::default()
        };
        let yaml = serde_yaml::to_string(&config).unwrap();
        assert_eq!(serde_yaml::from_str::<TimestepConfig>(&yaml).unwrap(), config);
    }
}
