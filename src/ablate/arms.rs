//! Methods under strategies: the training configurations of an ablation.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use indexmap::IndexMap;
use serde_json::Value as Json;
use serde_yaml::Value;

use super::config::{AblationConfig, MethodConfig, RunsConfig, StrategyConfig, Values};
use super::identity;
use super::plan::Run;
use super::rows::{Phase, RunId};
use crate::config::reference::UpdateConfig;
use crate::config::timestep::{RewardScaleConfig, SamplingConfig, WeightingConfig};
use crate::config::{Fragment, TrainPlan};
use crate::eval::config::EvalPlan;
use crate::yaml::nearest;
use crate::{Error, Result};

/// Values of the tuned keys, by their paths.
pub type Choice = IndexMap<String, Json>;

/// A method under a strategy.
#[derive(Debug, Clone)]
pub struct Arm {
    /// The method's name.
    pub method: String,
    /// The strategy's name.
    pub strategy: String,
    /// Seeds of the final runs.
    pub seeds: Vec<u64>,
    /// Combinations of values to choose among; a single empty one where nothing is tuned.
    pub candidates: Vec<Choice>,
    /// Whether the reference moves.
    pub moves_reference: bool,
    /// Whether timesteps are drawn, weighed or scaled in another way than the plain one.
    pub treats_timesteps: bool,
    /// Configuration of the arm, the weakest part first.
    fragments: Vec<Fragment>,
}

impl Arm {
    /// Method and strategy as people read them.
    pub fn name(&self) -> String {
        format!("{} + {}", self.method, self.strategy)
    }

    fn training(&self, choice: &Choice, seed: u64) -> Result<TrainPlan> {
        let to_yaml = |value: &Json| serde_yaml::to_value(value).expect("JSON is YAML");
        let choice: IndexMap<String, Value> = choice
            .iter()
            .map(|(path, value)| (path.clone(), to_yaml(value)))
            .collect();
        // The method's own fragment is the second.
        let place = self.fragments[1].place.replace(".set", ".tune");
        let seed = Fragment {
            place: "seeds".into(),
            values: Value::Mapping([("seed".into(), seed.into())].into_iter().collect()),
        };
        let chosen = Fragment::of_assignments(place, &choice)?;
        let [base, method, strategy] = &self.fragments[..] else {
            unreachable!("an arm has three fragments");
        };
        let fragments = [base, method, strategy, &chosen, &seed].map(Clone::clone);
        TrainPlan::of_fragments(&fragments).map_err(|error| match error {
            Error::BadInput { place, what, remedy } => {
                Error::bad(place, format!("{what} (in {})", self.name()), remedy)
            }
            other => other,
        })
    }

    pub(super) fn run(&self, phase: Phase, choice: &Choice, seed: u64, evaluation: &EvalPlan) -> Result<Run> {
        let training = self.training(choice, seed)?;
        Ok(Run {
            phase,
            id: RunId {
                method: self.method.clone(),
                strategy: self.strategy.clone(),
                choice: choice.clone(),
                seed,
            },
            settings: identity::settings(Some(&training), evaluation),
            training,
        })
    }

    /// The part of the file that tells this arm from another one.
    pub(super) fn own_place(&self, other: &Self) -> &str {
        let part = if self.method == other.method { 2 } else { 1 };
        &self.fragments[part].place
    }
}

/// Keys of a training configuration that stand at `place`.
fn fragment(place: String, values: &Values) -> Result<Fragment> {
    let values = match &values.0 {
        Value::Null => Value::Mapping(Default::default()),
        mapping @ Value::Mapping(_) => mapping.clone(),
        _ => {
            return Err(Error::bad(
                place,
                "holds no keys",
                "Write keys as in a training configuration.",
            ));
        }
    };
    if values.get("seed").is_some() {
        let remedy = "Leave it out; `seeds` names the seeds of all runs.";
        return Err(Error::bad(format!("{place}.seed"), "is set", remedy));
    }
    Ok(Fragment { place, values })
}

/// Every method under every strategy that `runs` puts it under.
pub(super) fn of(config: &AblationConfig) -> Result<Vec<Arm>> {
    let base = fragment("base".into(), &config.base)?;
    let seeds = seeds_of(config)?;
    let mut arms = Vec::new();
    for (m, method) in config.methods.iter().enumerate() {
        let candidates = candidates(m, method)?;
        for (s, strategy) in config.strategies.iter().enumerate() {
            let Some(seeds) = seeds.get(&(m, s)) else { continue };
            arms.push(arm(
                &base,
                (m, method),
                (s, strategy),
                seeds.clone(),
                candidates.clone(),
            )?);
        }
    }
    Ok(arms)
}

fn arm(
    base: &Fragment,
    (m, method): (usize, &MethodConfig),
    (s, strategy): (usize, &StrategyConfig),
    seeds: Vec<u64>,
    candidates: Vec<Choice>,
) -> Result<Arm> {
    let mut arm = Arm {
        method: method.name.clone(),
        strategy: strategy.name.clone(),
        seeds,
        candidates,
        moves_reference: false,
        treats_timesteps: false,
        fragments: vec![
            base.clone(),
            fragment(format!("methods[{m}].set"), &method.set)?,
            fragment(format!("strategies[{s}].set"), &strategy.set)?,
        ],
    };
    for choice in &arm.candidates {
        let plan = arm.training(choice, 0)?;
        let timestep = &plan.timestep;
        arm.moves_reference = plan.reference.update != UpdateConfig::Frozen;
        arm.treats_timesteps = timestep.sampling != SamplingConfig::Uniform {}
            || timestep.weighting != WeightingConfig::None {}
            || timestep.reward_scale != RewardScaleConfig::None;
    }
    Ok(arm)
}

/// Seeds of each (method, strategy) that is to be trained, by position.
fn seeds_of(config: &AblationConfig) -> Result<HashMap<(usize, usize), Vec<u64>>> {
    let all = [RunsConfig::default()];
    let runs = if config.runs.is_empty() {
        &all[..]
    } else {
        &config.runs
    };
    let methods: Vec<&str> = config.methods.iter().map(|method| method.name.as_str()).collect();
    let strategies: Vec<&str> = config.strategies.iter().map(|s| s.name.as_str()).collect();
    let mut found: HashMap<(usize, usize), Vec<u64>> = HashMap::new();
    for (r, runs) in runs.iter().enumerate() {
        check_seeds(&format!("runs[{r}].seeds"), &runs.seeds)?;
        for (place, named, known_names) in [
            ("methods", &runs.methods, &methods),
            ("strategies", &runs.strategies, &strategies),
        ] {
            for (index, name) in named.iter().enumerate() {
                known(&format!("runs[{r}].{place}[{index}]"), name, known_names)?;
            }
        }
        let takes = |named: &[String], name: &str| named.is_empty() || named.iter().any(|n| n == name);
        for (m, method) in methods
            .iter()
            .enumerate()
            .filter(|(_, name)| takes(&runs.methods, name))
        {
            for (s, strategy) in strategies.iter().enumerate() {
                if !takes(&runs.strategies, strategy) {
                    continue;
                }
                let seeds = [&runs.seeds, &config.seeds]
                    .into_iter()
                    .find(|seeds| !seeds.is_empty());
                let of_arm = found.entry((m, s)).or_default();
                for &seed in seeds.map_or(&[0][..], Vec::as_slice) {
                    if of_arm.contains(&seed) {
                        let what = format!("names {method} under {strategy} with seed {seed} again");
                        return Err(Error::bad(format!("runs[{r}]"), what, "Name every run once."));
                    }
                    of_arm.push(seed);
                }
            }
        }
    }
    Ok(found)
}

/// All combinations of the values that a method has to choose among, the first key varying slowest.
fn candidates(index: usize, method: &MethodConfig) -> Result<Vec<Choice>> {
    let mut all = vec![Choice::new()];
    for (path, values) in &method.tune {
        let place = format!("methods[{index}].tune.{path}");
        if values.0.is_empty() {
            return Err(Error::bad(
                place,
                "has no values",
                "Give a list of values to choose among.",
            ));
        }
        if path == "seed" {
            let remedy = "A seed is no hyperparameter; leave it out.";
            return Err(Error::bad(place, "would be chosen by its results", remedy));
        }
        let mut longer = Vec::new();
        for choice in &all {
            for value in &values.0 {
                let value = serde_json::to_value(value)
                    .map_err(|error| Error::bad(&place, error.to_string(), "Give plain values."))?;
                let mut choice = choice.clone();
                choice.insert(path.clone(), value);
                if longer.contains(&choice) {
                    return Err(Error::bad(place, "holds a value twice", "Give each value once."));
                }
                longer.push(choice);
            }
        }
        all = longer;
    }
    Ok(all)
}

/// The model that all arms start from.
pub(super) fn one_model(arms: &[Arm]) -> Result<PathBuf> {
    let mut models = Vec::new();
    for arm in arms {
        models.push(arm.training(&arm.candidates[0], 0)?.model.clone());
    }
    let first = models.first().cloned().unwrap_or_default();
    match models.iter().position(|model| *model != first) {
        None => Ok(first),
        Some(other) => Err(Error::bad(
            "base.model",
            format!(
                "is not that of {}, which starts from {}",
                arms[other].name(),
                models[other].display()
            ),
            "Let all runs start from one model: set it in `base` only.",
        )),
    }
}

pub(super) fn check_seeds(place: &str, seeds: &[u64]) -> Result<()> {
    let mut seen = HashSet::new();
    match seeds.iter().find(|seed| !seen.insert(**seed)) {
        None => Ok(()),
        Some(seed) => Err(Error::bad(
            place,
            format!("names {seed} twice"),
            "Give each seed once.",
        )),
    }
}

/// Refuses a name that is none of `names`.
pub(super) fn known(place: &str, name: &str, names: &[&str]) -> Result<()> {
    if names.contains(&name) {
        return Ok(());
    }
    let guess = nearest(name, names).map_or(String::new(), |near| format!("Did you mean {near}? "));
    let remedy = format!("{guess}Known are {}.", names.join(", "));
    Err(Error::bad(
        place,
        format!("is {name}, which is not there"),
        remedy,
    ))
}
