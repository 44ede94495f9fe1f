//! A checked ablation: every configuration that will be trained is resolved here, so that nothing is refused hours later.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::arms::{self, Arm, Choice, check_seeds, known};
use super::config::{AblationConfig, EXAMPLE};
use super::judging::{self, Tuning};
use super::rows::{Phase, RunId};
use crate::config::TrainPlan;
use crate::eval::config::{EvalPlan, check_name};
use crate::stats::PromptDraw;
use crate::yaml::{Document, steps_of};
use crate::{Error, Result};

/// Name of the initial model in tables and folders.
pub const BASE: &str = "base";

/// An ablation that can be run.
#[derive(Debug, Clone)]
pub struct AblationPlan {
    /// Strategy that gains are against.
    pub baseline: String,
    /// Strategy that the main table puts beside the baseline.
    pub ours: String,
    /// Every method under every strategy that it is trained under, in the order of methods, then strategies.
    pub arms: Vec<Arm>,
    /// The pipeline that all runs start from.
    pub model: PathBuf,
    /// What the final table is made with; its only model is the initial one.
    pub evaluation: EvalPlan,
    /// Names of the rewards, in the order of `evaluation.rewards`.
    pub rewards: Vec<String>,
    /// How hyperparameters are chosen, where any are.
    pub tuning: Option<Tuning>,
    /// How intervals draw prompts.
    pub prompt_draw: PromptDraw,
    /// The file as it was read.
    pub text: String,
}

/// One training with its evaluation.
#[derive(Debug, Clone)]
pub struct Run {
    /// What it is for.
    pub phase: Phase,
    /// Method, strategy, choice and seed.
    pub id: RunId,
    /// How it is trained.
    pub training: TrainPlan,
    /// Hash of all that the configuration says of it.
    pub settings: String,
}

impl Run {
    /// What people read: `dpo + ema, seed 0`, with the tuned values while they are chosen.
    pub fn name(&self) -> String {
        self.id.name(self.phase)
    }
}

impl AblationPlan {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The first thing that is wrong, with file and line: an unknown key, a name that is there twice or not at all, a
    /// method and a strategy that do not fit together.
    pub fn read(path: &Path) -> Result<Self> {
        let (config, document) = AblationConfig::read(path)?;
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        Self::of(config, text).map_err(|error| located(&document, error))
    }

    fn of(config: AblationConfig, text: String) -> Result<Self> {
        check_names(&config)?;
        let arms = arms::of(&config)?;
        let model = arms::one_model(&arms)?;
        let names: Vec<&str> = config.strategies.iter().map(|s| s.name.as_str()).collect();
        let strategy = |key: &str, named: Option<&String>, default: &str| match named {
            Some(name) => known(key, name, &names).map(|()| name.clone()),
            None => Ok(default.to_owned()),
        };
        let baseline = strategy("baseline", config.baseline.as_ref(), names[0])?;
        let ours = strategy("ours", config.ours.as_ref(), names[names.len() - 1])?;
        let rewards = judging::reward_names(&config.evaluation)?;
        let evaluation = judging::evaluation(config.evaluation.clone(), &model)?;
        let is_tuned = arms.iter().any(|arm| arm.candidates.len() > 1);
        let tuning = judging::tuning(&config, is_tuned, (&model, &evaluation), &rewards)?;
        let plan = Self {
            baseline,
            ours,
            arms,
            model,
            evaluation,
            rewards,
            tuning,
            prompt_draw: config.prompt_draw,
            text,
        };
        plan.check_different()?;
        Ok(plan)
    }

    /// Runs that try every candidate of every arm that has several.
    ///
    /// # Errors
    /// None that [`AblationPlan::read`] would not have found.
    pub fn tuning_runs(&self) -> Result<Vec<Run>> {
        let Some(tuning) = &self.tuning else {
            return Ok(Vec::new());
        };
        let tuned = self.arms.iter().filter(|arm| arm.candidates.len() > 1);
        let mut runs = Vec::new();
        for &seed in &tuning.seeds {
            for arm in tuned.clone() {
                for choice in &arm.candidates {
                    runs.push(arm.run(Phase::Tuning, choice, seed, &tuning.evaluation)?);
                }
            }
        }
        Ok(runs)
    }

    /// Runs of the final table for each arm's choice, arms without one left out. All arms have their first seed before any has
    /// its second, so that early tables have a row for each.
    ///
    /// # Errors
    /// None that [`AblationPlan::read`] would not have found.
    pub fn final_runs(&self, choices: &[Option<Choice>]) -> Result<Vec<Run>> {
        let most = self.arms.iter().map(|arm| arm.seeds.len()).max().unwrap_or(0);
        let mut runs = Vec::new();
        for position in 0..most {
            for (arm, choice) in self.arms.iter().zip(choices) {
                if let (Some(seed), Some(choice)) = (arm.seeds.get(position), choice) {
                    runs.push(arm.run(Phase::Final, choice, *seed, &self.evaluation)?);
                }
            }
        }
        Ok(runs)
    }

    /// How many final runs are not among `runs`, because nothing is chosen for their arms yet.
    pub fn waiting<'a>(&self, runs: impl Iterator<Item = &'a Run>) -> usize {
        let there = runs.filter(|run| run.phase == Phase::Final).count();
        let all: usize = self.arms.iter().map(|arm| arm.seeds.len()).sum();
        all - there
    }

    /// How the models of a phase are judged.
    pub fn evaluation_of(&self, phase: Phase) -> &EvalPlan {
        match (&self.tuning, phase) {
            (Some(tuning), Phase::Tuning) => &tuning.evaluation,
            _ => &self.evaluation,
        }
    }

    /// Refuses two arms that are the same training: one of them has a mistake.
    fn check_different(&self) -> Result<()> {
        let mut seen: HashMap<String, &Arm> = HashMap::new();
        for arm in &self.arms {
            let run = arm.run(Phase::Final, &arm.candidates[0], 0, &self.evaluation)?;
            if let Some(other) = seen.insert(run.settings, arm) {
                return Err(Error::bad(
                    arm.own_place(other),
                    format!("makes {} the same training as {}", arm.name(), other.name()),
                    "Mend one of the two, or leave it out.",
                ));
            }
        }
        Ok(())
    }
}

/// Puts file and line before a complaint about a key of the file; other places, such as prompt files, stay as they are.
fn located(document: &Document, error: Error) -> Error {
    match error {
        Error::BadInput { ref place, .. } if document.known_depth(&steps_of(place)) > 0 => {
            document.locate(error)
        }
        Error::BadInput { place, what, remedy } if place.starts_with("preset ") => {
            Error::bad(format!("{}: {place}", document.path.display()), what, remedy)
        }
        other => other,
    }
}

fn check_names(config: &AblationConfig) -> Result<()> {
    for (key, is_empty) in [
        ("methods", config.methods.is_empty()),
        ("strategies", config.strategies.is_empty()),
    ] {
        if is_empty {
            return Err(Error::bad(
                key,
                "is empty",
                format!("Name at least one; {EXAMPLE}"),
            ));
        }
    }
    let mut names = HashSet::from([BASE]);
    for (index, method) in config.methods.iter().enumerate() {
        check_name(&format!("methods[{index}].name"), &method.name, &mut names)?;
    }
    let mut names = HashSet::new();
    for (index, strategy) in config.strategies.iter().enumerate() {
        check_name(&format!("strategies[{index}].name"), &strategy.name, &mut names)?;
    }
    check_seeds("seeds", &config.seeds)
}
