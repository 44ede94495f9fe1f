//! What makes two runs the same computation: the resolved configuration without what only says how often to
//! report, what to watch, where files lie, or what computes.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Config;
use super::optimizer::LrScheduleKind;
use super::runtime::MixedPrecision;

/// Keys that do not change the trained weights, except by rounding (`accumulate`, `runtime`) or in a run that
/// diverges (`guard`). The contents behind the two paths have hashes of their own; what the preset sets stands in
/// the other sections.
const WITHOUT_EFFECT: [&str; 20] = [
    "model",
    "preset",
    "data.path",
    "data.heldout_split",
    "data.max_skipped_share",
    "data.cache",
    "data.verify_cache",
    "data.encode_batch",
    "train.eval_every",
    "train.eval_pairs",
    "train.eval_draws",
    "train.checkpoint_every",
    "train.keep",
    "train.keep_best",
    "train.accumulate",
    "adapter.format",
    "reference.measure_every",
    "samples",
    "guard",
    "runtime",
];

/// Those of [`WITHOUT_EFFECT`] that change what a run measures, draws, or does when it diverges.
const REPORTED: [&str; 7] = [
    "data.heldout_split",
    "train.eval_every",
    "train.eval_pairs",
    "train.eval_draws",
    "reference.measure_every",
    "samples",
    "guard",
];

/// Sections that only online objectives read.
const ONLINE: [&str; 2] = ["rollout", "buffer"];

/// Keys that came later, with the value that stands for what was before: runs without them stay the same runs.
const ADDED: [(&str, &str); 2] = [("reference.storage", "f32"), ("data.independent_views", "false")];

/// The part of a configuration that determines the trained weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConfigIdentity(Value);

/// One key on which two configurations disagree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Path of the key.
    pub key: String,
    /// Its value in the first configuration, as JSON; `None` where it has no such key.
    pub first: Option<String>,
    /// Its value in the second configuration.
    pub second: Option<String>,
}

impl ConfigIdentity {
    pub(super) fn of(config: &Config) -> Self {
        let mut identity = Self::without(config, WITHOUT_EFFECT.iter());
        // With a constant learning rate a longer run begins as a shorter one.
        if config.optimizer.schedule.kind == LrScheduleKind::Constant {
            remove(&mut identity.0, "train.steps");
        }
        identity
    }

    pub(super) fn of_report(config: &Config) -> Self {
        let mut identity = Self::without(
            config,
            WITHOUT_EFFECT.iter().filter(|path| !REPORTED.contains(path)),
        );
        // More than rounding; left out where there is none, so that results of before stay what they are.
        let precision = config.runtime.mixed_precision;
        if precision != MixedPrecision::No
            && let Some(sections) = identity.0.as_object_mut()
        {
            sections.insert("runtime.mixed_precision".into(), precision.name().into());
        }
        identity
    }

    fn without<'a>(config: &Config, paths: impl Iterator<Item = &'a &'a str>) -> Self {
        let mut value = serde_json::to_value(config).expect("a configuration is plain data with text keys");
        paths.for_each(|path| remove(&mut value, path));
        if !config.objective.objective().needs().experience.is_online() {
            ONLINE.iter().for_each(|path| remove(&mut value, path));
        }
        for (path, before) in ADDED {
            if get(&value, path).is_some_and(|v| v.to_string().trim_matches('"') == before) {
                remove(&mut value, path);
            }
        }
        Self(value)
    }

    /// BLAKE3 of the keys and values, in hexadecimal digits.
    pub fn hash(&self) -> String {
        blake3::hash(self.0.to_string().as_bytes()).to_hex().to_string()
    }

    /// All keys on which `self` and `other` disagree, in the order of the file.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let mut differences = Vec::new();
        compare(Some(&self.0), Some(&other.0), "", &mut differences);
        differences
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".into());
        write!(
            f,
            "{} ({} there, {} here)",
            self.key,
            value(&self.first),
            value(&self.second)
        )
    }
}

fn get<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, key| value.get(key))
}

fn remove(value: &mut Value, path: &str) {
    let (section, key) = path
        .split_once('.')
        .map_or((None, path), |(section, key)| (Some(section), key));
    let parent = match section {
        Some(section) => value.get_mut(section),
        None => Some(value),
    };
    if let Some(entries) = parent.and_then(Value::as_object_mut) {
        entries.shift_remove(key);
    }
}

fn compare(first: Option<&Value>, second: Option<&Value>, path: &str, out: &mut Vec<Difference>) {
    if first == second {
        return;
    }
    let entries = |value: Option<&Value>| value.and_then(Value::as_object).cloned();
    match (entries(first), entries(second)) {
        (Some(a), Some(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            for key in keys {
                let below = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                compare(a.get(key), b.get(key), &below, out);
            }
        }
        _ => out.push(Difference {
            key: path.to_owned(),
            first: first.map(Value::to_string),
            second: second.map(Value::to_string),
        }),
    }
}
