//! How models are judged: the evaluation of the final table, and the one on other prompts by which hyperparameters are chosen.

use std::collections::HashSet;
use std::path::Path;

use super::arms::{check_seeds, known};
use super::config::AblationConfig;
use super::plan::BASE;
use crate::eval::config::{DrawConfig, EvalConfig, EvalPlan, ModelConfig};
use crate::reward::manifest::{FILE_NAME, Manifest};
use crate::{Error, Result, eval, reward};

/// How hyperparameters are chosen.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Prompts and images that candidates are judged by.
    pub evaluation: EvalPlan,
    /// Seeds of training.
    pub seeds: Vec<u64>,
    /// Name of the reward whose mean chooses.
    pub by: String,
}

/// Names of the rewards as they head columns.
///
/// # Errors
/// There is no reward of that name.
pub(super) fn reward_names(config: &EvalConfig) -> Result<Vec<String>> {
    let name = |reward: &String| Ok(Manifest::read(&reward::find(reward)?.join(FILE_NAME))?.name);
    config.rewards.iter().map(name).collect()
}

/// How the final table is made: a checked evaluation whose only model is the initial one.
///
/// # Errors
/// A key has no place in an ablation, or a value is not usable.
pub(super) fn evaluation(config: EvalConfig, model: &Path) -> Result<EvalPlan> {
    let refuse = |key: &str, is_set: bool, remedy: &str| match is_set {
        true => Err(Error::bad(format!("evaluation.{key}"), "is set", remedy)),
        false => Ok(()),
    };
    refuse(
        "models",
        !config.models.is_empty(),
        "Leave it out: the models are those that are trained.",
    )?;
    refuse(
        "baseline",
        config.baseline.is_some(),
        "Leave it out: win rates are against the initial model.",
    )?;
    refuse(
        "group_by",
        config.group_by.is_some(),
        "Leave it out: an ablation has no groups.",
    )?;
    refuse(
        "bootstrap.draw",
        config.bootstrap.draw != DrawConfig::Prompts,
        "Leave it out: intervals are over seeds and prompts; see `prompt_draw`.",
    )?;
    plan(config, model).map_err(|error| below("evaluation", error))
}

fn plan(mut config: EvalConfig, model: &Path) -> Result<EvalPlan> {
    config.models.push(ModelConfig {
        name: BASE.into(),
        model: Some(model.to_path_buf()),
        ..ModelConfig::default()
    });
    EvalPlan::of(config)
}

/// How hyperparameters are chosen; none where there is nothing to choose. `table` is the initial model and how the final table
/// is made.
pub(super) fn tuning(
    config: &AblationConfig,
    is_tuned: bool,
    (model, table): (&Path, &EvalPlan),
    rewards: &[String],
) -> Result<Option<Tuning>> {
    let tuning = match (&config.tuning, is_tuned) {
        (Some(tuning), true) => tuning,
        (None, false) => return Ok(None),
        (None, true) => {
            let remedy = "Say with `tuning` on which prompts values are chosen, or leave out `tune`.";
            return Err(Error::bad(
                "methods",
                "have values to choose among (`tune`)",
                remedy,
            ));
        }
        (Some(_), false) => {
            let what = "has nothing to choose: no method has two values of a key";
            let remedy = "Give a method `tune: {path.to.key: [values]}`, or leave out `tuning`.";
            return Err(Error::bad("tuning", what, remedy));
        }
    };
    check_seeds("tuning.seeds", &tuning.seeds)?;
    let on_other_prompts = EvalConfig {
        prompts: tuning.prompts.clone(),
        limit: tuning.limit,
        images_per_prompt: tuning
            .images_per_prompt
            .unwrap_or(config.evaluation.images_per_prompt),
        ..config.evaluation.clone()
    };
    let plan = plan(on_other_prompts, model).map_err(|error| below("tuning", error))?;
    let of_table: HashSet<&str> = table.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
    let shared = plan
        .prompts
        .iter()
        .find(|prompt| of_table.contains(prompt.text.as_str()));
    if let Some(shared) = shared {
        return Err(Error::bad(
            "tuning.prompts",
            format!("holds {:?}, which is a prompt of the final table", shared.text),
            "Choose on other prompts than those that the result is measured on.",
        ));
    }
    let by = tuning.by.clone().unwrap_or_else(|| rewards[0].clone());
    let names: Vec<&str> = rewards.iter().map(String::as_str).collect();
    known("tuning.by", &by, &names)?;
    Ok(Some(Tuning {
        evaluation: plan,
        seeds: match tuning.seeds.is_empty() {
            true => vec![0],
            false => tuning.seeds.clone(),
        },
        by,
    }))
}

/// The same complaint with its place below `key`, if it is about a key of an evaluation.
fn below(key: &str, error: Error) -> Error {
    let is_key = |place: &str| {
        let first = place.split(['.', '[']).next().unwrap_or_default();
        eval::config::is_key(first)
    };
    match error {
        Error::BadInput { place, what, remedy } if is_key(&place) => {
            Error::bad(format!("{key}.{place}"), what, remedy)
        }
        other => other,
    }
}
