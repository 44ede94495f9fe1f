//! The graphs that a training run executes.
//!
//! - [`StepGraph`]: loss, per-sample errors and gradients of the policy. The reference is a second branch of the same
//!   graph, or its errors are an input that another session computed.
//! - [`BatchGraph`]: the batch means that some losses use, for steps that are computed in several parts.
//! - [`ErrorGraph`]: errors of one set of weights, forward only (reference, held-out evaluation, drift probe).
//! - [`AnchorGraph`]: the `kl` anchor, `mean (prediction_ref′ − prediction_θ0)²`, with gradients for ref′.
//!
//! Samples are ordered `[w₀ … w_{P−1}, l₀ … l_{P−1}]`: the first half of a batch is preferred. Where the likelihood has
//! guidance inside, the denoiser's batch holds them twice, first under the negative prompt.

use std::collections::HashMap;

use super::branch::{SharedConstants, Weights, begin_copy, inline};
use super::head::{HeadInputs, head, quantities};
use super::likelihood::errors;
use super::trainable::Trainables;
use crate::autodiff::{DeriveOptions, gradients_with};
use crate::objective::{Experience, Objective, Sampled, Trajectory};
use crate::onnx::{Graph, TensorType, ValueId};
use crate::tensor::DType;
use crate::{Error, Result};

/// Prefix of the policy's (in [`AnchorGraph`]: ref′'s) trainable inputs.
pub const POLICY: &str = "policy.";
/// Prefix of the reference's (in [`AnchorGraph`]: θ0's) trainable inputs.
pub const REFERENCE: &str = "reference.";
/// Input that scales gradients while they are computed, where they are of half precision.
pub const LOSS_SCALE: &str = "loss_scale";
/// Prefix of gradient outputs.
pub const GRADIENT: &str = "grad.";

/// How the step gets the reference's errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference {
    /// A branch of the same graph.
    Branch,
    /// Inputs `reference_errors` `[B]` and, where the objective needs it, `reference_prediction` `[B,C,H,W]`, computed by
    /// an [`ErrorGraph`] session.
    Input,
}

/// Size and form of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepShape {
    /// Pairs (or, without pairs, samples) per run.
    pub pairs: usize,
    /// Guidance scale inside the likelihood: rows of the denoiser under the negative prompt, then as many under their own.
    pub guidance: Option<f64>,
    /// Whether a run is a whole optimizer batch; else the means over the batch that the loss uses are an input.
    pub whole_batch: bool,
    /// Whether gradients are scaled by an input `loss_scale` `[]` on their way; the outputs are scaled, too.
    pub loss_scale: bool,
    /// Forms of the gradients.
    pub derive: DeriveOptions,
}

/// The graph of one training step; see the module's text for the order of samples.
///
/// Inputs: those of the UNet (`sample` holds x_t), `target` `[B,C,H,W]`, `weight`, `reward_scale`, `label` `[P]`; `score_gap`,
/// `precision`, `old_errors`, `advantage` `[P]` and `batch_means` `[K]` where the objective needs them; and the trainable
/// tensors. Outputs: `loss` `[]`, `errors`
/// `[B]`, `reference_errors` `[B]`, `reward_signal` `[P]` or `[2P]`, `grad.NAME`.
#[derive(Debug, Clone)]
pub struct StepGraph {
    /// The graph.
    pub graph: Graph,
}

/// Forward only: the inputs of a [`StepGraph`] with [`Reference::Input`] → `batch_means` `[K]`, the means over this part of a
/// batch of what the loss wants averaged over all of it.
#[derive(Debug, Clone)]
pub struct BatchGraph {
    /// The graph.
    pub graph: Graph,
}

/// Forward only: the UNet's inputs, `target`, trainable tensors (prefix [`POLICY`]) → `errors` `[B]`, `prediction`
/// `[B,C,H,W]`.
#[derive(Debug, Clone)]
pub struct ErrorGraph {
    /// The graph.
    pub graph: Graph,
}

/// The `kl` anchor: the UNet's inputs, ref′ ([`POLICY`]) and θ0 ([`REFERENCE`]) → `loss` `[]`, `grad.NAME`.
#[derive(Debug, Clone)]
pub struct AnchorGraph {
    /// The graph.
    pub graph: Graph,
}

/// A graph under construction around one denoiser.
struct Assembly<'a> {
    graph: Graph,
    body: &'a Graph,
    given: HashMap<ValueId, ValueId>,
    shared: SharedConstants,
    batch: usize,
    guidance: Option<f64>,
}

impl<'a> Assembly<'a> {
    /// Starts with the inputs of the denoiser, whose batch dimension tells the number of samples.
    fn new(name: &str, body: &'a Graph) -> Result<Self> {
        let (mut graph, given) = begin_copy(body);
        graph.name = name.to_owned();
        let batch = body.shape(body.input("sample")?)[0];
        Ok(Self {
            graph,
            body,
            given,
            shared: SharedConstants::new(),
            batch,
            guidance: None,
        })
    }

    /// Prediction of the denoiser with the given weights.
    fn predict(&mut self, weights: &Weights) -> Result<ValueId> {
        let out = inline(
            &mut self.graph,
            self.body,
            &self.given,
            Some(weights),
            &mut self.shared,
        )?;
        let Some(scale) = self.guidance else {
            return Ok(out[0]);
        };
        // ε_negative + w·(ε_prompt − ε_negative)
        let samples = self.samples();
        let negative = self.graph.slice(out[0], 0, 0, samples)?;
        let prompt = self.graph.slice(out[0], 0, samples, 2 * samples)?;
        let direction = self.graph.sub(prompt, negative)?;
        let step = self.graph.scale(direction, scale)?;
        self.graph.add(negative, step)
    }

    /// Samples that there is one prediction for.
    fn samples(&self) -> usize {
        self.batch / if self.guidance.is_some() { 2 } else { 1 }
    }

    /// The policy's prediction and all that a loss needs beside it.
    fn head_inputs(
        &mut self,
        trainables: &Trainables,
        policy: &Weights,
        objective: &dyn Objective,
        shape: StepShape,
        reference: Reference,
    ) -> Result<HeadInputs> {
        let (needs, pairs) = (objective.needs(), shape.pairs);
        let samples = needs.samples(pairs);
        self.guidance = shape.guidance;
        let rows = if shape.guidance.is_some() {
            2 * samples
        } else {
            samples
        };
        if self.batch != rows {
            return Err(Error::bad(
                format!("graph `{}`", self.body.name),
                format!("has a batch of {}, the step needs {rows}", self.batch),
                "Fix the batch dimension to the number of samples of a step.",
            ));
        }
        let target = self.like_prediction("target")?;
        let (weight, reward_scale) = (self.vector("weight", pairs), self.vector("reward_scale", pairs));
        let label = self.vector("label", pairs);
        let (mut reference_errors, mut reference_prediction) = (None, None);
        match reference {
            _ if !needs.reference => {}
            Reference::Input => {
                reference_errors = Some(self.vector("reference_errors", samples));
                if needs.gap {
                    reference_prediction = Some(self.like_prediction("reference_prediction")?);
                }
            }
            Reference::Branch => {
                let weights = Weights::as_inputs(&mut self.graph, trainables, REFERENCE);
                let prediction = self.predict(&weights)?;
                reference_errors = Some(errors(&mut self.graph, prediction, target)?);
                reference_prediction = Some(prediction);
            }
        }
        Ok(HeadInputs {
            prediction: self.predict(policy)?,
            target,
            reference_errors,
            reference_prediction,
            score_gap: needs.scores.then(|| self.vector("score_gap", pairs)),
            weight,
            reward_scale,
            label,
            trajectory: self.trajectory(needs.experience, pairs),
            batch_means: None,
        })
    }

    /// What objectives on denoising steps are given besides.
    fn trajectory(&mut self, experience: Experience, pairs: usize) -> Option<Trajectory> {
        experience.is_steps().then(|| Trajectory {
            precision: self.vector("precision", pairs),
            sampled: matches!(experience, Experience::Trajectories(_)).then(|| Sampled {
                errors: self.vector("old_errors", pairs),
                advantage: self.vector("advantage", pairs),
            }),
        })
    }

    /// An input of the prediction's shape.
    fn like_prediction(&mut self, name: &str) -> Result<ValueId> {
        let prediction = *self.body.outputs.first().ok_or_else(|| {
            Error::bad(
                format!("graph `{}`", self.body.name),
                "has no output",
                "Export the UNet again.",
            )
        })?;
        let mut shape = self.body.shape(prediction).to_vec();
        shape[0] = self.samples();
        let ty = TensorType::new(DType::F32, shape);
        Ok(self.graph.add_input(name, ty))
    }

    fn vector(&mut self, name: &str, len: usize) -> ValueId {
        self.graph.add_input(name, TensorType::new(DType::F32, vec![len]))
    }

    fn output(&mut self, value: ValueId, name: &str) -> Result<()> {
        let value = if self.graph.inputs.contains(&value) || self.graph.outputs.contains(&value) {
            self.graph.unary("Identity", value)?
        } else {
            value
        };
        self.graph.set_name(value, name);
        self.graph.outputs.push(value);
        Ok(())
    }

    /// Gradient outputs for `weights` of the scalar `loss`.
    fn differentiate(
        &mut self,
        loss: ValueId,
        weights: &Weights,
        is_scaled: bool,
        options: DeriveOptions,
    ) -> Result<()> {
        let seed = match is_scaled {
            true => self
                .graph
                .add_input(LOSS_SCALE, TensorType::new(DType::F32, vec![])),
            false => self.graph.scalar_like(loss, 1.0),
        };
        let found = gradients_with(&mut self.graph, &[(loss, seed)], &weights.values, options)?;
        for (t, gradient) in weights.trainables.tensors.iter().zip(found) {
            let gradient = gradient.ok_or_else(|| {
                Error::bad(
                    format!("trainable tensor `{}`", t.name),
                    "does not influence the prediction",
                    "Leave it out of adapter.targets.",
                )
            })?;
            self.output(gradient, &format!("{GRADIENT}{}", t.name))?;
        }
        Ok(())
    }

    fn finish(mut self) -> Graph {
        self.graph.prune();
        self.graph
    }
}

impl StepGraph {
    /// Builds the step of `objective` around `denoiser`, a static UNet with one timestep per sample whose batch is
    /// `2·pairs` (objectives with pairs) or `pairs`, twice that with guidance.
    pub fn build(
        denoiser: &Graph,
        trainables: &Trainables,
        objective: &dyn Objective,
        shape: StepShape,
        reference: Reference,
    ) -> Result<Self> {
        let mut a = Assembly::new("ortdpo_step", denoiser)?;
        let policy = Weights::as_inputs(&mut a.graph, trainables, POLICY);
        let mut inputs = a.head_inputs(trainables, &policy, objective, shape, reference)?;
        if !shape.whole_batch
            && let Some(means) = quantities(&mut a.graph, objective, shape.pairs, &inputs)?
        {
            let count = a.graph.shape(means)[0];
            inputs.batch_means = Some(a.vector("batch_means", count));
        }
        let head = head(&mut a.graph, objective, shape.pairs, &inputs)?;
        a.output(head.loss, "loss")?;
        a.output(head.errors, "errors")?;
        if let (Some(r), Reference::Branch) = (inputs.reference_errors, reference) {
            a.output(r, "reference_errors")?;
        }
        if let Some(signal) = head.reward_signal {
            a.output(signal, "reward_signal")?;
        }
        a.differentiate(head.loss, &policy, shape.loss_scale, shape.derive)?;
        Ok(Self { graph: a.finish() })
    }
}

impl BatchGraph {
    /// Builds the batch means of `objective`; `None` if its loss uses none.
    pub fn build(
        denoiser: &Graph,
        trainables: &Trainables,
        objective: &dyn Objective,
        shape: StepShape,
    ) -> Result<Option<Self>> {
        let mut a = Assembly::new("ortdpo_batch", denoiser)?;
        let policy = Weights::as_inputs(&mut a.graph, trainables, POLICY);
        let inputs = a.head_inputs(trainables, &policy, objective, shape, Reference::Input)?;
        let Some(means) = quantities(&mut a.graph, objective, shape.pairs, &inputs)? else {
            return Ok(None);
        };
        a.output(means, "batch_means")?;
        Ok(Some(Self { graph: a.finish() }))
    }
}

impl ErrorGraph {
    /// Builds the forward pass of `denoiser` with its errors.
    pub fn build(denoiser: &Graph, trainables: &Trainables) -> Result<Self> {
        let mut a = Assembly::new("ortdpo_errors", denoiser)?;
        let target = a.like_prediction("target")?;
        let weights = Weights::as_inputs(&mut a.graph, trainables, POLICY);
        let prediction = a.predict(&weights)?;
        let own = errors(&mut a.graph, prediction, target)?;
        a.output(own, "errors")?;
        a.output(prediction, "prediction")?;
        Ok(Self { graph: a.finish() })
    }
}

impl AnchorGraph {
    /// Builds the two branches and their distance. With `loss_scale` as in [`StepShape`].
    pub fn build(
        denoiser: &Graph,
        trainables: &Trainables,
        loss_scale: bool,
        derive: DeriveOptions,
    ) -> Result<Self> {
        let mut a = Assembly::new("ortdpo_anchor", denoiser)?;
        let moving = Weights::as_inputs(&mut a.graph, trainables, POLICY);
        let initial = Weights::as_inputs(&mut a.graph, trainables, REFERENCE);
        let fixed = a.predict(&initial)?;
        let prediction = a.predict(&moving)?;
        let distance = errors(&mut a.graph, prediction, fixed)?;
        let loss = a.graph.reduce("ReduceMean", distance, &[0], false)?;
        a.output(loss, "loss")?;
        a.differentiate(loss, &moving, loss_scale, derive)?;
        Ok(Self { graph: a.finish() })
    }
}
