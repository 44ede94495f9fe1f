//! The `reference:` section: how the reference model moves and what holds it near the initial policy.
//! What the keys do is in [`crate::reference`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::require;
use crate::Result;

/// How the reference model moves, what holds it, and how its drift is watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReferenceConfig {
    /// Rule by which the reference follows the policy.
    pub update: UpdateConfig,
    /// Share of the policy that an `ema` update mixes in, above 0 and at most 1. Other rules ignore it.
    pub alpha: f64,
    /// Optimizer steps between updates; 1 for `ema` and 32 for `copy` when left out.
    pub every: Option<u64>,
    /// What holds the reference near the initial policy.
    pub anchor: AnchorConfig,
    /// Optimizer steps between measurements of the reference's drift from the initial policy.
    pub measure_every: u64,
    /// Draws (image, timestep, noise) of the fixed probe on which drift is measured.
    pub probe: usize,
    /// How a moving reference is kept between its uses.
    pub storage: StorageConfig,
}

impl Default for ReferenceConfig {
    fn default() -> Self {
        Self {
            update: UpdateConfig::Frozen,
            alpha: 0.01,
            every: None,
            anchor: AnchorConfig::None {},
            measure_every: 50,
            probe: 64,
            storage: StorageConfig::F32,
        }
    }
}

/// Rule by which the reference follows the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpdateConfig {
    /// Never moves (Diffusion-DPO).
    Frozen,
    /// Exponential moving average of the policy.
    Ema,
    /// Becomes the policy every `every` steps (TR-DPO's hard update).
    Copy,
}

/// How a moving reference is kept between its uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StorageConfig {
    /// As it is, in memory.
    F32,
    /// What it differs from the initial policy, rounded to bfloat16, in a memory-mapped file of the output folder. For full
    /// fine-tuning: a copy of the weights less in memory while the policy's step is at its peak.
    Bf16,
}

/// What holds a moving reference near the initial policy.
// Variants without keys are empty structs, not units: serde refuses unknown keys only in structs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AnchorConfig {
    /// Nothing.
    None {},
    /// A loss term: lambda × KL(the reference as the next update makes it || initial policy).
    Kl {
        /// Weight of the term, positive.
        #[serde(default = "default_kl_lambda")]
        lambda: f64,
        /// Share of the batch on which the term is evaluated, above 0 and at most 1.
        #[serde(default = "default_kl_fraction")]
        fraction: f64,
    },
    /// Every update also pulls the reference's weights towards the initial policy's.
    Pull {
        /// Where the reference comes to rest between the policy (0) and the initial policy (below 1).
        #[serde(default = "default_pull_strength")]
        strength: f64,
    },
    /// An update is taken only if the reference's denoising error stays within delta of the initial one's.
    Gate {
        /// Largest accepted growth of the denoising error, mean over pixels and channels; positive.
        #[serde(default = "default_gate_delta")]
        delta: f64,
        /// What happens when an update is refused.
        #[serde(default = "default_on_trip")]
        on_trip: OnTripConfig,
    },
}

/// What a tripped gate does to the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnTripConfig {
    /// The reference keeps its last accepted value for the rest of the run.
    Freeze,
    /// The reference starts again from the initial policy, and updates go on.
    Reinit,
}

impl ReferenceConfig {
    /// Optimizer steps between updates, with the rule's own default filled in.
    pub fn every(&self) -> u64 {
        self.every.unwrap_or(match self.update {
            UpdateConfig::Frozen | UpdateConfig::Ema => 1,
            UpdateConfig::Copy => 32,
        })
    }

    /// The same configuration with every default written out, for printing.
    pub fn resolved(&self) -> Self {
        Self {
            every: Some(self.every()),
            ..self.clone()
        }
    }

    /// Checks every value and combination; errors name the key.
    pub fn check(&self) -> Result<()> {
        require(
            self.alpha > 0.0 && self.alpha <= 1.0,
            "reference.alpha",
            format!("is {}", self.alpha),
            "Give a number above 0 and at most 1.",
        )?;
        require(
            self.every() >= 1,
            "reference.every",
            "is 0",
            "Give at least 1 step.",
        )?;
        require(
            self.measure_every >= 1,
            "reference.measure_every",
            "is 0",
            "Give at least 1 step.",
        )?;
        require(
            self.probe >= 1,
            "reference.probe",
            "is 0",
            "Give at least 1 draw; 64 is usual.",
        )?;
        self.check_anchor()
    }

    fn check_anchor(&self) -> Result<()> {
        require(
            self.update != UpdateConfig::Frozen || self.anchor == AnchorConfig::None {},
            "reference.anchor",
            "is set while reference.update is frozen",
            "Use update ema or copy, or anchor none: a reference that never moves needs no anchor.",
        )?;
        match &self.anchor {
            AnchorConfig::None {} => Ok(()),
            AnchorConfig::Kl { lambda, fraction } => {
                require(
                    *lambda > 0.0 && lambda.is_finite(),
                    "reference.anchor.lambda",
                    format!("is {lambda}"),
                    "Give a positive number, or anchor {kind: none}.",
                )?;
                require(
                    *fraction > 0.0 && *fraction <= 1.0,
                    "reference.anchor.fraction",
                    format!("is {fraction}"),
                    "Give a number above 0 and at most 1.",
                )
            }
            AnchorConfig::Pull { strength } => require(
                (0.0..1.0).contains(strength),
                "reference.anchor.strength",
                format!("is {strength}"),
                "Give a number from 0 to below 1.",
            ),
            AnchorConfig::Gate { delta, .. } => require(
                *delta > 0.0 && delta.is_finite(),
                "reference.anchor.delta",
                format!("is {delta}"),
                "Give a positive number; 0.005 is published for SD1.5, 0.002 for SDXL.",
            ),
        }
    }
}

fn default_kl_lambda() -> f64 {
    1.0
}

fn default_kl_fraction() -> f64 {
    0.25
}

fn default_pull_strength() -> f64 {
    0.1
}

fn default_gate_delta() -> f64 {
    0.005
}

fn default_on_trip() -> OnTripConfig {
    OnTripConfig::Freeze
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_reads() {
        let yaml = "{update: ema, alpha: 0.01, every: 1, anchor: {kind: kl, lambda: 1.0, fraction: 0.25}, measure_every: 50, probe: 64}";
        let config: ReferenceConfig = serde_yaml::from_str(yaml).unwrap();
        config.check().unwrap();
        assert_eq!(
            config.anchor,
            AnchorConfig::Kl {
                lambda: 1.0,
                fraction: 0.25
            }
        );
        let text = serde_yaml::to_string(&config).unwrap();
        assert_eq!(serde_yaml::from_str::<ReferenceConfig>(&text).unwrap(), config);
    }

    #[test]
    fn every_update_rule_has_its_own_period() {
        let period = |yaml: &str| serde_yaml::from_str::<ReferenceConfig>(yaml).unwrap().every();
        assert_eq!(period("update: ema"), 1);
        assert_eq!(period("update: copy"), 32);
        assert_eq!(period("{update: copy, every: 16}"), 16);
        let copy: ReferenceConfig = serde_yaml::from_str("update: copy").unwrap();
        assert_eq!(copy.resolved().every, Some(32));
    }

    #[test]
    fn impossible_values_name_their_key() {
        for (yaml, key) in [
            ("{update: ema, alpha: 0}", "reference.alpha"),
            ("{update: copy, every: 0}", "reference.every"),
            ("{measure_every: 0}", "reference.measure_every"),
            ("{probe: 0}", "reference.probe"),
            ("{update: frozen, anchor: {kind: kl}}", "reference.anchor"),
            ("{update: frozen, anchor: {kind: pull}}", "reference.anchor"),
            (
                "{update: ema, anchor: {kind: kl, fraction: 0}}",
                "reference.anchor.fraction",
            ),
            (
                "{update: ema, anchor: {kind: kl, lambda: 0}}",
                "reference.anchor.lambda",
            ),
            (
                "{update: ema, anchor: {kind: pull, strength: 1}}",
                "reference.anchor.strength",
            ),
            (
                "{update: copy, anchor: {kind: gate, delta: 0}}",
                "reference.anchor.delta",
            ),
        ] {
            let config: ReferenceConfig = serde_yaml::from_str(yaml).unwrap();
            let error = config.check().expect_err(yaml).to_string();
            assert!(error.starts_with(&format!("{key}: ")), "{yaml}: {error}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_at_every_depth() {
        for yaml in [
            "upd: ema",
            "anchor: {kind: none, delta: 1}",
            "anchor: {kind: gate, dleta: 1}",
        ] {
            let error = serde_yaml::from_str::<ReferenceConfig>(yaml).expect_err(yaml);
            assert!(error.to_string().contains("unknown field"), "{yaml}: {error}");
        }
    }
}
