//! The configuration of a run: YAML file, presets and command line become one checked [`TrainPlan`].
//!
//! ```text
//! defaults ◄ preset ◄ FILE ◄ --set  ──layers──► one value ──schema──► Config ──check──► TrainPlan
//! ```
//!
//! One file per section holds its keys, their defaults, their documentation (which editors show) and the checks
//! of their values; checks across sections are here. Nothing behind a [`TrainPlan`] validates again.

pub mod adapter;
pub mod bytes;
pub mod data;
pub mod guard;
mod identity;
mod layers;
pub mod objective;
pub mod optimizer;
mod preset;
pub mod reference;
pub mod rollout;
pub mod runtime;
pub mod samples;
mod schema;
#[cfg(test)]
mod tests;
pub mod timestep;
pub mod train;

use std::ops::Deref;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_yaml::Value;

pub use identity::{ConfigIdentity, Difference};
pub use preset::Preset;
pub use schema::for_editors as json_schema;

use self::layers::Layers;
use crate::objective::Experience;
use crate::{Error, Result, yaml};

/// Everything a training run is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Pipeline folder, as `optimum-cli export onnx` writes it. Relative paths start at the working directory.
    pub model: PathBuf,
    /// Fills what is not set explicitly, below everything else in the file wherever it stands.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// Which preference pairs are trained and evaluated on, and how they are encoded.
    #[serde(default)]
    pub data: data::DataConfig,
    /// Length of the run, size of a step, and how often to evaluate and save.
    #[serde(default)]
    pub train: train::TrainConfig,
    /// Which weights are trained.
    #[serde(default)]
    pub adapter: adapter::AdapterConfig,
    /// What is optimised.
    #[serde(default)]
    pub objective: objective::ObjectiveConfig,
    /// How the reference model moves, and what holds it.
    #[serde(default)]
    pub reference: reference::ReferenceConfig,
    /// Where timesteps are sampled and how they are weighed.
    #[serde(default)]
    pub timestep: timestep::TimestepConfig,
    /// How online objectives make the images they learn from.
    #[serde(default)]
    pub rollout: rollout::RolloutConfig,
    /// What online objectives learn from a round of images.
    #[serde(default)]
    pub buffer: rollout::BufferConfig,
    /// Pictures that are drawn and rated at every evaluation.
    #[serde(default)]
    pub samples: samples::SamplesConfig,
    /// How gradients become steps.
    #[serde(default)]
    pub optimizer: optimizer::OptimizerConfig,
    /// When a run counts as diverged, and what to do then.
    #[serde(default)]
    pub guard: guard::GuardConfig,
    /// What computes.
    #[serde(default)]
    pub runtime: runtime::RuntimeConfig,
    /// Start of every stream of random numbers.
    #[serde(default)]
    pub seed: u64,
}

/// Where a configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// A preset that replaces the file's.
    pub preset: Option<String>,
    /// Assignments `path.to.key=value`, values in YAML; they win over the file.
    pub set: Vec<String>,
}

/// Part of a configuration that stands in another file, such as a method of an ablation.
#[derive(Debug, Clone, PartialEq)]
pub struct Fragment {
    /// Its place there; complaints about its keys begin with it.
    pub place: String,
    /// Keys and values as in a configuration file.
    pub values: Value,
}

/// A configuration that is complete and checked: the only ways to get one are [`TrainPlan::resolve`] and
/// [`TrainPlan::of_fragments`].
#[derive(Debug, Clone, PartialEq)]
pub struct TrainPlan(Config);

impl Deref for TrainPlan {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.0
    }
}

impl TrainPlan {
    /// Reads, merges and checks a configuration.
    ///
    /// # Errors
    /// The first thing that is wrong, with the file and line or the option that set it.
    pub fn resolve(sources: &Sources) -> Result<Self> {
        let layers = Layers::read(sources)?;
        Self::from_value(&layers.merged()).map_err(|error| layers.locate(error))
    }

    /// Merges and checks fragments, the weakest first. A preset that one of them names fills what none of them says; that of the
    /// last one holds.
    ///
    /// # Errors
    /// The first thing that is wrong, with the place of the fragment that set it.
    pub fn of_fragments(fragments: &[Fragment]) -> Result<Self> {
        let layers = Layers::of_fragments(fragments)?;
        Self::from_value(&layers.merged()).map_err(|error| layers.locate(error))
    }

    fn from_value(value: &Value) -> Result<Self> {
        let example = "Compare with the files in examples/.";
        let mut config: Config = yaml::deserialize(value, &schema::SCHEMA, example)?;
        config.fill();
        config.check()?;
        Ok(Self(config))
    }

    /// The whole configuration as YAML; reading it gives the same plan.
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(&self.0).expect("a configuration is plain data with text keys")
    }

    /// What determines the trained weights, for comparing runs.
    pub fn identity(&self) -> ConfigIdentity {
        ConfigIdentity::of(&self.0)
    }

    /// What determines the trained weights and all that the run measures and draws on its way.
    pub fn reported_identity(&self) -> ConfigIdentity {
        ConfigIdentity::of_report(&self.0)
    }
}

impl Config {
    /// The values of all keys that have defaults.
    fn defaults() -> Value {
        fn section<T: Default + Serialize>() -> Value {
            serde_yaml::to_value(T::default()).expect("sections are plain data")
        }
        let sections = [
            ("data", section::<data::DataConfig>()),
            ("train", section::<train::TrainConfig>()),
            ("adapter", section::<adapter::AdapterConfig>()),
            ("objective", section::<objective::ObjectiveConfig>()),
            ("reference", section::<reference::ReferenceConfig>()),
            ("timestep", section::<timestep::TimestepConfig>()),
            ("rollout", section::<rollout::RolloutConfig>()),
            ("buffer", section::<rollout::BufferConfig>()),
            ("samples", section::<samples::SamplesConfig>()),
            ("optimizer", section::<optimizer::OptimizerConfig>()),
            ("guard", section::<guard::GuardConfig>()),
            ("runtime", section::<runtime::RuntimeConfig>()),
            ("seed", 0.into()),
        ];
        sections
            .into_iter()
            .map(|(key, value)| (key.into(), value))
            .collect::<serde_yaml::Mapping>()
            .into()
    }

    /// Writes down defaults that depend on other keys, so that the printed configuration says all.
    fn fill(&mut self) {
        self.reference.every = Some(self.reference.every());
        if let adapter::AdapterConfig::Lora(lora) = &mut self.adapter {
            lora.alpha = Some(lora.alpha());
        }
    }

    fn check(&self) -> Result<()> {
        self.data.check()?;
        self.train.check()?;
        self.adapter.check()?;
        self.objective.objective().check()?;
        self.reference.check()?;
        self.timestep.check()?;
        self.rollout.check()?;
        self.buffer.check()?;
        self.samples.check()?;
        self.optimizer.check()?;
        self.guard.check()?;
        self.runtime.check()?;
        self.check_data_is_given()?;
        self.check_ties()?;
        self.check_keep_best()?;
        self.check_rollout()?;
        self.check_single_images()?;
        self.check_reference_is_used()
    }

    /// Whether whole weights are trained: parameters that the exporter merged because they are equal become separate then.
    pub fn trains_all_weights(&self) -> bool {
        matches!(self.adapter, adapter::AdapterConfig::Full(_))
    }

    /// Guidance scale inside the likelihood of what is trained on; `None` where there is none.
    pub fn guidance_inside(&self) -> Option<f64> {
        let is_steps = self.objective.objective().needs().experience.is_steps();
        (is_steps && self.rollout.guidance > 1.0).then_some(self.rollout.guidance)
    }

    /// Refuses a run that has nothing to learn from.
    fn check_data_is_given(&self) -> Result<()> {
        let online = self.objective.objective().needs().experience.is_online();
        let prompts = self.rollout.prompts.is_some() || self.rollout.labels.is_some();
        let remedy = match online {
            true => "Give the folder with the preference pairs, or prompts for rollouts: rollout.prompts.",
            false => "Give the folder with the preference pairs.",
        };
        require(
            self.data.is_given() || (online && prompts),
            "data.path",
            "is not set",
            remedy,
        )
    }

    /// Refuses what compares images where the data are single ones.
    fn check_single_images(&self) -> Result<()> {
        if self.data.kind != data::DataKind::Rated {
            return Ok(());
        }
        let (kind, objective) = (self.objective.kind(), self.objective.objective());
        require(
            kind == "kto" || objective.needs().experience.is_online(),
            "data.kind",
            format!("is rated, but objective {kind} learns from pairs"),
            "Use objective.kind=kto, or data in pairs.",
        )?;
        require(
            objective.safeguard().is_none(),
            "objective.safeguard",
            "guards the preferred image of a pair, but data.kind is rated",
            "Leave it out.",
        )
    }

    /// Refuses rollouts that the objective cannot learn from.
    fn check_rollout(&self) -> Result<()> {
        let experience = self.objective.objective().needs().experience;
        let (kind, rollout) = (self.objective.kind(), &self.rollout);
        require(
            !experience.is_steps() || rollout.eta > 0.0,
            "rollout.eta",
            format!("is 0, but objective {kind} needs steps that have a density"),
            "Use eta: 1.",
        )?;
        let compares = matches!(experience, Experience::Images | Experience::TrajectoryPairs);
        require(
            !compares || rollout.images_per_prompt >= 2,
            "rollout.images_per_prompt",
            format!("is 1, but objective {kind} compares images of a prompt"),
            "Use at least 2.",
        )?;
        if let Experience::Candidates(candidates) = experience {
            require(
                candidates.skip < rollout.steps,
                "objective.skip",
                format!(
                    "is {}, and a trajectory has {} steps",
                    candidates.skip, rollout.steps
                ),
                "Skip fewer steps, or use more of them.",
            )?;
            require(
                rollout.labels.is_none(),
                "rollout.labels",
                "rates whole images, but objective spo tries single steps".to_owned(),
                "Use a reward model, or objective d3po.",
            )?;
        }
        Ok(())
    }

    /// Refuses a metric that nothing measures.
    fn check_keep_best(&self) -> Result<()> {
        let Some(metric) = &self.train.keep_best else {
            return Ok(());
        };
        let is_reward = metric
            .strip_prefix("reward.")
            .is_some_and(|_| !self.samples.rewards.is_empty());
        require(
            is_reward || ["acc_init", "margin_init"].contains(&metric.as_str()),
            "train.keep_best",
            format!("is {metric:?}, which is not measured"),
            "Choose acc_init or margin_init, or reward.NAME with NAME among samples.rewards.",
        )
    }

    /// Refuses ties as half preferred under losses that have no such form.
    fn check_ties(&self) -> Result<()> {
        let (kind, needs) = (self.objective.kind(), self.objective.objective().needs());
        require(
            !(needs.winner && self.data.ties == data::Ties::Soft),
            "data.ties",
            format!("is soft, but objective {kind} has no form for a pair without a winner"),
            "Use ties: drop or half.",
        )
    }

    /// Refuses what acts on a reference or its margins where the objective has none.
    fn check_reference_is_used(&self) -> Result<()> {
        use reference::{AnchorConfig, UpdateConfig};
        use timestep::{RewardScaleConfig, WeightingConfig};
        if self.objective.objective().needs().reference {
            return Ok(());
        }
        let needs_reference = [
            (
                self.reference.update == UpdateConfig::Frozen,
                "reference.update",
                "moves a reference",
                "Use update: frozen.",
            ),
            (
                self.reference.anchor == AnchorConfig::None {},
                "reference.anchor",
                "holds a reference",
                "Use anchor: {kind: none}.",
            ),
            (
                !matches!(self.timestep.weighting, WeightingConfig::Variance(_)),
                "timestep.weighting",
                "is variance, which follows the rewards relative to a reference",
                "Use weighting: {kind: none}, min_snr or table.",
            ),
            (
                self.timestep.reward_scale == RewardScaleConfig::None,
                "timestep.reward_scale",
                "scales rewards relative to a reference",
                "Use reward_scale: none.",
            ),
        ];
        let kind = self.objective.kind();
        needs_reference
            .into_iter()
            .try_for_each(|(unused, place, what, remedy)| {
                require(
                    unused,
                    place,
                    format!("{what}, but objective {kind} has no reference"),
                    remedy,
                )
            })
    }
}

/// An error at the key `place` unless the condition holds.
fn require(holds: bool, place: &str, what: impl Into<String>, remedy: &str) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::bad(place, what, remedy))
    }
}
