//! By how much the factors in a file count: what its metadata says, or the configuration that PEFT keeps beside it.
//!
//! Both are PEFT's `LoraConfig` as JSON. diffusers puts that of every component into the file's metadata, its keys behind the
//! component's name; PEFT itself writes `adapter_config.json` next to `adapter_model.safetensors`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Key of the metadata in which diffusers keeps configurations.
pub(super) const CONFIG: &str = "lora_adapter_metadata";

/// Name of the file in which PEFT keeps the configuration.
const PEFT_CONFIG: &str = "adapter_config.json";

/// Scales of a component's modules.
#[derive(Debug, Default)]
pub(super) struct FileScales {
    /// Where they are from, for messages.
    place: String,
    alpha: Option<f64>,
    alphas: Patterns,
    /// Rank of all, and of modules that have their own, if that is known apart from the factors.
    ranks: Option<(f64, Patterns)>,
    rank_stabilised: bool,
}

/// Numbers of modules by a pattern of their names.
type Patterns = Vec<(String, f64)>;

impl FileScales {
    /// What the metadata of the file at `path` says of the component `prefix`.
    ///
    /// # Errors
    /// It is damaged, or tells of an adapter that is no plain LoRA.
    pub fn of_metadata(path: &Path, prefix: &str, metadata: &Map<String, Value>) -> Result<Self> {
        let text = metadata.get(CONFIG).and_then(Value::as_str).unwrap_or("{}");
        let config: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
            let what = format!("has metadata `{CONFIG}` that is no JSON object: {error}");
            Error::bad(path.display().to_string(), what, "Save the adapter anew.")
        })?;
        Self::of_config(path, |key| config.get(&format!("{prefix}.{key}")))
    }

    /// What PEFT's configuration beside the file at `path` says; `None` if there is none.
    ///
    /// # Errors
    /// It is damaged, or tells of an adapter that is no plain LoRA.
    pub fn beside(path: &Path) -> Result<Option<Self>> {
        let path = path.with_file_name(PEFT_CONFIG);
        if !path.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        let config: Map<String, Value> = serde_json::from_str(&text).map_err(|error| {
            let what = format!("is no JSON object: {error}");
            Error::bad(
                path.display().to_string(),
                what,
                "Save the adapter anew with PEFT.",
            )
        })?;
        let mut scales = Self::of_config(&path, |key| config.get(key))?;
        let rank = config.get("r").and_then(Value::as_f64);
        if let Some(rank) = rank {
            scales.ranks = Some((rank, patterns(&path, config.get("rank_pattern"))?));
        }
        Ok(Some(scales))
    }

    fn of_config<'a>(path: &Path, get: impl Fn(&str) -> Option<&'a Value>) -> Result<Self> {
        refuse_other_kinds(path, &get)?;
        Ok(Self {
            place: path.display().to_string(),
            alpha: get("lora_alpha").and_then(Value::as_f64),
            alphas: patterns(path, get("alpha_pattern"))?,
            ranks: None,
            rank_stabilised: get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    /// The alpha by which a module of this rank counts alpha / rank times. Rank-stabilised adapters count alpha / √rank
    /// times, which is (alpha · √rank) / rank.
    pub fn alpha_of(&self, module: &str, rank: usize) -> f64 {
        let rank = rank as f64;
        let alpha = of_module(&self.alphas, module).or(self.alpha).unwrap_or(rank);
        alpha * if self.rank_stabilised { rank.sqrt() } else { 1.0 }
    }

    /// Refuses a module whose factors are not of the rank that the configuration has: it is of another adapter, and its alpha
    /// would be wrong.
    pub fn check_rank(&self, path: &Path, module: &str, rank: usize) -> Result<()> {
        let Some((common, own)) = &self.ranks else {
            return Ok(());
        };
        let said = of_module(own, module).unwrap_or(*common);
        match said == rank as f64 {
            true => Ok(()),
            false => Err(Error::bad(
                &self.place,
                format!(
                    "gives `{module}` the rank {said}, but {} has {rank}",
                    path.display()
                ),
                "Put the configuration beside the adapter that it was saved with.",
            )),
        }
    }
}

/// Refuses what PEFT can do beyond plain low-rank factors, by its name.
fn refuse_other_kinds<'a>(path: &Path, get: &impl Fn(&str) -> Option<&'a Value>) -> Result<()> {
    let is_set = |key: &str| {
        get(key).is_some_and(|value| match value {
            Value::Null => false,
            Value::Bool(set) => *set,
            Value::Array(values) => !values.is_empty(),
            Value::Object(values) => !values.is_empty(),
            _ => true,
        })
    };
    let other = |key: &str, usual: &str| {
        let value = get(key).and_then(Value::as_str);
        value
            .filter(|v| !v.eq_ignore_ascii_case(usual))
            .map(str::to_owned)
    };
    let what = match () {
        () if is_set("use_dora") => {
            "is a DoRA adapter, which scales the columns of the weights too".to_owned()
        }
        () if is_set("lora_bias") => "has biases on its factors (lora_bias)".to_owned(),
        () => match (other("bias", "none"), other("peft_type", "LORA")) {
            (Some(bias), _) => format!("trains biases of the model as well (bias: {bias})"),
            (None, Some(kind)) => format!("is an adapter of the kind {kind}"),
            (None, None) => {
                let beyond = [
                    "modules_to_save",
                    "layer_replication",
                    "target_parameters",
                    "trainable_token_indices",
                    "use_qalora",
                    "fan_in_fan_out",
                ];
                match beyond.into_iter().find(|key| is_set(key)) {
                    Some(key) => format!("uses {key}, which is more than low-rank factors of layers"),
                    None => return Ok(()),
                }
            }
        },
    };
    let remedy = "Give a plain LoRA adapter.";
    Err(Error::bad(path.display().to_string(), what, remedy))
}

/// Numbers by pattern, in their order. PEFT's patterns are regular expressions, of which names and the ends of names are
/// known here: that is what programs write.
fn patterns(path: &Path, value: Option<&Value>) -> Result<Patterns> {
    let mut found = Patterns::new();
    for (pattern, number) in value.and_then(Value::as_object).into_iter().flatten() {
        let plain = pattern.replace("\\.", ".");
        if plain
            .trim_start_matches('^')
            .trim_end_matches('$')
            .contains(|c: char| "\\*+?()[]{}|^$".contains(c))
        {
            return Err(Error::bad(
                path.display().to_string(),
                format!("has a value for `{pattern}`, a pattern that is more than the end of a name"),
                "Write the names of the modules in full, as `ortdpo adapter convert` does.",
            ));
        }
        if let Some(number) = number.as_f64() {
            found.push((plain, number));
        }
    }
    Ok(found)
}

/// The number of the first pattern that is a module's whole path or, unless it begins with `^`, its end.
fn of_module(patterns: &Patterns, module: &str) -> Option<f64> {
    let matches = |pattern: &str| {
        let name = pattern.trim_end_matches('$');
        match name.strip_prefix('^') {
            Some(whole) => module == whole,
            None => module
                .strip_suffix(name)
                .is_some_and(|head| head.is_empty() || head.ends_with('.')),
        }
    };
    let found = patterns.iter().find(|(pattern, _)| matches(pattern));
    found.map(|(_, number)| *number)
}
