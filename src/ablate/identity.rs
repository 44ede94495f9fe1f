//! What makes a run the same run: its settings, and the content of all files that they name.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;

use crate::adapter::content::file_of;
use crate::config::TrainPlan;
use crate::config::adapter::AdapterConfig;
use crate::eval::config::EvalPlan;
use crate::model_folder::{ModelFolder, hash_named};
use crate::{Result, reward};

/// Counts up when the program trains or judges the same settings differently, so that older rows do not stand in for new runs.
const REVISION: u32 = 1;

/// Hash of what the configuration says of a run, without the content of files; 32 hexadecimal digits.
pub(super) fn settings(training: Option<&TrainPlan>, evaluation: &EvalPlan) -> String {
    hash(&(
        training.map(TrainPlan::reported_identity),
        &evaluation.prompts,
        &evaluation.rewards,
        &evaluation.seeds,
        evaluation.images_per_prompt,
        &evaluation.set_metrics,
        &evaluation.sampling,
    ))
}

/// Name of the folder in which images of a model's kind are made: their settings without what only adds images or scores.
pub(super) fn images(evaluation: &EvalPlan, files: &str) -> String {
    hash(&(
        files,
        &evaluation.prompts,
        evaluation.images_per_prompt,
        &evaluation.sampling,
    ))[..8]
        .to_owned()
}

/// Identity of a run: settings, files, and the program's revision.
pub(super) fn key(settings: &str, files: &str) -> String {
    hash(&(REVISION, settings, files))
}

/// Hash of the training alone: names the folder of the run, whatever it is judged by.
pub(super) fn training(plan: &TrainPlan, files: &str) -> String {
    hash(&(REVISION, plan.reported_identity(), files))[..8].to_owned()
}

fn hash(value: &impl Serialize) -> String {
    let bytes = serde_json::to_vec(value).expect("settings are plain data with text keys");
    blake3::hash(&bytes).to_hex()[..32].to_owned()
}

/// Hashes of files and folders, each read once.
#[derive(Default)]
pub(super) struct Files(HashMap<String, String>);

impl Files {
    /// Those that a training reads.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn of_training(&mut self, plan: &TrainPlan) -> Result<String> {
        let mut all = self.model(&plan.model)?;
        all += &self.of("data", &plan.data.path)?;
        let (samples, rollout) = (&plan.samples, &plan.rollout);
        let mut rewards: Vec<&String> = samples.rewards.iter().chain(&samples.features).collect();
        let mut files = vec![samples.file.as_deref()];
        let init = match &plan.adapter {
            AdapterConfig::Lora(lora) => lora.init.as_deref().map(file_of).transpose()?,
            AdapterConfig::Full(_) => None,
        };
        files.push(init.as_deref());
        if plan.objective.objective().needs().experience.is_online() {
            files.extend([rollout.prompts.as_deref(), rollout.labels.as_deref()]);
            rewards.extend(rollout.labels.is_none().then_some(&rollout.reward));
        }
        for file in files.into_iter().flatten() {
            all += &self.of("file", file)?;
        }
        for reward in rewards {
            all += &self.of("reward", &reward::find(reward)?)?;
        }
        Ok(all)
    }

    /// Those that judge images of `model`.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn of_evaluation(&mut self, plan: &EvalPlan, model: &Path) -> Result<String> {
        let mut all = self.model(model)?;
        let sets = plan.set_metrics.iter();
        for name in plan.rewards.iter().chain(sets.clone().map(|set| &set.features)) {
            all += &self.of("reward", &reward::find(name)?)?;
        }
        for reference in sets.filter_map(|set| set.reference.as_ref()) {
            all += &self.of("reference", reference)?;
        }
        Ok(all)
    }

    /// Those of a pipeline.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn model(&mut self, path: &Path) -> Result<String> {
        self.once(format!("model {}", path.display()), || {
            let folder = ModelFolder::open(path)?;
            let there = folder.components().iter().copied();
            let there: Vec<_> = there.filter(|part| folder.folder(*part).is_dir()).collect();
            Ok(folder.hash(&there)?.to_string())
        })
    }

    fn of(&mut self, what: &str, path: &Path) -> Result<String> {
        self.once(format!("{what} {}", path.display()), || {
            Ok(hash_named([(what, path)])?.to_string())
        })
    }

    fn once(&mut self, name: String, compute: impl FnOnce() -> Result<String>) -> Result<String> {
        if let Some(known) = self.0.get(&name) {
            return Ok(known.clone());
        }
        let hash = compute()?;
        self.0.insert(name, hash.clone());
        Ok(hash)
    }
}
