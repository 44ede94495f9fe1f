//! A session with its buffers, and what it is fed by name.

use std::path::Path;

use ndarray::{ArrayViewD, IxDyn};

use super::{PairInputs, ReferenceValues, Samples};
use crate::Result;
use crate::device::DeviceSet;
use crate::diffusion::Timestep;
use crate::onnx::Graph;
use crate::params::{Layout, ParamSet};
use crate::pipeline::denoiser::Geometry;
use crate::pipeline::micro::TIME_IDS;
use crate::pipeline::network::session_over;
use crate::runtime::{Binding, Session, SessionOptions, SharedWeights, TensorView};
use crate::tensor::{DType, Tensor};
use crate::traingraph::step::{GRADIENT, LOSS_SCALE};

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
pub(super) struct Runner {
    session: Session,
    pub binding: Binding,
    pub geometry: Geometry,
    pub timestep_dtype: DType,
}

/// What is common to the runners of an engine.
pub(super) struct Built<'a> {
    pub folder: &'a Path,
    pub weights: &'a SharedWeights,
    pub session: &'a SessionOptions,
    pub takes_turns: bool,
    pub gradients: Option<&'a DeviceSet>,
}

impl Runner {
    pub fn new(graph: &Graph, geometry: Geometry, built: &Built) -> Result<Self> {
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
    pub fn inputs<'a>(&self, samples: &'a Samples, timesteps: &'a Tensor) -> Vec<(&'a str, TensorView<'a>)> {
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
    pub fn latents<'a>(&self, values: &'a [f32]) -> TensorView<'a> {
        let [c, h, w] = self.geometry.latent;
        TensorView::f32(&[values.len() / self.geometry.latent_len(), c, h, w], values)
    }

    /// The samples with their targets as named inputs.
    pub fn inputs_with_target<'a>(
        &self,
        samples: &'a Samples,
        timesteps: &'a Tensor,
    ) -> Vec<(&'a str, TensorView<'a>)> {
        let mut given = self.inputs(samples, timesteps);
        given.push(("target", self.latents(&samples.target)));
        given
    }

    /// What a step takes beside the trainable tensors.
    pub fn step_inputs<'a>(
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
    pub fn run<'a>(
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

    /// A gradient in the session's own buffer.
    pub fn gradient(&self, name: &str) -> Option<&[f32]> {
        match self.binding.output(&format!("{GRADIENT}{name}")).ok()? {
            TensorView::F32(view) => view.to_slice(),
            _ => None,
        }
    }

    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self
            .binding
            .output(name)?
            .to_tensor()
            .into_f32(name)?
            .into_raw_vec_and_offset()
            .0)
    }
}

pub(super) fn timestep_tensor(timesteps: &[Timestep], dtype: DType) -> Tensor {
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

pub(super) fn prefixed(layout: &Layout, prefix: &str) -> Vec<String> {
    layout.names().iter().map(|n| format!("{prefix}{n}")).collect()
}

/// The scale of the loss as an input, where there is one.
pub(super) fn scale_input(scale: &Option<f32>) -> Option<(&'static str, TensorView<'_>)> {
    let view = |scale| TensorView::f32(&[], std::slice::from_ref(scale));
    scale.as_ref().map(|scale| (LOSS_SCALE, view(scale)))
}
