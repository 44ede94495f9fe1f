//! The graphs of a training run, before any session is made of them.

use std::sync::Arc;

use super::engine::EngineOptions;
use super::weights::weights_of;
use crate::autodiff::{AttentionGradient, ConvInputGradient, DeriveOptions, Recompute};
use crate::config::runtime::MixedPrecision;
use crate::onnx::{Graph, LARGE_MATRIX, Model, drop_ones, expand_group_norms, halves, raise, single_around};
use crate::params::{Layout, ParamSet};
use crate::pipeline::denoiser::{self, Geometry};
use crate::pipeline::weight_copies;
use crate::runtime::{BFLOAT16_OPSET, ExecutionProvider, SessionOptions, computes_in_bfloat16};
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
            step: source.as_run(step.graph)?,
            batch: batch.map(|b| source.as_run(b.graph)).transpose()?,
            errors: source.as_run(ErrorGraph::build(&forward, &forward_trainables)?.graph)?,
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
        let precision = self.options.mixed_precision;
        match precision {
            MixedPrecision::No => halves::compute_in(graph, DType::F32),
            MixedPrecision::Fp16 => borders::in_single(&stored_in(graph, &[DType::F16], precision, model)?),
            MixedPrecision::Bf16 => {
                let graph = stored_in(graph, &[DType::F16, DType::BF16], precision, model)?;
                let mut graph = halves::compute_in(graph, DType::BF16)?;
                for input in ["timestep", "time_ids"] {
                    halves::keep_single(&mut graph, input);
                }
                borders::in_single(&raise(graph, BFLOAT16_OPSET)?)
            }
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
            loss_scale: options.mixed_precision.scales_loss(),
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

    /// A graph in the form that sessions get.
    fn as_run(&self, graph: Graph) -> Result<Graph> {
        let mut graph = expand_group_norms(graph)?;
        halves::cast_where_used(&mut graph)?;
        if self.options.mixed_precision == MixedPrecision::Bf16 {
            drop_ones(&mut graph);
            let ep = self.options.session.ep;
            single_around(&mut graph, DType::BF16, |node| computes_in_bfloat16(ep, node))?;
        }
        Ok(graph)
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
        Ok((self.as_run(anchor.graph)?, geometry))
    }
}

/// `graph`, if it was exported in one of `dtypes`.
fn stored_in(graph: Graph, dtypes: &[DType], precision: MixedPrecision, model: &Model) -> Result<Graph> {
    let found = graph.outputs.first().map(|v| graph.dtype(*v));
    match found {
        Some(found) if dtypes.contains(&found) => Ok(graph),
        _ => Err(Error::bad(
            "runtime.mixed_precision",
            format!(
                "is {}, but {} computes in {}",
                precision.name(),
                model.path.display(),
                found.map_or_else(String::new, |d| d.to_string())
            ),
            "Export the pipeline in half precision (scripts/export_sd.py --fp16), or leave mixed_precision at no.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use ndarray::{ArrayD, IxDyn};

    use super::*;
    use crate::objective::Dpo;
    use crate::onnx::Constant;
    use crate::pipeline::network::{map_weights, session_over};
    use crate::rng::{Purpose, Streams};
    use crate::runtime::TensorView;
    use crate::tensor::Tensor;
    use crate::traingraph::Reference;

    fn step(model: &Model, mixed_precision: MixedPrecision, recompute: Recompute) -> Graph {
        let options = EngineOptions {
            model,
            geometry: Geometry {
                samples: 2,
                latent: [4, 8, 8],
                text: [5, 6],
                added: None,
            },
            other_sizes: &[],
            guidance: None,
            pairs: 1,
            whole_batch: true,
            objective: &Dpo::default(),
            reference: Reference::Input,
            anchor_samples: None,
            copies: Default::default(),
            recompute,
            mixed_precision,
            gradients_on_device: false,
            session: SessionOptions::default(),
        };
        let targets = ["to_q", "to_out.0", "conv1", "proj_in"].map(str::to_owned);
        let graphs =
            EngineGraphs::derive(&options, false, |g| Trainables::lora(g, &targets, 2, 2.0)).unwrap();
        graphs.step
    }

    /// All outputs, given the same numbers for the same inputs.
    fn run(graph: &Graph) -> Vec<(String, Vec<f32>)> {
        let weights = map_weights(graph).unwrap();
        let mut session = session_over(graph, Path::new("."), &weights, &SessionOptions::default()).unwrap();
        let inputs: Vec<(String, Tensor)> = graph
            .inputs
            .iter()
            .map(|v| {
                let (name, ty) = (graph.name(*v), graph.ty(*v));
                let shape = IxDyn(&ty.shape);
                let tensor = match ty.dtype {
                    DType::F32 => {
                        let mut values = vec![0.0; ty.len()];
                        Streams::new(7)
                            .named(Purpose::AdapterInit, &name)
                            .fill_normal(&mut values);
                        Tensor::F32(ArrayD::from_shape_vec(shape, values).unwrap())
                    }
                    dtype => {
                        // Timesteps.
                        Tensor::from_integers(&name, ArrayD::from_elem(shape, 500), dtype).unwrap()
                    }
                };
                (name, tensor)
            })
            .collect();
        let given: Vec<_> = inputs
            .iter()
            .map(|(name, t)| (&**name, TensorView::from(t)))
            .collect();
        let mut outputs = session.run(&given).unwrap();
        let names = graph.outputs.iter().map(|v| graph.name(*v));
        names
            .map(|name| {
                let values = outputs.take(&name).unwrap().into_f32(&name).unwrap();
                (name, values.into_raw_vec_and_offset().0)
            })
            .collect()
    }

    /// Gives `graph` the model's constants as `other` has them, which rounded small ones to bfloat16.
    fn with_constants_of(mut graph: Graph, other: &Graph) -> Graph {
        let by_name: HashMap<String, Constant> = other
            .constants
            .iter()
            .map(|(v, constant)| (other.name(*v), constant.clone()))
            .collect();
        let named: Vec<_> = graph.constants.keys().map(|v| (*v, graph.name(*v))).collect();
        for (v, name) in named.into_iter().filter(|(_, name)| !name.starts_with('_')) {
            if let Some(constant) = by_name.get(&name).filter(|c| c.shape == graph.shape(v)) {
                graph.constants.insert(v, constant.clone());
            }
        }
        graph
    }

    /// With every rounding to bfloat16 taken out, nothing is left between the two.
    #[test]
    fn bfloat16_is_single_precision_with_rounding() {
        let half = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/half");
        for (export, recompute) in [
            ("legacy17.onnx", Recompute::None),
            ("legacy17.onnx", Recompute::Block),
            ("dynamo20.onnx", Recompute::NormAttention),
        ] {
            let model = Model::read(half.join(export)).unwrap();
            let single = step(&model, MixedPrecision::No, recompute);
            let rounding = step(&model, MixedPrecision::Bf16, recompute);
            let in_bf16 = rounding.nodes.iter().flat_map(|n| n.outputs.iter().flatten());
            assert!(in_bf16.filter(|v| rounding.dtype(**v) == DType::BF16).count() > 500);
            let mut wide = halves::compute_in(rounding, DType::F32).unwrap();
            halves::cast_where_used(&mut wide).unwrap();
            let single = with_constants_of(single, &wide);
            let (found, wanted) = (run(&wide), run(&single));
            assert_eq!(found.len(), wanted.len());
            for ((name, found), (other, wanted)) in found.iter().zip(&wanted) {
                assert_eq!(name, other);
                let size: f32 = wanted.iter().map(|w| w * w).sum::<f32>().sqrt();
                let distance: f32 = found
                    .iter()
                    .zip(wanted)
                    .map(|(f, w)| (f - w) * (f - w))
                    .sum::<f32>()
                    .sqrt();
                assert!(
                    distance <= 5e-3 * size,
                    "{export} {recompute:?} {name}: {distance} of {size}"
                );
            }
        }
    }
}
