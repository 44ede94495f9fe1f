//! `pytorch_lora_weights.safetensors`, as diffusers' pipelines write it with PEFT.
//!
//! Keys are `unet.MODULE.lora_A.weight` and `unet.MODULE.lora_B.weight` (`transformer.` for transformers). The scale is
//! not in the tensors: the metadata's `lora_adapter_metadata` holds PEFT's `LoraConfig` as JSON, each key with the
//! prefix. Without it readers take alpha = r. Older files spell the factors `.lora.down.` and `.lora.up.`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::content::listed;
use super::file::{self, NamedTensor, Precision, ReadTensor};
use crate::params::{Layout, ParamSet};
use crate::{Error, Result};

pub(super) const A: &str = ".lora_A.weight";
pub(super) const B: &str = ".lora_B.weight";
pub(super) const CONFIG: &str = "lora_adapter_metadata";

/// Rank and alpha of an adapter; the factors' product counts alpha/rank times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraScale {
    /// Rank.
    pub rank: usize,
    /// Alpha.
    pub alpha: f64,
}

/// Writes an adapter of the component `prefix` (`unet` or `transformer`). The same adapter gives the same bytes.
///
/// # Errors
/// The file cannot be written.
pub fn save_lora(
    path: &Path,
    prefix: &str,
    adapter: &ParamSet,
    scale: LoraScale,
    precision: Precision,
) -> Result<()> {
    let layout = adapter.layout();
    let modules: Vec<&str> = layout
        .names()
        .iter()
        .filter_map(|name| name.strip_suffix(A))
        .collect();
    let entries = modules.iter().map(|module| ConfigEntry {
        module,
        rank: scale.rank,
        alpha: scale.alpha,
    });
    let config = peft_config(prefix, &entries.collect::<Vec<_>>());
    let metadata = [
        ("format", "pt".to_owned()),
        (CONFIG, Value::Object(config).to_string()),
    ];
    let tensors = (0..layout.tensors()).map(|index| NamedTensor {
        name: format!("{prefix}.{}", layout.names()[index]),
        shape: layout.shape(index).to_vec(),
        precision,
        values: Box::new(move || Cow::Borrowed(adapter.tensor(index))),
    });
    file::write(path, &metadata, tensors.collect())
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

/// Reads an adapter into the tensors of `layout`. Where the file has another scale than `scale`, B is multiplied, so
/// that the adapted model is the file's.
///
/// # Errors
/// The file is no adapter, or one of other modules or another rank: differences are counted, and some named.
pub fn load_lora(path: &Path, prefix: &str, layout: &Arc<Layout>, scale: LoraScale) -> Result<ParamSet> {
    let content = file::read(path)?;
    let file = AdapterFile {
        path,
        scales: FileScales::read(path, prefix, &content.metadata)?,
        tensors: normalised(path, prefix, content.tensors)?,
    };
    file.check_against(layout)?;
    let mut adapter = ParamSet::zeros(layout);
    for (name, tensor) in &file.tensors {
        let index = layout.index_of(name).expect("the names were found equal");
        let factor = match name.strip_suffix(B) {
            Some(module) => file.scales.of(module, tensor.shape[1]) / (scale.alpha / scale.rank as f64),
            None => 1.0,
        };
        for (value, read) in adapter.tensor_mut(index).iter_mut().zip(&tensor.values) {
            // Multiplying by 1 keeps every bit.
            *value = (f64::from(*read) * factor) as f32;
        }
    }
    Ok(adapter)
}

/// An adapter as it is in its file, under our names.
struct AdapterFile<'a> {
    path: &'a Path,
    scales: FileScales,
    tensors: BTreeMap<String, ReadTensor>,
}

impl AdapterFile<'_> {
    /// Refuses an adapter that is not of exactly the tensors of `layout`, with the number of each kind of difference.
    fn check_against(&self, layout: &Layout) -> Result<()> {
        let refuse = |what: String, remedy| Err(Error::bad(self.path.display().to_string(), what, remedy));
        let mut differences = Vec::new();
        let foreign: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        let foreign: Vec<&str> = foreign
            .into_iter()
            .filter(|name| layout.index_of(name).is_none())
            .collect();
        if !foreign.is_empty() {
            differences.push(format!(
                "adapts {} not among the trained layers ({} of {} tensors)",
                listed(&foreign),
                foreign.len(),
                self.tensors.len()
            ));
        }
        let trained = || layout.names().iter().enumerate();
        let missing: Vec<&str> = trained()
            .map(|(_, name)| name.as_str())
            .filter(|name| !self.tensors.contains_key(*name))
            .collect();
        if !missing.is_empty() {
            differences.push(format!("has no {}, to be trained", listed(&missing)));
        }
        let mut shapes = trained().filter_map(|(index, name)| {
            let (tensor, expected) = (self.tensors.get(name)?, layout.shape(index));
            (tensor.shape != expected)
                .then(|| format!("`{name}` of shape {:?} instead of {expected:?}", tensor.shape))
        });
        if let Some(first) = shapes.next() {
            let more = shapes.count();
            let more = if more > 0 {
                format!(" and {more} more of other shapes")
            } else {
                String::new()
            };
            differences.push(format!("holds {first}{more}"));
        }
        if !differences.is_empty() {
            let remedy = "Set adapter.targets and adapter.rank to those of the file, or give one of this kind of model.";
            return refuse(differences.join("; "), remedy);
        }
        let is_damaged = |(_, tensor): &(&String, &ReadTensor)| !tensor.values.iter().all(|v| v.is_finite());
        match self.tensors.iter().find(is_damaged) {
            None => Ok(()),
            Some((name, _)) => refuse(
                format!("holds values in `{name}` that are not finite"),
                "Save the adapter anew: its training may have diverged.",
            ),
        }
    }
}

/// Tensors by our names, whatever spelling the file has.
fn normalised(
    path: &Path,
    prefix: &str,
    tensors: Vec<(String, ReadTensor)>,
) -> Result<BTreeMap<String, ReadTensor>> {
    let mut named = BTreeMap::new();
    for (key, tensor) in tensors {
        let name = key
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix('.'))
            .unwrap_or(&key);
        let module = |suffix: &str| name.strip_suffix(suffix);
        let name = match () {
            () if module(A).is_some() || module(B).is_some() => Some(name.to_owned()),
            () => module(".lora.down.weight")
                .map(|module| format!("{module}{A}"))
                .or_else(|| module(".lora.up.weight").map(|module| format!("{module}{B}"))),
        };
        let Some(name) = name else {
            return Err(Error::bad(
                path.display().to_string(),
                format!("holds `{key}`, which is no factor of a LoRA adapter of `{prefix}`"),
                "Give an adapter in the format of diffusers or PEFT that adapts this component only.",
            ));
        };
        named.insert(name, tensor);
    }
    Ok(named)
}

/// The scales that a file's metadata gives.
pub(super) struct FileScales {
    alpha: Option<f64>,
    by_module: Vec<(String, f64)>,
    rank_stabilised: bool,
}

impl FileScales {
    pub(super) fn read(path: &Path, prefix: &str, metadata: &Map<String, Value>) -> Result<Self> {
        let text = metadata.get(CONFIG).and_then(Value::as_str).unwrap_or("{}");
        let config: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
            let what = format!("has metadata `{CONFIG}` that is no JSON object: {error}");
            Error::bad(path.display().to_string(), what, "Save the adapter anew.")
        })?;
        let get = |key: &str| config.get(&format!("{prefix}.{key}"));
        let is_set = |key: &str| get(key).and_then(Value::as_bool).unwrap_or(false);
        if is_set("use_dora") {
            let what = "is a DoRA adapter, which scales the columns of the weights too";
            return Err(Error::bad(
                path.display().to_string(),
                what,
                "Give a plain LoRA adapter.",
            ));
        }
        let patterns = get("alpha_pattern")
            .and_then(Value::as_object)
            .into_iter()
            .flatten();
        Ok(Self {
            alpha: get("lora_alpha").and_then(Value::as_f64),
            by_module: patterns
                .filter_map(|(name, alpha)| Some((name.clone(), alpha.as_f64()?)))
                .collect(),
            rank_stabilised: is_set("use_rslora"),
        })
    }

    /// Scale of a module with factors of this rank.
    fn of(&self, module: &str, rank: usize) -> f64 {
        self.alpha_of(module, rank) / rank as f64
    }

    /// The alpha by which a module of this rank counts alpha / rank times. A pattern names a module's whole path or its
    /// end. Rank-stabilised adapters count alpha / √rank times, which is (alpha · √rank) / rank.
    pub(super) fn alpha_of(&self, module: &str, rank: usize) -> f64 {
        let matches = |pattern: &str| {
            let head = module.strip_suffix(pattern.trim_start_matches('^'));
            head.is_some_and(|head| head.is_empty() || head.ends_with('.'))
        };
        let own = self
            .by_module
            .iter()
            .find(|(pattern, _)| matches(pattern))
            .map(|(_, alpha)| *alpha);
        let rank = rank as f64;
        let alpha = own.or(self.alpha).unwrap_or(rank);
        alpha * if self.rank_stabilised { rank.sqrt() } else { 1.0 }
    }
}
