//! The head of a training step: from predictions to the loss that is differentiated.
//!
//! Samples are ordered `[w₀ … w_{P−1}, l₀ … l_{P−1}]`: the first half of a batch is preferred.

use super::likelihood::{errors, mean_product};
use crate::Result;
use crate::objective::{Gap, Likelihoods, Objective, Safeguard, Trajectory};
use crate::onnx::{Graph, ValueId};

/// What the head of a step is built on, as values of the step graph; `B` samples, `P` pairs.
#[derive(Debug, Clone, Copy)]
pub struct HeadInputs {
    /// The policy's prediction, `[B,C,H,W]`.
    pub prediction: ValueId,
    /// What it should be, `[B,C,H,W]`.
    pub target: ValueId,
    /// Errors of the reference, `[B]`; `None` without one.
    pub reference_errors: Option<ValueId>,
    /// Prediction of the reference, `[B,C,H,W]`, for objectives that need it.
    pub reference_prediction: Option<ValueId>,
    /// Score of the preferred sample minus that of the rejected one, `[P]`, for objectives that need it.
    pub score_gap: Option<ValueId>,
    /// Loss weight, `[P]`.
    pub weight: ValueId,
    /// Reward scale λ(t), `[P]`.
    pub reward_scale: ValueId,
    /// How surely the preferred sample is preferred, `[P]`.
    pub label: ValueId,
    /// For objectives on denoising steps.
    pub trajectory: Option<Trajectory>,
    /// Means of the [`quantities`] over the whole optimizer batch; `None` if this run is all of it.
    pub batch_means: Option<ValueId>,
}

/// What the head gives.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// Mean weighted loss, `[]`.
    pub loss: ValueId,
    /// Errors of the policy, `[B]`.
    pub errors: ValueId,
    /// The objective's reward signal, `[P]` or `[2P]`.
    pub reward_signal: Option<ValueId>,
}

/// Adds the loss of `objective` on `pairs` pairs.
pub fn head(graph: &mut Graph, objective: &dyn Objective, pairs: usize, inputs: &HeadInputs) -> Result<Head> {
    let own = errors(graph, inputs.prediction, inputs.target)?;
    let likelihoods = likelihoods(graph, objective, pairs, inputs, own)?;
    let means = match inputs.batch_means {
        Some(given) => (0..graph.shape(given)[0])
            .map(|i| graph.slice(given, 0, i, i + 1))
            .collect::<Result<Vec<_>>>()?,
        None => means(graph, objective, &likelihoods)?,
    };
    let (guarded, means) = match objective.safeguard() {
        None => (likelihoods, &means[..]),
        Some(guard) => (
            guard.apply(graph, &likelihoods, [means[0], means[1]])?,
            &means[2..],
        ),
    };
    let losses = objective.build(graph, &guarded, means)?;
    let weighted = graph.mul(losses.loss, inputs.weight)?;
    Ok(Head {
        loss: graph.reduce("ReduceMean", weighted, &[0], false)?,
        errors: own,
        reward_signal: losses.reward_signal,
    })
}

/// Means over the pairs of this run of what the loss wants averaged over the optimizer batch, `[K]`; `None` if the
/// objective has no such quantity. Averaged over a batch's parts they are the head's `batch_means`.
pub fn quantities(
    graph: &mut Graph,
    objective: &dyn Objective,
    pairs: usize,
    inputs: &HeadInputs,
) -> Result<Option<ValueId>> {
    let own = errors(graph, inputs.prediction, inputs.target)?;
    let likelihoods = likelihoods(graph, objective, pairs, inputs, own)?;
    match means(graph, objective, &likelihoods)? {
        means if means.is_empty() => Ok(None),
        means => graph.concat(&means, 0).map(Some),
    }
}

/// Means `[1]` that no gradient flows through: those of the safeguard, then the objective's own.
fn means(graph: &mut Graph, objective: &dyn Objective, l: &Likelihoods) -> Result<Vec<ValueId>> {
    let mut wanted = match objective.safeguard() {
        None => Vec::new(),
        Some(_) => Safeguard::batch_quantities(l).to_vec(),
    };
    wanted.extend(objective.batch_quantities(graph, l)?);
    wanted
        .into_iter()
        .map(|quantity| {
            let mean = graph.mean_keep(quantity, &[0])?;
            graph.stop_gradient(mean)
        })
        .collect()
}

fn likelihoods(
    graph: &mut Graph,
    objective: &dyn Objective,
    pairs: usize,
    inputs: &HeadInputs,
    own: ValueId,
) -> Result<Likelihoods> {
    let needs = objective.needs();
    let first = |g: &mut Graph, v: ValueId| g.slice(v, 0, 0, pairs);
    let second = |g: &mut Graph, v: ValueId| g.slice(v, 0, pairs, 2 * pairs);
    let (mut e_l, mut ref_w, mut ref_l, mut gap, mut cross) = (None, None, None, None, None);
    if let Some(reference) = inputs.reference_errors.filter(|_| needs.reference) {
        ref_w = Some(first(graph, reference)?);
        if needs.pairs {
            ref_l = Some(second(graph, reference)?);
        }
    }
    if needs.pairs {
        e_l = Some(second(graph, own)?);
    }
    if let Some(reference) = inputs.reference_prediction.filter(|_| needs.gap) {
        let own = first(graph, inputs.prediction)?;
        let (theirs, target) = (first(graph, reference)?, first(graph, inputs.target)?);
        let far = graph.sub(own, theirs)?;
        let residual = graph.sub(own, target)?;
        gap = Some(Gap {
            square: mean_product(graph, far, far)?,
            inner: mean_product(graph, residual, far)?,
        });
    }
    if objective.safeguard().is_some() {
        let residual = graph.sub(inputs.prediction, inputs.target)?;
        let (w, l) = (first(graph, residual)?, second(graph, residual)?);
        cross = Some(mean_product(graph, w, l)?);
    }
    Ok(Likelihoods {
        e_w: first(graph, own)?,
        e_l,
        ref_w,
        ref_l,
        gap,
        cross,
        score_gap: inputs.score_gap,
        reward_scale: inputs.reward_scale,
        label: inputs.label,
        trajectory: inputs.trajectory,
    })
}
