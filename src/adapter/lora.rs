//! What was just trained, and the configuration that goes with a LoRA in the form of diffusers and PEFT.
//!
//! Keys are `unet.MODULE.lora_A.weight` and `unet.MODULE.lora_B.weight` (`transformer.` for transformers). The scale is
//! not in the tensors: the metadata's `lora_adapter_metadata` holds PEFT's `LoraConfig` as JSON, each key with the
//! prefix. Without it readers take alpha = r.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::content::component_of;
use super::factors::{Lora, ModuleFactors};
use super::file::{Precision, ReadTensor};
use super::keys::ModuleName;
use crate::params::ParamSet;

pub(super) const A: &str = ".lora_A.weight";
pub(super) const B: &str = ".lora_B.weight";

/// Rank and alpha of an adapter; the factors' product counts alpha/rank times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraScale {
    /// Rank.
    pub rank: usize,
    /// Alpha.
    pub alpha: f64,
}

/// What was trained of the component `prefix` (`unet` or `transformer`) as a file has it. `metadata` says on what.
pub fn trained(
    prefix: &str,
    adapter: &ParamSet,
    scale: LoraScale,
    metadata: BTreeMap<String, String>,
) -> Lora {
    let layout = adapter.layout();
    let tensor = |name: &str| {
        let index = layout.index_of(name)?;
        Some(ReadTensor {
            shape: layout.shape(index).to_vec(),
            values: adapter.tensor(index).to_vec(),
            precision: Precision::Fp32,
        })
    };
    let module = |name: &String| {
        let module = name.strip_suffix(A)?;
        Some(ModuleFactors {
            component: component_of(prefix),
            module: ModuleName::Path(module.to_owned()),
            down: tensor(name)?,
            up: tensor(&format!("{module}{B}"))?,
            alpha: scale.alpha,
        })
    };
    Lora {
        modules: layout.names().iter().filter_map(module).collect(),
        metadata,
    }
}

/// What a `LoraConfig` says of a module.
pub(super) struct ConfigEntry<'a> {
    /// Its path.
    pub module: &'a str,
    /// Rank.
    pub rank: usize,
    /// Alpha.
    pub alpha: f64,
}

/// PEFT's `LoraConfig` of a component's adapter as diffusers keeps it. The commonest rank and alpha are everyone's;
/// modules with others are in the patterns.
pub(super) fn peft_config(prefix: &str, modules: &[ConfigEntry<'_>]) -> Map<String, Value> {
    let rank = most_common(modules.iter().map(|m| m.rank)).unwrap_or(1);
    // Ordered and compared by their bits: a number of a file, unchanged.
    let alpha = most_common(modules.iter().map(|m| m.alpha.to_bits())).map_or(1.0, f64::from_bits);
    let own_rank = modules.iter().filter(|m| m.rank != rank);
    let own_alpha = modules.iter().filter(|m| m.alpha.to_bits() != alpha.to_bits());
    let ranks: Map<String, Value> = own_rank.map(|m| (m.module.to_owned(), m.rank.into())).collect();
    let alphas: Map<String, Value> = own_alpha.map(|m| (m.module.to_owned(), m.alpha.into())).collect();
    let names: Vec<&str> = modules.iter().map(|m| m.module).collect();
    let config = json!({
        "r": rank,
        "lora_alpha": alpha,
        // Whole module names: patterns would be read by other rules than ours.
        "target_modules": names,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": false,
        "use_dora": false,
        "use_rslora": false,
    });
    let entries = config.as_object().into_iter().flatten();
    entries
        .map(|(key, value)| (format!("{prefix}.{key}"), value.clone()))
        .collect()
}

/// The value that comes most often; of equally common ones the smallest.
pub(super) fn most_common<T: Ord>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    counts
        .into_iter()
        .find(|(_, count)| *count == most)
        .map(|(value, _)| value)
}
