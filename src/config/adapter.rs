//! The `adapter:` section: which weights are trained, and where they start.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::require;
use crate::Result;

/// Which weights are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AdapterConfig {
    /// Low-rank adapters on chosen layers: `W + alpha/rank · B·A`.
    Lora(LoraConfig),
    /// The model's own weights.
    Full(FullConfig),
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self::Lora(LoraConfig::default())
    }
}

/// Keys of `kind: lora`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of every adapter.
    pub rank: usize,
    /// Numerator of the adapters' scale, alpha/rank; the rank itself when left out. Positive.
    pub alpha: Option<f64>,
    /// Patterns of module names, matched against their last parts: `to_q` is every layer of that name. `*`
    /// stands for any characters. Linear layers, 1×1 and 3×3 convolutions are meant.
    pub targets: Vec<String>,
    /// An adapter to start from: a file of diffusers, PEFT or Kohya's scripts, or the folder of a run or of PEFT; `null` for new
    /// adapters.
    pub init: Option<PathBuf>,
    /// How new adapters start. B is zero in any case, so that the model starts unchanged.
    pub init_a: InitA,
    /// Forms in which the run leaves the adapter.
    pub format: AdapterFormat,
}

/// In which forms a run leaves its adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdapterFormat {
    /// `pytorch_lora_weights.safetensors`, for diffusers and PEFT.
    Diffusers,
    /// `kohya_lora_weights.safetensors`, for Kohya's scripts, ComfyUI and web UIs.
    Kohya,
    /// Both files.
    Both,
}

impl AdapterFormat {
    /// Whether diffusers' form is written.
    pub fn has_diffusers(self) -> bool {
        self != Self::Kohya
    }

    /// Whether Kohya's form is written.
    pub fn has_kohya(self) -> bool {
        self != Self::Diffusers
    }
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: None,
            targets: ["to_q", "to_k", "to_v", "to_out.0"].map(str::to_owned).to_vec(),
            init: None,
            init_a: InitA::Kaiming,
            format: AdapterFormat::Diffusers,
        }
    }
}

impl LoraConfig {
    /// The adapters' alpha, with its default filled in.
    pub fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(self.rank as f64)
    }
}

/// Distribution of a new adapter's A, in PEFT's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitA {
    /// Uniform in ±1/√(inputs): PEFT's `init_lora_weights=True`.
    Kaiming,
    /// Normal with standard deviation 1/rank: PEFT's `init_lora_weights="gaussian"`.
    Gaussian,
}

/// Keys of `kind: full`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FullConfig {
    /// Patterns of module names, as for `lora`; `null` trains every weight.
    pub targets: Option<Vec<String>>,
}

impl AdapterConfig {
    /// Checks every value; errors name the key.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Lora(lora) => {
                require(lora.rank >= 1, "adapter.rank", "is 0", "Give at least 1.")?;
                require(
                    lora.alpha() > 0.0 && lora.alpha().is_finite(),
                    "adapter.alpha",
                    format!("is {}", lora.alpha()),
                    "Give a positive number, or leave it out to use the rank.",
                )?;
                check_targets(&lora.targets)
            }
            Self::Full(full) => full.targets.as_deref().map_or(Ok(()), check_targets),
        }
    }
}

fn check_targets(targets: &[String]) -> Result<()> {
    require(
        !targets.is_empty() && targets.iter().all(|pattern| !pattern.trim().is_empty()),
        "adapter.targets",
        "is empty or holds an empty pattern",
        "Name at least one module, such as to_q.",
    )
}
