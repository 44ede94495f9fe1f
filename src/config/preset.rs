//! Presets: published combinations of a reference rule and a timestep rule, as fragments of a configuration.
//!
//! A preset fills what the user's file does not say. Each row of an ablation (the reference rule only, the
//! timestep rule only, both) is one key away from its preset.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_yaml::Value;

/// A named combination of reference and timestep rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Frozen reference, plain timesteps (Diffusion-DPO).
    DiffusionDpo,
    /// Moving-average reference with a KL anchor, variance-weighted timesteps.
    StableEma,
    /// Moving-average reference pulled back in weight space, variance-weighted timesteps.
    StableEmaPull,
    /// Copied reference behind a divergence gate, geometric timesteps, scaled rewards (Kang et al., AAAI 2026).
    RethinkingDpo,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 4] = [
        Self::DiffusionDpo,
        Self::StableEma,
        Self::StableEmaPull,
        Self::RethinkingDpo,
    ];

    /// The name in configuration files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::DiffusionDpo => "diffusion-dpo",
            Self::StableEma => "stable-ema",
            Self::StableEmaPull => "stable-ema-pull",
            Self::RethinkingDpo => "rethinking-dpo",
        }
    }

    /// What the preset sets.
    pub(super) fn values(self) -> Value {
        let text = match self {
            Self::DiffusionDpo => include_str!("presets/diffusion-dpo.yaml"),
            Self::StableEma => include_str!("presets/stable-ema.yaml"),
            Self::StableEmaPull => include_str!("presets/stable-ema-pull.yaml"),
            Self::RethinkingDpo => include_str!("presets/rethinking-dpo.yaml"),
        };
        serde_yaml::from_str(text).expect("presets are part of the program, and a test reads each")
    }
}
