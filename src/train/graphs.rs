//! The graphs of a training run, before any session is made of them.

use std::sync::Arc;

use super::engine::EngineOptions;
use super::weights::weights_of;
use crate::autodiff::{AttentionGradient, ConvInputGradient, DeriveOptions, Recompute};
use crate::config::runtime::MixedPrecision;
use crate::onnx::{Graph, LARGE_MATRIX, Model, expand_group_norms, halves};
use crate::params::{Layout, ParamSet};
use crate::pipeline::denoiser::{self, Geometry};
use crate::pipeline::weight_copies;
use crate::runtime::{ExecutionProvider, SessionOptions};
use crate::tensor::DType;
use crate::traingraph::{
    AnchorGraph, BatchGraph, ErrorGraph, StepGraph, StepShape, Trainables, attention, borders,
};
use crate::{Error, Result};

/// What sessions are made of; see [`super::engine`] for what each graph is for.
pub struct EngineGraphs {
    /// Loss, errors and gradients.
    pub step: Graph,
    /// Means over the optimizer batch, where the loss uses any and a batch is computed in parts.
    pub batch: Option<Graph>,
    /// Forward pass.
    pub errors: Graph,
    /// The `kl` anchor and the sizes of its batch.
    pub anchor: Option<(Graph, Geometry)>,
    /// The denoiser, whose constants are the weights that all graphs share.
    pub denoiser: Graph,
    /// What is trained.
    pub trainables: Trainables,
    /// Names and shapes of what is trained.
    pub layout: Arc<Layout>,
    /// In full fine-tuning, the trained weights as they are in the model.
    pub model_weights: Option<ParamSet>,
    /// Whether sessions keep second copies of the weights.
    pub copies: bool,
    /// How sessions over these graphs are built.
    pub session: SessionOptions,
}

impl EngineGraphs {
    /// Derives the graphs. `choose` picks what is trained on the static denoiser.
    ///
    /// # Errors
    /// The model is no denoiser, or has an operator without gradient on the way to what is trained.
    pub fn derive(
        options: &EngineOptions,
        split_shared: bool,
        choose: impl Fn(&Graph) -> Result<Trainables>,
    ) -> Result<Self> {
        let source = Source {
            options,
            split_shared,
        };
        let graph = source.denoiser(&options.geometry)?;
        let forward = attention::fused_for(graph.clone(), options.session.ep)?;
        // Values are numbered per graph.
        let forward_trainables = choose(&forward)?;
        let graph = source.differentiable(graph)?;
        let trainables = choose(&graph)?;
        let tensors = trainables.tensors.iter();
        let layout = Layout::new(tensors.map(|t| (t.name.clone(), t.shape.clone())))?;
        let model_weights = weights_of(&graph, &trainables, &layout)?;
        let given = SessionOptions {
            share_buffers: false,
            ..options.session.clone()
        };
        let (copies, session) = weight_copies::apply(options.copies, &graph, given);
        let shape = source.shape(copies);
        let step = StepGraph::build(&graph, &trainables, options.objective, shape, options.reference)?;
        let batch = match options.whole_batch {
            true => None,
            false => BatchGraph::build(&forward, &forward_trainables, options.objective, shape)?,
        };
        let anchor = options
            .anchor_samples
            .map(|samples| source.anchor(samples, shape, &choose));
        Ok(Self {
            step: as_run(step.graph)?,
            batch: batch.map(|b| as_run(b.graph)).transpose()?,
            errors: as_run(ErrorGraph::build(&forward, &forward_trainables)?.graph)?,
            anchor: anchor.transpose()?,
            denoiser: graph,
            trainables,
            layout,
            model_weights,
            copies,
            session,
        })
    }

    /// All graphs that sessions are made of, in the order in which a step runs them.
    pub fn in_turn(&self) -> impl Iterator<Item = &Graph> {
        let anchor = self.anchor.as_ref().map(|(graph, _)| graph);
        [&self.errors]
            .into_iter()
            .chain(&self.batch)
            .chain([&self.step])
            .chain(anchor)
    }
}

/// Where graphs come from, and in which forms.
struct Source<'a> {
    options: &'a EngineOptions<'a>,
    split_shared: bool,
}

impl Source<'_> {
    /// The static denoiser, computing in the precision that was asked for.
    fn denoiser(&self, geometry: &Geometry) -> Result<Graph> {
        let model = self.options.model;
        let graph = denoiser::load(model, geometry, self.split_shared)?;
        match self.options.mixed_precision {
            MixedPrecision::No => halves::widen(graph),
            MixedPrecision::Fp16 => borders::in_single(&stored_in(graph, DType::F16, model)?),
        }
    }

    /// The denoiser as a backward pass goes through it. One operator for attention keeps no probabilities: its backward pass computes
    /// them again, which on the CPU is faster than to read them from memory where they are many.
    fn differentiable(&self, graph: Graph) -> Result<Graph> {
        let ep = self.options.session.ep;
        let is_cheap = ep == ExecutionProvider::Cpu && self.options.mixed_precision == MixedPrecision::No;
        match self.options.recompute {
            Recompute::None if !is_cheap => Ok(graph),
            Recompute::None => attention::fused_above(graph, LARGE_MATRIX),
            _ => attention::in_chunks(attention::fused_for(graph, ep)?),
        }
    }

    /// Size and form of a step; `copies` says whether sessions keep second copies of the weights.
    fn shape(&self, copies: bool) -> StepShape {
        let options = self.options;
        StepShape {
            pairs: options.pairs,
            guidance: options.guidance,
            whole_batch: options.whole_batch,
            loss_scale: options.mixed_precision != MixedPrecision::No,
            derive: DeriveOptions {
                conv_input: match copies {
                    true => ConvInputGradient::Flipped,
                    false => ConvInputGradient::Transpose,
                },
                attention: match options.session.ep {
                    ExecutionProvider::Cpu => AttentionGradient::Fused,
                    _ => AttentionGradient::Chunks,
                },
                recompute: options.recompute,
            },
        }
    }

    /// The `kl` anchor on a batch of its own size.
    fn anchor(
        &self,
        samples: usize,
        shape: StepShape,
        choose: impl Fn(&Graph) -> Result<Trainables>,
    ) -> Result<(Graph, Geometry)> {
        let geometry = self.options.geometry.with_samples(samples);
        let graph = self.differentiable(self.denoiser(&geometry)?)?;
        let trainables = choose(&graph)?;
        let anchor = AnchorGraph::build(&graph, &trainables, shape.loss_scale, shape.derive)?;
        Ok((as_run(anchor.graph)?, geometry))
    }
}

/// A graph in the form that sessions get.
fn as_run(graph: Graph) -> Result<Graph> {
    let mut graph = expand_group_norms(graph)?;
    halves::cast_where_used(&mut graph)?;
    Ok(graph)
}

/// `graph`, if it computes in `dtype`.
fn stored_in(graph: Graph, dtype: DType, model: &Model) -> Result<Graph> {
    let found = graph.outputs.first().map(|v| graph.dtype(*v));
    match found {
        Some(found) if found == dtype => Ok(graph),
        _ => Err(Error::bad(
            "runtime.mixed_precision",
            format!(
                "is fp16, but {} computes in {}",
                model.path.display(),
                found.map_or_else(String::new, |d| d.to_string())
            ),
            "Export the pipeline in half precision (scripts/export_sd.py --fp16), or leave mixed_precision at no.",
        )),
    }
}
