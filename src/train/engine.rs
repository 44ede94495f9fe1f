//! The sessions of a training run and what they are fed: the only place where the loop meets ONNX Runtime.
//!
//! - `step`: loss, errors and gradients of the policy, given the reference's errors or with the reference inside;
//! - `batch`: means over the optimizer batch that the loss uses, if it uses any and a batch is computed in parts;
//! - `errors`: forward pass of any weights (reference, held-out evaluation, drift probe);
//! - `anchor`: the `kl` anchor, if it is on.
//!
//! Where images are of several sizes there are such sessions for each, over the same weights, which take turns.

use std::path::Path;
use std::sync::Arc;

use ndarray::{ArrayViewD, IxDyn};

use super::graphs::EngineGraphs;
use crate::autodiff::Recompute;
use crate::config::runtime::{MixedPrecision, WeightCopies};
use crate::device::{DeviceLayout, DeviceSet, Memory, weights_on_device};
use crate::diffusion::Timestep;
use crate::objective::{Needs, Objective};
use crate::onnx::{Graph, Model};
use crate::params::{Layout, ParamSet};
use crate::pipeline::Guidance;
use crate::pipeline::denoiser::Geometry;
use crate::pipeline::micro::TIME_IDS;
use crate::pipeline::network::{map_weights, session_over};
use crate::runtime::{Binding, ExecutionProvider, Session, SessionOptions, SharedWeights, TensorView};
use crate::tensor::{DType, Tensor};
use crate::traingraph::step::{GRADIENT, LOSS_SCALE, POLICY, REFERENCE};
use crate::traingraph::{Reference, Trainables};
use crate::{Error, Result};

/// Noised samples with their targets, flat and in the order of the batch.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    /// Height and width of the latents.
    pub size: [usize; 2],
    /// x_t, `[N,C,H,W]`.
    pub noisy: Vec<f32>,
    /// What the denoiser should predict, `[N,C,H,W]`; with guidance inside the likelihood, what the guided prediction of the
    /// second half should be, `[N/2,C,H,W]`.
    pub target: Vec<f32>,
    /// Timestep of each sample.
    pub timesteps: Vec<Timestep>,
    /// Text conditioning, `[N,L,D]`.
    pub text: Vec<f32>,
    /// Pooled text embeddings, `[N,P]`; empty where the model has none.
    pub pooled: Vec<f32>,
    /// Micro-conditioning of each sample, which only SDXL's denoiser takes.
    pub time_ids: Vec<[f32; TIME_IDS]>,
}

/// Per-pair inputs of a step.
#[derive(Debug, Clone, Default)]
pub struct PairInputs {
    /// Loss weights.
    pub weight: Vec<f32>,
    /// Reward scales λ(t).
    pub reward_scale: Vec<f32>,
    /// 1, or 0.5 for a tie.
    pub label: Vec<f32>,
    /// Score of the preferred sample minus that of the rejected one; empty unless the objective needs it.
    pub score_gap: Vec<f32>,
    /// κ of each pair's denoising steps; empty unless the samples are such.
    pub precision: Vec<f32>,
    /// Errors of the policy that took the steps; empty unless the objective needs them.
    pub old_errors: Vec<f32>,
    /// How much better than expected the steps' images are; empty unless the objective needs them.
    pub advantage: Vec<f32>,
    /// Means of the objective's batch quantities over the whole optimizer batch; empty if a step is all of it.
    pub batch_means: Vec<f32>,
}

/// What the reference gave for a batch of samples; empty where the objective does not need it.
#[derive(Debug, Clone, Default)]
pub struct ReferenceValues {
    /// Errors, one per sample.
    pub errors: Vec<f32>,
    /// Predictions, `[N,C,H,W]` flat.
    pub predictions: Vec<f32>,
}

/// What a step measured, besides the gradients.
#[derive(Debug, Clone, Default)]
pub struct StepValues {
    /// Mean weighted loss.
    pub loss: f32,
    /// Errors of the policy, one per sample.
    pub errors: Vec<f32>,
    /// Errors of the reference, one per sample; empty without a reference.
    pub reference_errors: Vec<f32>,
    /// Reward signal, one per pair, or one per sample in the order of the batch; empty without a reference.
    pub reward_signal: Vec<f32>,
}

/// What is to be built.
pub struct EngineOptions<'a> {
    /// The UNet.
    pub model: &'a Model,
    /// Sizes; `samples` are the rows of a step.
    pub geometry: Geometry,
    /// Further heights and widths of latents that steps are taken on.
    pub other_sizes: &'a [[usize; 2]],
    /// Guidance scale inside the likelihood.
    pub guidance: Option<f64>,
    /// Pairs of a run.
    pub pairs: usize,
    /// Whether a run is a whole optimizer batch.
    pub whole_batch: bool,
    /// The objective.
    pub objective: &'a dyn Objective,
    /// Where the reference's errors come from.
    pub reference: Reference,
    /// Samples of the anchor, if it is on.
    pub anchor_samples: Option<usize>,
    /// Whether sessions keep second copies of the weights.
    pub copies: WeightCopies,
    /// What backward passes compute again.
    pub recompute: Recompute,
    /// What the denoiser is computed in.
    pub mixed_precision: MixedPrecision,
    /// Whether gradients stay on the device; not with further sizes of latents.
    pub gradients_on_device: bool,
    /// How sessions are built.
    pub session: SessionOptions,
}

impl EngineOptions<'_> {
    /// The same run at another level of recomputation.
    pub fn recomputing(&self, recompute: Recompute) -> Self {
        Self {
            recompute,
            session: self.session.clone(),
            ..*self
        }
    }

    /// The same run on latents of one of its other sizes.
    pub(crate) fn sized(&self, size: [usize; 2]) -> Self {
        Self {
            geometry: self.geometry.with_latent_size(size),
            session: self.session.clone(),
            ..*self
        }
    }
}

/// Weights that sessions compute with, wherever they are.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// In memory, and copied to the device by every run if that is another one.
    Host(&'a ParamSet),
    /// On the device.
    Device(&'a DeviceSet),
}

impl<'a> From<&'a ParamSet> for Weights<'a> {
    fn from(set: &'a ParamSet) -> Self {
        Self::Host(set)
    }
}

impl<'a> From<&'a DeviceSet> for Weights<'a> {
    fn from(set: &'a DeviceSet) -> Self {
        Self::Device(set)
    }
}

/// A session with its buffers.
struct Runner {
    session: Session,
    binding: Binding,
    geometry: Geometry,
    timestep_dtype: DType,
}

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

/// What is common to the runners of an engine.
struct Built<'a> {
    folder: &'a Path,
    weights: &'a SharedWeights,
    session: &'a SessionOptions,
    takes_turns: bool,
    gradients: Option<&'a DeviceSet>,
}

impl Runner {
    fn new(graph: &Graph, geometry: Geometry, built: &Built) -> Result<Self> {
        let timestep_dtype = graph.dtype(graph.input("timestep")?);
        let session = session_over(graph, built.folder, built.weights, built.session)?;
        let binding = match (built.takes_turns, built.gradients) {
            (true, _) => Binding::of_turns(&session)?,
            (false, None) => Binding::new(&session)?,
            (false, Some(gradients)) => Binding::onto(&session, |output| {
                let name = output.strip_prefix(GRADIENT);
                let index = name.and_then(|name| gradients.layout().index_of(name));
                index.map(|index| gradients.place_of(index)).transpose()
            })?,
        };
        Ok(Self {
            session,
            binding,
            geometry,
            timestep_dtype,
        })
    }

    /// The samples as named inputs. All views of one run have one lifetime: array views are invariant in theirs.
    fn inputs<'a>(&self, samples: &'a Samples, timesteps: &'a Tensor) -> Vec<(&'a str, TensorView<'a>)> {
        let n = self.geometry.samples;
        let [c, h, w] = self.geometry.latent;
        let [tokens, width] = self.geometry.text;
        let mut inputs = vec![
            ("sample", TensorView::f32(&[n, c, h, w], &samples.noisy)),
            ("timestep", timesteps.into()),
            (
                "encoder_hidden_states",
                TensorView::f32(&[n, tokens, width], &samples.text),
            ),
        ];
        if let Some(added) = self.geometry.added {
            let pooled = TensorView::f32(&[n, added.pooled], &samples.pooled);
            inputs.push(("text_embeds", pooled));
            let ids = samples.time_ids.as_flattened();
            inputs.push(("time_ids", TensorView::f32(&[n, TIME_IDS], ids)));
        }
        inputs
    }

    /// Values of latents, one behind the other, as a batch.
    fn latents<'a>(&self, values: &'a [f32]) -> TensorView<'a> {
        let [c, h, w] = self.geometry.latent;
        TensorView::f32(&[values.len() / self.geometry.latent_len(), c, h, w], values)
    }

    /// The samples with their targets as named inputs.
    fn inputs_with_target<'a>(
        &self,
        samples: &'a Samples,
        timesteps: &'a Tensor,
    ) -> Vec<(&'a str, TensorView<'a>)> {
        let mut given = self.inputs(samples, timesteps);
        given.push(("target", self.latents(&samples.target)));
        given
    }

    /// What a step takes beside the trainable tensors.
    fn step_inputs<'a>(
        &self,
        samples: &'a Samples,
        timesteps: &'a Tensor,
        reference: &'a ReferenceValues,
        pairs: &'a PairInputs,
    ) -> Vec<(&'a str, TensorView<'a>)> {
        let mut given = self.inputs_with_target(samples, timesteps);
        let vectors = [
            ("weight", &pairs.weight),
            ("reward_scale", &pairs.reward_scale),
            ("label", &pairs.label),
            ("score_gap", &pairs.score_gap),
            ("precision", &pairs.precision),
            ("old_errors", &pairs.old_errors),
            ("advantage", &pairs.advantage),
            ("batch_means", &pairs.batch_means),
            ("reference_errors", &reference.errors),
        ];
        for (name, values) in vectors {
            if !values.is_empty() {
                given.push((name, TensorView::f32(&[values.len()], values)));
            }
        }
        if !reference.predictions.is_empty() {
            given.push(("reference_prediction", self.latents(&reference.predictions)));
        }
        given
    }

    /// Runs on `given` and sets of weights, the tensors of each under its names.
    fn run<'a>(
        &mut self,
        mut given: Vec<(&'a str, TensorView<'a>)>,
        sets: &[(&'a [String], Weights<'a>)],
    ) -> Result<()> {
        let mut on_device = Vec::new();
        for (names, weights) in sets {
            match weights {
                Weights::Host(set) => given.extend(views(names, set)),
                Weights::Device(set) => {
                    on_device.extend(names.iter().map(String::as_str).zip(set.tensors()));
                }
            }
        }
        self.binding.run_beside(&mut self.session, &given, &on_device)
    }

    fn values(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self
            .binding
            .output(name)?
            .to_tensor()
            .into_f32(name)?
            .into_raw_vec_and_offset()
            .0)
    }
}

fn timestep_tensor(timesteps: &[Timestep], dtype: DType) -> Tensor {
    let shape = [timesteps.len()];
    if dtype.is_float() {
        Tensor::f32(&shape, timesteps.iter().map(|t| t.0 as f32).collect())
    } else {
        Tensor::i64(&shape, timesteps.iter().map(|t| i64::from(t.0)).collect())
    }
}

/// Views of a parameter set under prefixed names.
fn views<'a>(names: &'a [String], set: &'a ParamSet) -> impl Iterator<Item = (&'a str, TensorView<'a>)> {
    names.iter().enumerate().map(|(i, name)| {
        let view = ArrayViewD::from_shape(IxDyn(set.layout().shape(i)), set.tensor(i));
        (
            name.as_str(),
            TensorView::F32(view.expect("a set's tensors have the shapes of its layout")),
        )
    })
}

fn prefixed(layout: &Layout, prefix: &str) -> Vec<String> {
    layout.names().iter().map(|n| format!("{prefix}{n}")).collect()
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
            loss_scale: (options.mixed_precision != MixedPrecision::No).then_some(1.0),
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
        gradient_of(&self.sessions[self.current].step, name)
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
        anchor.and_then(|anchor| gradient_of(anchor, name))
    }
}

/// The scale of the loss as an input, where there is one.
fn scale_input(scale: &Option<f32>) -> Option<(&'static str, TensorView<'_>)> {
    let view = |scale| TensorView::f32(&[], std::slice::from_ref(scale));
    scale.as_ref().map(|scale| (LOSS_SCALE, view(scale)))
}

/// `mean (a − b)²`.
pub fn mean_square(a: &[f32], b: &[f32]) -> f32 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / a.len() as f64) as f32
}

/// A gradient in the session's own buffer.
fn gradient_of<'a>(runner: &'a Runner, name: &str) -> Option<&'a [f32]> {
    match runner.binding.output(&format!("{GRADIENT}{name}")).ok()? {
        TensorView::F32(view) => view.to_slice(),
        _ => None,
    }
}
