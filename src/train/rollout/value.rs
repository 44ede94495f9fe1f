//! DPOK's value network (arXiv 2305.16381): what reward to expect at a step, from the noisy latents, the prompt and the step.
//!
//! ```text
//! x  = [latents, mean of the text's hidden states]
//! h  = ReLU(g_k ∘ (W·x + b))        three times, 256 wide; g_k a learnt gain per unit and step k
//! V  = W·h + b
//! ```
//!
//! It is an ONNX graph like the denoiser's, differentiated by the same engine and fitted by AdamW to the rewards of the round.

use std::sync::Arc;

use crate::Result;
use crate::autodiff::gradients;
use crate::config::optimizer::OptimizerConfig;
use crate::onnx::{Attrs, Graph, TensorType, ValueId, write};
use crate::optim::{AdamW, Gradient, Term, clip_factor};
use crate::params::{Layout, ParamSet};
use crate::rng::{PairId, Purpose, Streams, Visit};
use crate::runtime::{Binding, Session, SessionOptions, TensorView};
use crate::tensor::{DType, Tensor};

const WIDTH: usize = 256;
const LAYERS: usize = 3;
/// Samples of a fitting step, as published.
const BATCH: usize = 256;
/// Fitting steps of a round, as published.
const STEPS: u64 = 5;
/// As published.
const LEARNING_RATE: f64 = 1e-4;
/// Opset of the graph: every operator in it has the form it has had since.
const OPSET: i64 = 18;

/// Samples by what the network sees of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct States {
    /// Latents and text beside each other, flat.
    pub inputs: Vec<f32>,
    /// Which step of the trajectory.
    pub steps: Vec<i64>,
    /// Reward of the image.
    pub rewards: Vec<f32>,
}

/// The network with its optimizer.
pub struct ValueNetwork {
    session: Session,
    binding: Binding,
    inputs: usize,
    weights: ParamSet,
    adamw: AdamW,
}

/// Everything of a [`ValueNetwork`] that moves.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueState {
    /// Weights, first and second moment.
    pub sets: [ParamSet; 3],
    /// Fitting steps taken.
    pub steps: u64,
}

impl ValueNetwork {
    /// A network that has learnt nothing, for `latent` + `text` numbers and `steps` steps of a trajectory.
    ///
    /// # Errors
    /// ONNX Runtime does not load it.
    pub fn new(
        latent: usize,
        text: usize,
        steps: usize,
        streams: &Streams,
        options: &SessionOptions,
    ) -> Result<Self> {
        let inputs = latent + text;
        let layout = layout(inputs, steps)?;
        let graph = graph(inputs, &layout)?;
        let session = Session::from_bytes(&write::to_bytes(&graph, None)?, None, options)?;
        let optimizer = OptimizerConfig {
            lr: LEARNING_RATE,
            weight_decay: 0.0,
            ..OptimizerConfig::default()
        };
        Ok(Self {
            binding: Binding::new(&session)?,
            session,
            inputs,
            weights: initial(&layout, streams),
            adamw: AdamW::new(&optimizer, &layout),
        })
    }

    /// Names and shapes of the weights.
    pub fn layout(&self) -> &Arc<Layout> {
        self.weights.layout()
    }

    /// For a checkpoint.
    pub fn state(&self) -> ValueState {
        let (first, second) = self.adamw.moments();
        ValueState {
            sets: [self.weights.clone(), first.clone(), second.clone()],
            steps: self.adamw.steps(),
        }
    }

    /// Goes on from a checkpoint.
    ///
    /// # Errors
    /// It is of another network.
    pub fn restore(&mut self, state: ValueState) -> Result<()> {
        let [weights, first, second] = state.sets;
        self.adamw.restore(state.steps, first, second)?;
        self.weights = weights;
        Ok(())
    }

    /// Fits the network to a round's rewards. Returns the mean squared error of the last fitting step.
    ///
    /// # Errors
    /// A run fails.
    pub fn fit(&mut self, states: &States, round: u64, streams: &Streams) -> Result<f64> {
        let mut loss = 0.0;
        for step in 0..STEPS {
            let mut stream = streams.pair(Purpose::ValueBatch, PairId(round), Visit(step));
            let chosen: Vec<usize> = (0..BATCH)
                .map(|_| stream.below(states.steps.len() as u64) as usize)
                .collect();
            loss = f64::from(self.run(states, &chosen)?.1);
            let term = Term::by_name(self.weights.layout(), 1.0, |name| {
                match self.binding.output(&format!("grad.{name}")).ok()? {
                    TensorView::F32(view) => view.to_slice(),
                    _ => None,
                }
            })?;
            let gradient = Gradient::of(term);
            let clip = clip_factor(gradient.norms().total, Some(1.0));
            self.adamw
                .step(&mut self.weights, &gradient, clip, LEARNING_RATE, None);
        }
        Ok(loss)
    }

    /// What reward the network expects of each state.
    ///
    /// # Errors
    /// A run fails.
    pub fn expect(&mut self, states: &States) -> Result<Vec<f64>> {
        let all: Vec<usize> = (0..states.steps.len()).collect();
        let mut expected = Vec::with_capacity(all.len());
        for part in all.chunks(BATCH) {
            let mut chosen = part.to_vec();
            chosen.resize(BATCH, part[0]);
            let (values, _) = self.run(states, &chosen)?;
            expected.extend(values[..part.len()].iter().map(|value| f64::from(*value)));
        }
        Ok(expected)
    }

    /// Values of the chosen states, and their mean squared distance from the rewards.
    fn run(&mut self, states: &States, chosen: &[usize]) -> Result<(Vec<f32>, f32)> {
        let width = self.inputs;
        let rows = chosen
            .iter()
            .flat_map(|i| &states.inputs[i * width..(i + 1) * width]);
        let rows: Vec<f32> = rows.copied().collect();
        let rewards: Vec<f32> = chosen.iter().map(|i| states.rewards[*i]).collect();
        let steps = Tensor::i64(&[BATCH], chosen.iter().map(|i| states.steps[*i]).collect());
        let layout = self.weights.layout().clone();
        let mut given: Vec<(&str, TensorView)> = vec![
            ("states", TensorView::f32(&[BATCH, width], &rows)),
            ("steps", (&steps).into()),
            ("rewards", TensorView::f32(&[BATCH], &rewards)),
        ];
        for (index, name) in layout.names().iter().enumerate() {
            given.push((
                name,
                TensorView::f32(layout.shape(index), self.weights.tensor(index)),
            ));
        }
        self.binding.run(&mut self.session, &given)?;
        let values = self.binding.output("values")?.to_tensor().into_f32("values")?;
        Ok((values.into_raw_vec_and_offset().0, self.binding.scalar("loss")?))
    }
}

/// Width of what layer `layer` reads.
fn width_before(layer: usize, inputs: usize) -> usize {
    if layer == 0 { inputs } else { WIDTH }
}

fn layout(inputs: usize, steps: usize) -> Result<Arc<Layout>> {
    let hidden = (0..LAYERS).flat_map(|layer| {
        [
            (
                format!("layer{layer}.weight"),
                vec![width_before(layer, inputs), WIDTH],
            ),
            (format!("layer{layer}.bias"), vec![WIDTH]),
            (format!("layer{layer}.gain"), vec![steps, WIDTH]),
        ]
    });
    let last = [
        ("last.weight".to_owned(), vec![WIDTH, 1]),
        ("last.bias".to_owned(), vec![1]),
    ];
    Layout::new(hidden.chain(last))
}

/// PyTorch's defaults for linear layers: uniform within 1/√(width before) either side of 0. Gains are 1.
fn initial(layout: &Arc<Layout>, streams: &Streams) -> ParamSet {
    let mut weights = ParamSet::zeros(layout);
    for (index, name) in layout.names().iter().enumerate() {
        let mut stream = streams.named(Purpose::AdapterInit, &format!("value.{name}"));
        if name.ends_with(".gain") {
            weights.tensor_mut(index).fill(1.0);
            continue;
        }
        let own_weight = name.replace(".bias", ".weight");
        let before = layout
            .index_of(&own_weight)
            .map_or(1, |weight| layout.shape(weight)[0]);
        let bound = 1.0 / (before as f64).sqrt();
        weights
            .tensor_mut(index)
            .fill_with(|| ((2.0 * stream.unit() - 1.0) * bound) as f32);
    }
    weights
}

/// Values, loss and gradients for [`BATCH`] states.
fn graph(inputs: usize, layout: &Layout) -> Result<Graph> {
    let mut g = Graph::new("ortdpo_value", OPSET);
    let mut x = g.add_input("states", TensorType::new(DType::F32, [BATCH, inputs]));
    let steps = g.add_input("steps", TensorType::new(DType::I64, [BATCH]));
    let rewards = g.add_input("rewards", TensorType::new(DType::F32, [BATCH]));
    let weights: Vec<ValueId> = layout
        .names()
        .iter()
        .enumerate()
        .map(|(index, name)| g.add_input(name, TensorType::new(DType::F32, layout.shape(index).to_vec())))
        .collect();
    let weight = |name: String| weights[layout.index_of(&name).expect("the layout lists every weight")];
    for layer in 0..LAYERS {
        let product = g.matmul(x, weight(format!("layer{layer}.weight")))?;
        let sum = g.add(product, weight(format!("layer{layer}.bias")))?;
        let gain = weight(format!("layer{layer}.gain"));
        let gain = g.op("Gather", &[gain, steps], Attrs::new().int("axis", 0))?;
        let scaled = g.mul(sum, gain)?;
        x = g.unary("Relu", scaled)?;
    }
    let product = g.matmul(x, weight("last.weight".into()))?;
    let sum = g.add(product, weight("last.bias".into()))?;
    let values = g.reshape(sum, &[BATCH])?;
    let off = g.sub(values, rewards)?;
    let square = g.mul(off, off)?;
    let loss = g.reduce("ReduceMean", square, &[0], false)?;
    let one = g.scalar_like(loss, 1.0);
    let found = gradients(&mut g, &[(loss, one)], &weights)?;
    let mut outputs = vec![(values, "values".to_owned()), (loss, "loss".to_owned())];
    for (name, gradient) in layout.names().iter().zip(found) {
        outputs.push((
            gradient.expect("every weight moves the value"),
            format!("grad.{name}"),
        ));
    }
    for (value, name) in outputs {
        let value = g.as_output(value, &name)?;
        g.outputs.push(value);
    }
    g.prune();
    Ok(g)
}
