//! Files that a run reads besides its model and its pairs: all there, and all of each?

use crate::Result;
use crate::adapter::content::{check_file, file_of};
use crate::config::TrainPlan;
use crate::config::adapter::AdapterConfig;
use crate::model_folder::{Component, ModelFolder};
use crate::reward::RewardModel;

/// Checks them before anything is loaded; those of the model itself are [`Model::open`](super::model::Model::open)'s to check.
///
/// # Errors
/// The first file that is missing, cut off or something else.
pub fn check(plan: &TrainPlan) -> Result<()> {
    if let AdapterConfig::Lora(lora) = &plan.adapter
        && let Some(file) = &lora.init
    {
        check_file(&file_of(file)?)?;
    }
    let rated = plan.objective.objective().needs().experience.is_online() && plan.rollout.labels.is_none();
    if plan.samples.is_on() || rated {
        ModelFolder::open(&plan.model)?.check_files(&[Component::VaeDecoder])?;
    }
    let rollout = rated.then_some(&plan.rollout.reward);
    let mut rewards = plan
        .samples
        .rewards
        .iter()
        .chain(&plan.samples.features)
        .chain(rollout);
    rewards.try_for_each(|name| RewardModel::check_files(name))
}
