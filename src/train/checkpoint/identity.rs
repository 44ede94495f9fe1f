//! Which run a checkpoint belongs to, and the refusal to resume another one from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{ConfigIdentity, Difference};
use crate::train::summary::Versions;
use crate::{Error, Result};

/// What has to be the same for a run to go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// The keys that determine the result.
    pub config: ConfigIdentity,
    /// Their hash.
    pub config_hash: String,
    /// Hashes of the model's files, by component.
    pub model: BTreeMap<String, String>,
    /// Hash of the pairs.
    pub data_hash: String,
    /// What computed. Other versions may round differently, but do not make another run.
    pub versions: Versions,
}

impl RunIdentity {
    /// The identity of a run.
    pub fn new(
        config: ConfigIdentity,
        model: BTreeMap<String, String>,
        data_hash: String,
        versions: Versions,
    ) -> Self {
        Self {
            config_hash: config.hash(),
            config,
            model,
            data_hash,
            versions,
        }
    }

    /// One hash over all components of the model, in hexadecimal digits.
    pub fn model_hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (component, hash) in &self.model {
            hasher
                .update(component.as_bytes())
                .update(&[0])
                .update(hash.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Accepts or refuses to go on from a checkpoint with this identity as the run `now`. Returns what a user should
    /// know about results that may differ in rounding.
    ///
    /// # Errors
    /// Configuration, model or data are others; every differing key is named.
    pub fn accept(&self, now: &Self, checkpoint: &str) -> Result<Vec<String>> {
        let refuse = |what: String, remedy: &str| Err(Error::bad(checkpoint, what, remedy));
        let differences = self.config.differences(&now.config);
        if !differences.is_empty() {
            let named: Vec<String> = differences.iter().map(Difference::to_string).collect();
            return refuse(
                format!("belongs to another configuration: {}", named.join(", ")),
                "Resume with the config.yaml of that run, or start a new run in another --output.",
            );
        }
        let others: Vec<&str> = (self.model.keys())
            .chain(
                now.model
                    .keys()
                    .filter(|component| !self.model.contains_key(*component)),
            )
            .filter(|component| self.model.get(*component) != now.model.get(*component))
            .map(String::as_str)
            .collect();
        if !others.is_empty() {
            return refuse(
                format!(
                    "belongs to another model: the files of {} differ",
                    others.join(", ")
                ),
                "Give the model that the run began with; its files must not have changed.",
            );
        }
        if self.data_hash != now.data_hash {
            return refuse(
                format!(
                    "belongs to other data: {} there, {} here",
                    self.data_hash, now.data_hash
                ),
                "Give the pairs that the run began with: a file of the data set may be missing, new, or cut off.",
            );
        }
        let programs = [
            ("ortdpo", &self.versions.ortdpo, &now.versions.ortdpo),
            (
                "ONNX Runtime",
                &self.versions.onnxruntime,
                &now.versions.onnxruntime,
            ),
        ];
        let changed = programs.iter().filter(|(_, there, here)| there != here);
        Ok(changed
            .map(|(name, there, here)| format!("{checkpoint} was written with {name} {there}, this is {here}: results may round differently"))
            .collect())
    }
}
