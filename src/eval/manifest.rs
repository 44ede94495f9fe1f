//! What results depend on: prompts, seeds, how images are made, rewards, versions, and every model by its content.
//!
//! Numbers of two evaluations can stand in one table only if all of this but the models is equal ([`Manifest::difference`]).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::{BootstrapConfig, EvalPlan, SamplingConfig};
use super::images::ModelImages;
use super::sets::{SetIdentity, SetMeasure};
use crate::prompts::Prompt;
use crate::score::Scorer;
use crate::{Result, runtime};

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Programs.
    pub versions: Versions,
    /// Prompts.
    pub prompts: PromptIdentity,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Images of each prompt and seed.
    pub images_per_prompt: usize,
    /// How images are made.
    pub sampling: SamplingConfig,
    /// Rewards, in the order of their columns.
    pub rewards: Vec<RewardIdentity>,
    /// What sets of images are measured with.
    #[serde(default)]
    pub set_metrics: Vec<SetIdentity>,
    /// The model that win rates are against.
    pub baseline: Option<String>,
    /// How confidence intervals are computed.
    pub bootstrap: BootstrapConfig,
    /// Prompt field whose values have results of their own.
    pub group_by: Option<String>,
    /// Models, in the order of their rows.
    pub models: Vec<ModelIdentity>,
}

/// What computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Version of this program.
    pub ortdpo: String,
    /// Version of ONNX Runtime.
    pub onnxruntime: Option<String>,
}

/// Prompts by their content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptIdentity {
    /// Files as they were named.
    pub files: Vec<String>,
    /// How many.
    pub count: usize,
    /// Hash of texts and fields, in order.
    pub hash: String,
}

/// A reward by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewardIdentity {
    /// Name, as columns are headed.
    pub name: String,
    /// Version of its weights.
    pub version: String,
    /// What its numbers are.
    pub unit: String,
    /// Hash of manifest and networks.
    pub hash: String,
}

/// A model by its content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// Name in tables.
    pub name: String,
    /// Pipeline folder, or the folder of images that were made elsewhere.
    pub source: String,
    /// Hash of the pipeline, or of the images.
    pub hash: String,
    /// Adapters as they were named.
    pub adapters: Vec<String>,
    /// Hashes of their files, with their scales.
    pub adapter_hashes: Vec<String>,
    /// The sampler that made the images; unknown for those made elsewhere.
    pub sampler: Option<String>,
    /// Its η.
    pub eta: Option<f64>,
}

impl ModelIdentity {
    /// Whether both are the same model, whatever they are called and wherever they lie.
    pub fn is_same(&self, other: &Self) -> bool {
        let content = |m: &Self| (m.hash.clone(), m.adapter_hashes.clone(), m.sampler.clone(), m.eta);
        content(self) == content(other)
    }
}

impl Manifest {
    /// That of `plan` with its models' images and its rewards.
    ///
    /// # Errors
    /// A reward's file cannot be read.
    pub(super) fn of(
        plan: &EvalPlan,
        models: &[ModelImages],
        scorer: &Scorer,
        sets: &[SetMeasure<'_>],
    ) -> Result<Self> {
        let rewards = scorer.rewards().iter().map(|reward| {
            let manifest = reward.manifest();
            Ok(RewardIdentity {
                name: manifest.name.clone(),
                version: manifest.version.clone(),
                unit: manifest.unit.clone(),
                hash: reward.hash()?.to_string(),
            })
        });
        Ok(Self {
            versions: Versions {
                ortdpo: env!("CARGO_PKG_VERSION").to_owned(),
                onnxruntime: runtime::info().map(|info| info.version().to_owned()),
            },
            prompts: PromptIdentity {
                files: plan
                    .prompt_files
                    .iter()
                    .map(|file| file.display().to_string())
                    .collect(),
                count: plan.prompts.len(),
                hash: prompts_hash(&plan.prompts),
            },
            seeds: plan.seeds.clone(),
            images_per_prompt: plan.images_per_prompt,
            sampling: plan.sampling.clone(),
            rewards: rewards.collect::<Result<_>>()?,
            set_metrics: sets.iter().map(|set| set.identity.clone()).collect(),
            baseline: plan.baseline.clone(),
            bootstrap: plan.bootstrap.clone(),
            group_by: plan.group_by.clone(),
            models: models.iter().map(|model| model.identity.clone()).collect(),
        })
    }

    /// Names of the rewards.
    pub fn reward_names(&self) -> Vec<&str> {
        self.rewards.iter().map(|reward| reward.name.as_str()).collect()
    }

    /// The first thing but the models in which two manifests differ: what, here, there. The baselines must be the same model.
    pub fn difference(&self, other: &Self) -> Option<(String, String, String)> {
        let comparable = |manifest: &Self| {
            let mut value = serde_json::to_value(manifest).expect("a manifest has string keys only");
            if let Value::Object(entries) = &mut value {
                entries.shift_remove("models");
                // The same prompts may lie in other files.
                entries["prompts"]["files"] = Value::Null;
            }
            value
        };
        first_difference("", &comparable(self), &comparable(other)).or_else(|| {
            let find = |manifest: &Self| {
                let baseline = manifest.baseline.as_deref()?;
                manifest
                    .models
                    .iter()
                    .find(|model| model.name == baseline)
                    .cloned()
            };
            let (here, there) = (find(self)?, find(other)?);
            let text = |model: &ModelIdentity| format!("{} of hash {}", model.source, model.hash);
            (!here.is_same(&there)).then(|| ("the baseline".to_owned(), text(&here), text(&there)))
        })
    }
}

fn prompts_hash(prompts: &[Prompt]) -> String {
    let bytes = serde_json::to_vec(prompts).expect("prompts have string keys only");
    blake3::hash(&bytes).to_hex().to_string()
}

fn first_difference(path: &str, here: &Value, there: &Value) -> Option<(String, String, String)> {
    match (here, there) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            a.iter().zip(b.values()).find_map(|((key, here), there)| {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                first_difference(&path, here, there)
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find_map(|(index, (here, there))| first_difference(&format!("{path}[{index}]"), here, there)),
        _ => (here != there).then(|| (path.to_owned(), here.to_string(), there.to_string())),
    }
}
