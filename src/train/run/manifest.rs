//! What a run is made of, written down when it starts.

use crate::config::TrainPlan;
use crate::objective::Objective;
use crate::train::checkpoint::RunIdentity;
use crate::train::engine::Engine;
use crate::train::prepare::{self, Data};
use crate::train::summary::{DataSummary, Manifest};

/// The manifest of a run that is about to start.
pub(super) fn of(
    plan: &TrainPlan,
    identity: &RunIdentity,
    engine: &Engine,
    data: &Data,
    objective: &dyn Objective,
) -> Manifest {
    let options = prepare::session_options(plan);
    let counts = data
        .train
        .as_ref()
        .map(|train| train.counts().clone())
        .unwrap_or_default();
    Manifest {
        versions: identity.versions.clone(),
        config_hash: identity.config_hash.clone(),
        model_hash: identity.model_hash(),
        data: DataSummary {
            hash: identity.data_hash.clone(),
            pairs: counts.pairs,
            ties: counts.ties,
            skipped: counts.skipped,
            truncated: counts.truncated_captions,
            heldout_pairs: data.heldout.as_ref().map_or(0, |h| h.counts().pairs),
        },
        seed: plan.seed,
        trainable: engine.trainables().parameter_count(),
        pairs_per_step: plan.train.pairs_per_step,
        effective_lr: plan.optimizer.effective_lr(plan.train.pairs_per_step),
        beta: objective.beta(),
        beta_effective: objective.beta_effective(),
        ep: options.ep.to_string(),
        threads: options.thread_count(),
    }
}
