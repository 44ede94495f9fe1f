//! The sessions of a training run and what they are fed: the only place where the loop meets ONNX Runtime.
//!
//! - `step`: loss, errors and gradients of the policy, given the reference's errors or with the reference inside;
//! - `batch`: means over the optimizer batch that the loss uses, if it uses any and a batch is computed in parts;
//! - `errors`: forward pass of any weights (reference, held-out evaluation, drift probe);
//! - `anchor`: the `kl` anchor, if it is on.
//!
//! Where images are of several sizes there are such sessions for each, over the same weights, which take turns.

mod options;
mod runner;
mod values;

use std::collections::HashSet;
use std::sync::Arc;

pub use self::options::EngineOptions;
pub use self::runner::Weights;
use self::runner::{Built, Runner, prefixed, scale_input, timestep_tensor};
pub use self::values::{PairInputs, ReferenceValues, Samples, StepValues};
use super::graphs::EngineGraphs;
use crate::autodiff::Recompute;
use crate::device::{DeviceLayout, DeviceSet, Memory, weights_on_device};
use crate::objective::Needs;
use crate::onnx::Graph;
use crate::params::{Layout, ParamSet};
use crate::pipeline::Guidance;
use crate::pipeline::denoiser::Geometry;
use crate::pipeline::network::map_weights;
use crate::runtime::{ExecutionProvider, SessionOptions, SharedWeights};
use crate::traingraph::step::{POLICY, REFERENCE};
use crate::traingraph::{Reference, Trainables};
use crate::{Error, Result};

/// The sessions for one size of images.
struct Sessions {
    step: Runner,
    batch: Option<Runner>,
    errors: Runner,
    anchor: Option<Runner>,
}

/// See the module's text.
pub struct Engine {
    /// By size; at least one, the first being the run's own.
    sessions: Vec<Sessions>,
    /// Those whose turn it is.
    current: usize,
    trainables: Trainables,
    layout: Arc<Layout>,
    model_weights: Option<ParamSet>,
    reference: Reference,
    needs: Needs,
    guidance: Option<Guidance>,
    recompute: Recompute,
    /// Factor on gradients while they are computed, where they are of half precision.
    loss_scale: Option<f32>,
    /// Where the step's gradients go, if they stay on the device.
    gradients: Option<DeviceSet>,
    session: SessionOptions,
}

impl Sessions {
    fn load(
        graphs: &EngineGraphs,
        options: &EngineOptions,
        weights: &SharedWeights,
        gradients: Option<&DeviceSet>,
    ) -> Result<Self> {
        let built = |gradients| Built {
            folder: options.model.folder(),
            weights,
            session: &graphs.session,
            takes_turns: !options.other_sizes.is_empty(),
            gradients,
        };
        let runner = |graph: &Graph, geometry| Runner::new(graph, geometry, &built(None));
        let batch = graphs.batch.as_ref().map(|g| runner(g, options.geometry));
        let anchor = graphs.anchor.as_ref().map(|(g, geometry)| runner(g, *geometry));
        Ok(Self {
            step: Runner::new(&graphs.step, options.geometry, &built(gradients))?,
            batch: batch.transpose()?,
            errors: runner(&graphs.errors, options.geometry)?,
            anchor: anchor.transpose()?,
        })
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Runner> {
        let steps = [&mut self.step, &mut self.errors].into_iter();
        steps.chain(&mut self.batch).chain(&mut self.anchor)
    }
}

impl Engine {
    /// Derives the graphs and loads the sessions. `choose` picks what is trained on the static denoiser.
    pub fn build(
        options: &EngineOptions,
        split_shared: bool,
        choose: impl Fn(&Graph) -> Result<Trainables>,
    ) -> Result<Self> {
        let graphs = EngineGraphs::derive(options, split_shared, &choose)?;
        let mut weights = map_weights(&graphs.denoiser)?;
        if graphs.model_weights.is_some() {
            // Trained weights are inputs: of these files, sessions read what is left.
            let read: HashSet<String> = graphs.in_turn().flat_map(constant_names).collect();
            weights = weights.subset(|name| read.contains(name));
        }
        // Others take them as they are in the files, and copy them as they see fit.
        if graphs.session.ep == ExecutionProvider::Cuda {
            weights = weights_on_device(&weights, &graphs.session)?;
        }
        let gradients = match options.gradients_on_device {
            true => Some(Memory::new(&DeviceLayout::new(&graphs.layout), &graphs.session)?.zeros()?),
            false => None,
        };
        let mut sessions = vec![Sessions::load(&graphs, options, &weights, gradients.as_ref())?];
        for size in options.other_sizes {
            let options = options.sized(*size);
            let graphs = EngineGraphs::derive(&options, split_shared, &choose)?;
            sessions.push(Sessions::load(&graphs, &options, &weights, None)?);
        }
        let needs = options.objective.needs();
        Ok(Self {
            sessions,
            current: 0,
            trainables: graphs.trainables,
            layout: graphs.layout,
            model_weights: graphs.model_weights,
            reference: options.reference,
            needs,
            guidance: options.guidance.map(Guidance::new),
            recompute: options.recompute,
            loss_scale: options.mixed_precision.scales_loss().then_some(1.0),
            gradients,
            session: graphs.session,
        })
    }

    /// What is trained.
    pub fn trainables(&self) -> &Trainables {
        &self.trainables
    }

    /// In full fine-tuning, the trained weights as they are in the model.
    pub fn model_weights(&self) -> Option<&ParamSet> {
        self.model_weights.as_ref()
    }

    /// Names and shapes of what is trained.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Gradients of the last step, if they stay on the device.
    pub fn gradients_on_device(&self) -> Option<&DeviceSet> {
        self.gradients.as_ref()
    }

    /// How sessions are built.
    pub fn session_options(&self) -> &SessionOptions {
        &self.session
    }

    /// What backward passes compute again.
    pub fn recompute(&self) -> Recompute {
        self.recompute
    }

    /// Whether gradients are scaled on their way, because they are of half precision.
    pub fn scales_loss(&self) -> bool {
        self.loss_scale.is_some()
    }

    /// From now on, gradients come multiplied by `scale`. Without effect where they are of single precision.
    pub fn scale_loss(&mut self, scale: f32) {
        self.loss_scale = self.loss_scale.map(|_| scale);
    }

    /// What gradients are multiplied by: 1 in single precision.
    pub fn loss_scale(&self) -> f32 {
        self.loss_scale.unwrap_or(1.0)
    }

    /// Sizes of a step, on latents of the run's own size.
    pub fn geometry(&self) -> Geometry {
        self.sessions[0].step.geometry
    }

    /// Samples of the anchor's batch.
    pub fn anchor_samples(&self) -> Option<usize> {
        self.sessions[0].anchor.as_ref().map(|a| a.geometry.samples)
    }

    /// The sessions for `samples`, whose turn it is from now on.
    fn turn(&mut self, samples: &Samples) -> Result<&mut Sessions> {
        let of_size = |s: &Sessions| s.step.geometry.latent_size() == samples.size;
        let Some(next) = self.sessions.iter().position(of_size) else {
            let [height, width] = samples.size;
            return Err(Error::bad(
                format!("latents of {height}x{width}"),
                "are of a size that no session was built for",
                "Start the run anew: its data changed while it went.",
            ));
        };
        if next != self.current {
            self.sessions[self.current]
                .all()
                .for_each(|runner| runner.binding.forget());
            self.current = next;
        }
        Ok(&mut self.sessions[next])
    }

    /// Errors and predictions of `weights` on one batch of samples.
    pub fn errors<'a>(&mut self, weights: impl Into<Weights<'a>>, samples: &Samples) -> Result<Vec<f32>> {
        let names = prefixed(&self.layout, POLICY);
        let errors = &mut self.turn(samples)?.errors;
        let timesteps = timestep_tensor(&samples.timesteps, errors.timestep_dtype);
        let inputs = errors.inputs_with_target(samples, &timesteps);
        errors.run(inputs, &[(&names, weights.into())])?;
        errors.values("errors")
    }

    /// Predictions of the last call of [`Engine::errors`], `[N,C,H,W]`.
    pub fn predictions(&self) -> Result<Vec<f32>> {
        self.sessions[self.current].errors.values("prediction")
    }

    /// Predictions of `weights` for the samples' rows, `[N,C,H,W]`, whatever their targets.
    fn rows(&mut self, weights: Weights<'_>, samples: &Samples) -> Result<Vec<f32>> {
        let names = prefixed(&self.layout, POLICY);
        let errors = &mut self.turn(samples)?.errors;
        let timesteps = timestep_tensor(&samples.timesteps, errors.timestep_dtype);
        let mut inputs = errors.inputs(samples, &timesteps);
        let ignored = vec![0.0; samples.noisy.len()];
        inputs.push(("target", errors.latents(&ignored)));
        errors.run(inputs, &[(&names, weights)])?;
        self.predictions()
    }

    /// Guided predictions of `weights`, `[N/2,C,H,W]`, and their errors.
    fn guided(
        &mut self,
        guidance: Guidance,
        weights: Weights<'_>,
        samples: &Samples,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let len = self.geometry().with_latent_size(samples.size).latent_len();
        let mut negative = self.rows(weights, samples)?;
        let mut prediction = negative.split_off(negative.len() / 2);
        guidance.combine(&negative, &mut prediction, len);
        let errors = prediction
            .chunks_exact(len)
            .zip(samples.target.chunks_exact(len))
            .map(|(prediction, target)| mean_square(prediction, target));
        Ok((errors.collect(), prediction))
    }

    /// What the loss needs of the reference; nothing where the reference is a branch of the step.
    pub fn reference<'a>(
        &mut self,
        reference: impl Into<Weights<'a>>,
        samples: &Samples,
    ) -> Result<ReferenceValues> {
        let reference = reference.into();
        if !self.needs.reference || self.reference == Reference::Branch {
            return Ok(ReferenceValues::default());
        }
        let (errors, predictions) = match self.guidance {
            Some(guidance) => self.guided(guidance, reference, samples)?,
            None => (self.errors(reference, samples)?, Vec::new()),
        };
        Ok(ReferenceValues {
            errors,
            predictions: match (self.needs.gap, self.guidance) {
                (false, _) => Vec::new(),
                (true, Some(_)) => predictions,
                (true, None) => self.predictions()?,
            },
        })
    }

    /// Whether [`PairInputs::batch_means`] have to be averaged over the parts of a batch before its first step.
    pub fn needs_batch_means(&self) -> bool {
        self.sessions[0].batch.is_some()
    }

    /// Means over one part of a batch of what the loss wants averaged over all of it.
    pub fn batch_means<'a>(
        &mut self,
        policy: impl Into<Weights<'a>>,
        reference: &ReferenceValues,
        samples: &Samples,
        pairs: &PairInputs,
    ) -> Result<Vec<f32>> {
        let own = prefixed(&self.layout, POLICY);
        let batch = self.turn(samples)?.batch.as_mut();
        let batch = batch.expect("the loop asks for means only where they are needed");
        let timesteps = timestep_tensor(&samples.timesteps, batch.timestep_dtype);
        let inputs = batch.step_inputs(samples, &timesteps, reference, pairs);
        batch.run(inputs, &[(&own, policy.into())])?;
        batch.values("batch_means")
    }

    /// Loss and gradients of `policy`; the gradients are read with [`Engine::gradient`].
    pub fn step(
        &mut self,
        policy: &ParamSet,
        reference: &ParamSet,
        samples: &Samples,
        pairs: &PairInputs,
    ) -> Result<StepValues> {
        let values = self.reference(reference, samples)?;
        self.step_beside(policy, Some(reference), values, samples, pairs)
    }

    /// [`Engine::step`] with what [`Engine::reference`] gave before. The reference itself is needed where it is a branch of
    /// the step.
    pub fn step_beside<'a>(
        &mut self,
        policy: impl Into<Weights<'a>>,
        reference: Option<&ParamSet>,
        reference_values: ReferenceValues,
        samples: &Samples,
        pairs: &PairInputs,
    ) -> Result<StepValues> {
        let is_branch = self.needs.reference && self.reference == Reference::Branch;
        let (own, other) = (prefixed(&self.layout, POLICY), prefixed(&self.layout, REFERENCE));
        let (needs, loss_scale) = (self.needs, self.loss_scale);
        let step = &mut self.turn(samples)?.step;
        let timesteps = timestep_tensor(&samples.timesteps, step.timestep_dtype);
        let mut inputs = step.step_inputs(samples, &timesteps, &reference_values, pairs);
        inputs.extend(scale_input(&loss_scale));
        let mut sets = vec![(own.as_slice(), policy.into())];
        if let (true, Some(reference)) = (is_branch, reference) {
            sets.push((&other, reference.into()));
        }
        step.run(inputs, &sets)?;
        Ok(StepValues {
            loss: step.binding.scalar("loss")?,
            errors: step.values("errors")?,
            reference_errors: match is_branch {
                true => step.values("reference_errors")?,
                false => reference_values.errors,
            },
            reward_signal: match needs.reference {
                true => step.values("reward_signal")?,
                false => Vec::new(),
            },
        })
    }

    /// From now on, gives what a step needed back to the system after each, so that there is room for something else until
    /// the next.
    pub fn release_after_steps(&mut self) -> Result<()> {
        let mut steps = self.sessions.iter_mut().map(|s| &mut s.step);
        steps.try_for_each(|step| step.binding.release_after_runs())
    }

    /// Gradient of the last step's loss for the tensor `name`.
    pub fn gradient(&self, name: &str) -> Option<&[f32]> {
        self.sessions[self.current].step.gradient(name)
    }

    /// Distance of the predictions of `moving` from those of `initial`; gradients via [`Engine::anchor_gradient`].
    pub fn anchor(&mut self, moving: &ParamSet, initial: &ParamSet, samples: &Samples) -> Result<f32> {
        let loss_scale = self.loss_scale;
        let (own, other) = (prefixed(&self.layout, POLICY), prefixed(&self.layout, REFERENCE));
        let runner = self.turn(samples)?.anchor.as_mut();
        let runner = runner.expect("the loop asks for the anchor only where it was built");
        let timesteps = timestep_tensor(&samples.timesteps, runner.timestep_dtype);
        let mut inputs = runner.inputs(samples, &timesteps);
        inputs.extend(scale_input(&loss_scale));
        runner.run(inputs, &[(&own, moving.into()), (&other, initial.into())])?;
        runner.binding.scalar("loss")
    }

    /// Gradient of the last anchor's distance for the tensor `name`.
    pub fn anchor_gradient(&self, name: &str) -> Option<&[f32]> {
        let anchor = self.sessions[self.current].anchor.as_ref();
        anchor.and_then(|anchor| anchor.gradient(name))
    }
}

/// `mean (a − b)²`.
pub fn mean_square(a: &[f32], b: &[f32]) -> f32 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / a.len() as f64) as f32
}

/// Names of the graph's constants.
fn constant_names(graph: &Graph) -> impl Iterator<Item = String> {
    graph.constants.keys().map(|v| graph.name(*v))
}
