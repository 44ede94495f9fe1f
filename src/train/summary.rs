//! What a run was made of (`manifest.json`, written when it starts) and what came of it (`summary.json`).

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::fsutil::write_atomically;

/// What a run was made of: enough to repeat it, and to see why a repetition differs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Versions of what computed.
    pub versions: Versions,
    /// Hash of the configuration's keys that determine the result.
    pub config_hash: String,
    /// Hash of the model's files.
    pub model_hash: String,
    /// The pairs.
    pub data: DataSummary,
    /// Start of every stream of random numbers.
    pub seed: u64,
    /// Trainable values.
    pub trainable: usize,
    /// Pairs per optimizer step.
    pub pairs_per_step: usize,
    /// Highest learning rate that steps really use.
    pub effective_lr: f64,
    /// The method's β in its own convention, where it has one.
    pub beta: Option<f64>,
    /// Coefficient of the margin in the logit.
    pub beta_effective: Option<f64>,
    /// Execution provider.
    pub ep: String,
    /// CPU threads.
    pub threads: usize,
}

/// Versions of what computes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// This program.
    pub ortdpo: String,
    /// The ONNX Runtime library.
    pub onnxruntime: String,
}

impl Versions {
    /// Those of this program with the given library.
    pub fn with_runtime(onnxruntime: impl Into<String>) -> Self {
        Self {
            ortdpo: env!("CARGO_PKG_VERSION").to_owned(),
            onnxruntime: onnxruntime.into(),
        }
    }
}

/// The pairs a run was trained on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSummary {
    /// Hash of the pairs and how they were encoded.
    pub hash: String,
    /// Pairs that are trained on.
    pub pairs: u64,
    /// Pairs without a winner in the data set.
    pub ties: u64,
    /// Rows that could not be used.
    pub skipped: u64,
    /// Captions longer than the text encoder's context.
    pub truncated: u64,
    /// Held-out pairs that are evaluated on.
    pub heldout_pairs: u64,
}

/// Implicit accuracy and margin on held-out pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldOutScores {
    /// Accuracy against the initial policy.
    pub acc_init: f64,
    /// Mean margin against the initial policy.
    pub margin_init: f64,
    /// Accuracy against the reference as it was then.
    pub acc_ref: f64,
    /// Mean margin against the reference as it was then.
    pub margin_ref: f64,
}

/// What came of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Before the first step; `null` without held-out pairs.
    pub initial: Option<HeldOutScores>,
    /// What was found of the pictures drawn before the first step, by the names in the log.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub initial_pictures: BTreeMap<String, f64>,
    /// After the last step.
    #[serde(rename = "final")]
    pub last: Option<HeldOutScores>,
    /// Accuracy on the held-out pairs of the scorer that made their labels, where the data set holds its scores.
    pub ceiling_acc: Option<f64>,
    /// Optimizer steps taken, over all resumed parts.
    pub steps: u64,
    /// Seconds of training, evaluation and saving, over all resumed parts.
    pub seconds: f64,
    /// Largest resident memory of the process, where the system tells.
    pub peak_rss_mb: Option<f64>,
    /// What the run was made of.
    #[serde(flatten)]
    pub manifest: Manifest,
}

impl Manifest {
    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_json(path, self)
    }
}

impl Summary {
    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_json(path, self)
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).expect("summaries are plain data with text keys");
    text.push(b'\n');
    write_atomically(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_holds_what_readers_look_for_and_reads_back() {
        let scores = HeldOutScores {
            acc_init: 0.75,
            ..HeldOutScores::default()
        };
        let summary = Summary {
            initial: Some(HeldOutScores::default()),
            last: Some(scores),
            ceiling_acc: Some(0.9),
            manifest: Manifest {
                versions: Versions::with_runtime("1.31.1"),
                ..Manifest::default()
            },
            ..Summary::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary.json");
        summary.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["final"]["acc_init"], 0.75);
        assert_eq!(value["versions"]["onnxruntime"], "1.31.1");
        for key in [
            "initial",
            "ceiling_acc",
            "steps",
            "seconds",
            "peak_rss_mb",
            "config_hash",
            "data",
        ] {
            assert!(value.get(key).is_some(), "{key}");
        }
        for key in ["hash", "pairs", "ties", "skipped"] {
            assert!(value["data"].get(key).is_some(), "{key}");
        }
        assert_eq!(serde_json::from_str::<Summary>(&text).unwrap(), summary);
    }
}
