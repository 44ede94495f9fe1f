//! Which methods are trained under which strategies with which seeds, and how the results are judged: the YAML file of
//! `ortdpo ablate`.
//!
//! docs/ablation.schema.json gives the file to editors; examples/ablat*.yaml are whole ones.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_yaml::Value;

use crate::Result;
use crate::eval::config::EvalConfig;
use crate::stats::PromptDraw;
use crate::yaml::{self, Document, Schema};

/// Where a good file is to be seen.
pub(super) const EXAMPLE: &str = "examples/ablate-tiny.yaml is a whole file.";

static SCHEMA: LazyLock<Schema> =
    LazyLock::new(|| Schema::of::<AblationConfig>(|path| format!("Write `{path}`; {EXAMPLE}")));

/// An ablation: methods × strategies × seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AblationConfig {
    /// The training configuration that all runs begin with, as a file of `ortdpo train`.
    pub base: Values,
    /// What is improved: objectives with their settings.
    pub methods: Vec<MethodConfig>,
    /// What is added to each method.
    pub strategies: Vec<StrategyConfig>,
    /// Which methods are trained under which strategies; all under all if empty.
    #[serde(default)]
    pub runs: Vec<RunsConfig>,
    /// Seeds of training. [0] if empty.
    #[serde(default)]
    pub seeds: Vec<u64>,
    /// Strategy that gains are against; the first one if not set.
    #[serde(default)]
    pub baseline: Option<String>,
    /// Strategy that the main table puts beside the baseline of each method; the last one if not set.
    #[serde(default)]
    pub ours: Option<String>,
    /// Images and rewards of the final table, as a file of `ortdpo eval` without `models`. The first reward is the one
    /// that labelled the pairs.
    pub evaluation: EvalConfig,
    /// How values of the methods' `tune` are chosen before the final runs.
    #[serde(default)]
    pub tuning: Option<TuningConfig>,
    /// How intervals draw prompts: once for all drawn seeds, or anew within each.
    #[serde(default)]
    pub prompt_draw: PromptDraw,
}

/// Keys of a training configuration with their values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Values(#[schemars(with = "serde_json::Value")] pub Value);

impl Default for Values {
    fn default() -> Self {
        Self(Value::Mapping(Default::default()))
    }
}

/// A method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MethodConfig {
    /// Its name in tables; letters, digits, dots, dashes and underscores.
    pub name: String,
    /// What it sets, over `base`.
    #[serde(default)]
    pub set: Values,
    /// Values to choose among, by the path of their key: `{optimizer.lr: [1.0e-4, 2.0e-4]}`. Every combination is tried under
    /// every strategy of the method, so that all have the same budget.
    #[serde(default)]
    pub tune: IndexMap<String, Candidates>,
}

/// Values of a key to choose among.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Candidates(#[schemars(with = "Vec<serde_json::Value>")] pub Vec<Value>);

/// A strategy: how the reference moves, how timesteps are drawn and weighed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StrategyConfig {
    /// Its name in tables; letters, digits, dots, dashes and underscores.
    pub name: String,
    /// What it sets, over `base` and the method; `preset: NAME` fills what none of the three says.
    #[serde(default)]
    pub set: Values,
}

/// Methods that are trained under strategies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunsConfig {
    /// Names of methods; all if empty.
    pub methods: Vec<String>,
    /// Names of strategies; all if empty.
    pub strategies: Vec<String>,
    /// Seeds of training; those of the whole ablation if empty.
    pub seeds: Vec<u64>,
}

/// How hyperparameters are chosen: on other prompts than those of the final table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TuningConfig {
    /// Prompt files; none of the prompts may be among those of `evaluation`.
    pub prompts: Vec<PathBuf>,
    /// Use only so many prompts, the first ones.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Images of each prompt and seed; as in `evaluation` if not set.
    #[serde(default)]
    pub images_per_prompt: Option<usize>,
    /// Seeds of training. [0] if empty.
    #[serde(default)]
    pub seeds: Vec<u64>,
    /// The reward whose mean chooses, by its name; the first of `evaluation` if not set.
    #[serde(default)]
    pub by: Option<String>,
}

impl AblationConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// An unknown key or a value of the wrong type, with file and line.
    pub fn read(path: &Path) -> Result<(Self, Document)> {
        yaml::read(path, &SCHEMA, EXAMPLE)
    }
}

/// The JSON Schema of ablation files, for editors, as text. Training configurations in it refer to their own schema, which
/// lies beside.
pub fn json_schema() -> String {
    let mut schema = SCHEMA.json().clone();
    schema["title"] = "ortdpo ablation".into();
    schema["$defs"]["Values"] = json!({"$ref": "config.schema.json"});
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema has text keys only");
    text.push('\n');
    text
}
