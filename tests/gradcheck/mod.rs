//! Checks derived gradients against central differences.
//!
//! For a graph `y = f(x)` with random cotangents `c`, the derived graph gives `g = ∂⟨c, y⟩/∂x`. Along random directions
//! `d` the number `⟨g, d⟩` is compared with the fourth-order central difference of `t ↦ ⟨c, f(x + t·d)⟩`, added up in
//! `f64`. Graphs run in `f64` where ONNX Runtime's CPU has the kernels, and in `f32` elsewhere.
#![allow(dead_code)]

use ndarray::{ArrayD, IxDyn};
use ortdpo::autodiff::{Wrt, cotangent_name, derive, gradient_name};
use ortdpo::onnx::{Graph, TensorType, ValueId};
use ortdpo::runtime::{self, OptLevel, Session, SessionOptions};
use ortdpo::tensor::{DType, Tensor};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How exact a check is.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Longest step along a direction whose elements are about 1.
    pub step: f64,
    /// Largest difference allowed, as a part of the gradient's norm along the direction.
    pub tolerance: f64,
}

impl Settings {
    /// For graphs in `f64`: rounding is no concern, so the step can be short.
    pub const F64: Self = Self {
        step: 1.0 / 1024.0,
        tolerance: 1e-6,
    };
    /// For graphs in `f32`: a long step keeps rounding small against the difference.
    pub const F32: Self = Self {
        step: 1.0 / 64.0,
        tolerance: 3e-3,
    };

    /// What suits elements of `dtype`.
    pub fn of(dtype: DType) -> Self {
        if dtype == DType::F64 { Self::F64 } else { Self::F32 }
    }
}

/// Random directions per input.
const DIRECTIONS: usize = 2;

/// Why a check did not come to a verdict of success.
#[derive(Debug)]
pub enum Failure {
    /// Deriving or running went wrong.
    Error(ortdpo::Error),
    /// The gradient is wrong (or the point lies on a kink).
    Mismatch(String),
}

impl From<ortdpo::Error> for Failure {
    fn from(error: ortdpo::Error) -> Self {
        Self::Error(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Error(e) => write!(f, "{e}"),
            Self::Mismatch(text) => f.write_str(text),
        }
    }
}

/// Tensors by input name.
pub type Feeds = Vec<(String, Tensor)>;

/// Loads ONNX Runtime once.
pub fn load_runtime() {
    runtime::init(&Default::default()).expect("ONNX Runtime is set up (run scripts/setup)");
}

/// A session on `graph` with one thread and little optimisation, which would only cost time here.
pub fn session(graph: &Graph) -> ortdpo::Result<Session> {
    let bytes = ortdpo::onnx::write::to_bytes(graph, None)?;
    let options = SessionOptions {
        threads: 1,
        optimization: OptLevel::Basic,
        ..Default::default()
    };
    Session::from_bytes(&bytes, None, &options)
}

/// Random numbers that depend on the name of a check alone.
pub fn rng(name: &str) -> ChaCha8Rng {
    let mut seed = [0; 32];
    for (i, byte) in name.bytes().enumerate() {
        seed[i % 32] ^= byte.rotate_left((i / 32) as u32);
    }
    ChaCha8Rng::from_seed(seed)
}

/// Checks the gradients of every float input of `graph` that reaches a float output, at the point `feeds`.
pub fn check(
    graph: &Graph,
    feeds: &Feeds,
    settings: Settings,
    rng: &mut ChaCha8Rng,
) -> Result<usize, Failure> {
    let wrt = reaching_inputs(graph);
    if wrt.is_empty() {
        return Ok(0);
    }
    let derived = derive(graph.clone(), &Wrt::Named(wrt.clone()))?.graph;
    let mut forward = session(graph)?;
    let mut backward = session(&derived)?;

    let outputs: Vec<ValueId> = graph
        .outputs
        .iter()
        .copied()
        .filter(|v| graph.dtype(*v).is_float())
        .collect();
    let mut at_point = forward.run(&borrowed(feeds))?;
    let mut cotangents = Vec::with_capacity(outputs.len());
    // The size of what is added up: the rounding of a sum is that of its terms.
    let mut size = 0.0;
    for y in outputs {
        let (name, ty) = (graph.name(y), graph.ty(y));
        let found = numbers(&at_point.take(&name)?);
        // What is infinite (a mask) or not a number cannot be compared with its neighbours.
        let random = numbers(&gaussian(ty, rng)).into_iter().zip(&found);
        let weights: Vec<f64> = random.map(|(c, y)| if y.is_finite() { c } else { 0.0 }).collect();
        let terms = weights.iter().zip(&found).filter(|(c, _)| **c != 0.0);
        size += terms.map(|(c, y)| (c * y).abs()).sum::<f64>();
        cotangents.push((name, tensor_of(ty.dtype, &ty.shape, weights)));
    }
    let weights: Vec<f64> = cotangents.iter().flat_map(|(_, c)| numbers(c)).collect();
    let value = |forward: &mut Session, feeds: &Feeds| -> Result<Vec<f64>, Failure> {
        let mut found = forward.run(&borrowed(feeds))?;
        let mut all = Vec::with_capacity(weights.len());
        for (name, _) in &cotangents {
            all.extend(numbers(&found.take(name)?));
        }
        Ok(all)
    };

    let mut all = feeds.clone();
    all.extend(
        cotangents
            .iter()
            .map(|(name, c)| (cotangent_name(name), c.clone())),
    );
    let mut found = backward.run(&borrowed(&all))?;
    for name in &wrt {
        let gradient = numbers(&found.take(&gradient_name(name))?);
        for _ in 0..DIRECTIONS {
            let line = Line::new(feeds, name, settings.step, rng);
            let predicted = dot(&gradient, &line.direction);
            let norm = gradient
                .iter()
                .zip(&line.direction)
                .map(|(g, d)| (g * d).powi(2))
                .sum::<f64>()
                .sqrt();
            let mut at = |t: f64| value(&mut forward, &line.at(t));
            let inner = weighted_difference(&weights, &at(1.0)?, &at(-1.0)?);
            let outer = weighted_difference(&weights, &at(2.0)?, &at(-2.0)?);
            let measured = (8.0 * inner - outer) / (12.0 * settings.step);
            let scale = norm.max(measured.abs());
            let difference = (predicted - measured).abs();
            let noise = (rounding(find(feeds, name).dtype()) / settings.step).min(LARGEST_NOISE) * size;
            if difference > settings.tolerance * scale + noise || !difference.is_finite() {
                return Err(Failure::Mismatch(format!(
                    "gradient of `{name}` {}: along a direction it says {predicted:.9}, differences say {measured:.9} \
                     (off by {:.1e} of {scale:.3e})",
                    graph.ty(graph.input(name)?),
                    difference / scale,
                )));
            }
        }
    }
    Ok(wrt.len())
}

/// Largest part of the outputs' size that may pass for noise: a step so short that noise hides everything checks nothing.
const LARGEST_NOISE: f64 = 1e-4;

/// Relative rounding of sums of elements of `dtype`. Where a gradient is zero, differences are this much over the step.
fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-15,
        DType::F32 => 1e-6,
        _ => 1e-2,
    }
}

/// Names of the float inputs through which a gradient can flow to a float output.
pub fn reaching_inputs(graph: &Graph) -> Vec<String> {
    let needed = ortdpo::autodiff::reaching(graph, &graph.outputs);
    let reaches = |v: &&ValueId| graph.dtype(**v).is_float() && needed[graph.index(**v)];
    graph
        .inputs
        .iter()
        .filter(reaches)
        .map(|v| graph.name(*v))
        .collect()
}

/// A line through a point, along which one input changes.
struct Line<'a> {
    feeds: &'a Feeds,
    name: &'a str,
    step: f64,
    direction: Vec<f64>,
}

impl<'a> Line<'a> {
    /// Directions with elements between ½ and 1 in size, so that no element goes unseen. Steps are powers of two times
    /// numbers of few digits, so that `f32` holds the points almost exactly.
    fn new(feeds: &'a Feeds, name: &'a str, step: f64, rng: &mut ChaCha8Rng) -> Self {
        let n = numbers(&find(feeds, name)).len();
        let element = |_| {
            let size = f64::from(rng.random_range(8..=16_u8)) / 16.0;
            if rng.random() { size } else { -size }
        };
        Self {
            feeds,
            name,
            step,
            direction: (0..n).map(element).collect(),
        }
    }

    fn at(&self, t: f64) -> Feeds {
        let moved = |(name, tensor): &(String, Tensor)| {
            if name != self.name {
                return (name.clone(), tensor.clone());
            }
            let values = numbers(tensor)
                .iter()
                .zip(&self.direction)
                .map(|(x, d)| x + t * self.step * d)
                .collect();
            (name.clone(), tensor_of(tensor.dtype(), tensor.shape(), values))
        };
        self.feeds.iter().map(moved).collect()
    }
}

/// Elements of a float tensor as `f64`.
pub fn numbers(tensor: &Tensor) -> Vec<f64> {
    match tensor {
        Tensor::F64(a) => a.iter().copied().collect(),
        Tensor::F32(a) => a.iter().map(|v| f64::from(*v)).collect(),
        Tensor::F16(a) => a.iter().map(|v| v.to_f64()).collect(),
        Tensor::BF16(a) => a.iter().map(|v| v.to_f64()).collect(),
        Tensor::I64(a) => a.iter().map(|v| *v as f64).collect(),
        Tensor::I32(a) => a.iter().map(|v| f64::from(*v)).collect(),
        Tensor::U8(a) => a.iter().map(|v| f64::from(*v)).collect(),
        Tensor::Bool(a) => a.iter().map(|v| f64::from(u8::from(*v))).collect(),
    }
}

/// A float tensor of `dtype` from numbers.
pub fn tensor_of(dtype: DType, shape: &[usize], values: Vec<f64>) -> Tensor {
    let array = ArrayD::from_shape_vec(IxDyn(shape), values).expect("as many values as the shape says");
    match dtype {
        DType::F64 => Tensor::F64(array),
        DType::F16 => Tensor::F16(array.mapv(half::f16::from_f64)),
        DType::BF16 => Tensor::BF16(array.mapv(half::bf16::from_f64)),
        _ => Tensor::F32(array.mapv(|v| v as f32)),
    }
}

/// Normally distributed numbers.
pub fn gaussian(ty: &TensorType, rng: &mut ChaCha8Rng) -> Tensor {
    use rand_distr::{Distribution, StandardNormal};
    tensor_of(
        ty.dtype,
        &ty.shape,
        (0..ty.len()).map(|_| StandardNormal.sample(rng)).collect(),
    )
}

/// `⟨weights, a − b⟩`; elements without weight need not be numbers.
fn weighted_difference(weights: &[f64], a: &[f64], b: &[f64]) -> f64 {
    let differences = a.iter().zip(b).map(|(a, b)| a - b);
    let weighted = weights.iter().zip(differences).filter(|(w, _)| **w != 0.0);
    weighted.map(|(w, d)| w * d).sum()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "values and gradients have the same shape");
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn find(feeds: &Feeds, name: &str) -> Tensor {
    feeds
        .iter()
        .find(|(n, _)| n == name)
        .map(|(_, t)| t.clone())
        .expect("every input is fed")
}

/// Feeds as a session takes them.
pub fn borrowed(feeds: &Feeds) -> Vec<(&str, &Tensor)> {
    feeds
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect()
}

/// How the elements of a random input are drawn, so that kinks and poles are far from every point.
#[derive(Debug, Clone, Copy)]
pub enum Draw {
    /// Between −1.5 and 1.5.
    Any,
    /// Between 0.3 and 1.8.
    Positive,
    /// Between 0.3 and 1.8, of either sign.
    AwayFromZero,
    /// Between −0.8 and 0.8.
    InsideOne,
    /// A shuffled, even grid from −1.5 to 1.5: no two elements come near each other.
    Distinct,
    /// Between the two numbers.
    Between(f64, f64),
}

impl Draw {
    /// `n` numbers.
    pub fn numbers(self, n: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
        let sign = |x: f64, rng: &mut ChaCha8Rng| if rng.random() { x } else { -x };
        let between = |low: f64, high: f64, rng: &mut ChaCha8Rng| rng.random_range(low..high);
        match self {
            Self::Any => (0..n).map(|_| between(-1.5, 1.5, rng)).collect(),
            Self::Positive => (0..n).map(|_| between(0.3, 1.8, rng)).collect(),
            Self::AwayFromZero => {
                let one = |_| {
                    let size = between(0.3, 1.8, rng);
                    sign(size, rng)
                };
                (0..n).map(one).collect()
            }
            Self::InsideOne => (0..n).map(|_| between(-0.8, 0.8, rng)).collect(),
            Self::Between(low, high) => (0..n).map(|_| between(low, high, rng)).collect(),
            Self::Distinct => {
                use rand::seq::SliceRandom;
                let mut grid: Vec<f64> = (0..n).map(|i| (i as f64 + 0.5) / n as f64 * 3.0 - 1.5).collect();
                grid.shuffle(rng);
                grid
            }
        }
    }
}

/// One float input of a [`Case`].
#[derive(Debug, Clone)]
pub struct Input {
    /// Name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// How its elements are drawn.
    pub draw: Draw,
}

/// An input called `name`.
pub fn input(name: &str, shape: &[usize], draw: Draw) -> Input {
    Input {
        name: name.to_owned(),
        shape: shape.to_vec(),
        draw,
    }
}

/// A small graph of float inputs, checked in the most exact element type that ONNX Runtime runs it in.
pub struct Case {
    /// Seeds the random numbers and names the case in failures.
    pub name: String,
    /// Operator set.
    pub opset: i64,
    /// Float inputs.
    pub inputs: Vec<Input>,
    /// Settings for `f32`, where the family needs other ones.
    pub f32: Settings,
    /// Whether it runs in `f64` at all.
    pub f64: bool,
}

impl Case {
    /// A case for operators of `opset`.
    pub fn new(name: impl Into<String>, opset: i64, inputs: &[Input]) -> Self {
        Self {
            name: name.into(),
            opset,
            inputs: inputs.to_vec(),
            f32: Settings::F32,
            f64: true,
        }
    }

    /// Other settings for `f32`.
    pub fn f32(mut self, step: f64, tolerance: f64) -> Self {
        self.f32 = Settings { step, tolerance };
        self
    }

    /// Not in `f64`: the graph itself computes in `f32`, or its `f64` kernels are not to be trusted.
    pub fn only_f32(mut self) -> Self {
        self.f64 = false;
        self
    }

    /// Builds the graph with `build` (which gets the inputs and returns the outputs) and checks it: in `f64`, and if
    /// ONNX Runtime lacks a kernel for that, in `f32`. Returns the element type it ran in.
    ///
    /// # Panics
    /// With the case's name when something is wrong.
    pub fn run(&self, build: impl Fn(&mut Graph, &[ValueId]) -> ortdpo::Result<Vec<ValueId>>) -> DType {
        load_runtime();
        let dtypes = if self.f64 {
            &[DType::F64, DType::F32][..]
        } else {
            &[DType::F32]
        };
        for &dtype in dtypes {
            let mut rng = rng(&self.name);
            let (graph, feeds) = self.build(dtype, &mut rng, &build);
            let settings = if dtype == DType::F64 {
                Settings::F64
            } else {
                self.f32
            };
            match check(&graph, &feeds, settings, &mut rng) {
                Ok(0) => panic!("{}: no input reaches an output", self.name),
                Ok(_) => return dtype,
                Err(Failure::Error(e)) if dtype == DType::F64 && lacks_kernel(&e) => {}
                Err(failure) => panic!("{} in {dtype}: {failure}", self.name),
            }
        }
        unreachable!("the last element type returns or panics")
    }

    fn build(
        &self,
        dtype: DType,
        rng: &mut ChaCha8Rng,
        build: impl Fn(&mut Graph, &[ValueId]) -> ortdpo::Result<Vec<ValueId>>,
    ) -> (Graph, Feeds) {
        let mut graph = Graph::new(&self.name, self.opset);
        let (mut values, mut feeds) = (Vec::new(), Vec::new());
        for Input { name, shape, draw } in &self.inputs {
            values.push(graph.add_input(name, TensorType::new(dtype, shape.clone())));
            let numbers = draw.numbers(shape.iter().product(), rng);
            feeds.push((name.clone(), tensor_of(dtype, shape, numbers)));
        }
        let outputs = build(&mut graph, &values).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        for (i, output) in outputs.into_iter().enumerate() {
            let output = graph
                .as_output(output, &format!("y{i}"))
                .expect("an Identity can always be added");
            graph.outputs.push(output);
        }
        (graph, feeds)
    }
}

/// Runs `test` on `cases` values of `strategy`, the same ones every time; a failing value is made as simple as possible.
pub fn property<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value)) {
    let config = Config {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(20_240_613),
        max_shrink_iters: 40,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&strategy, |value| {
        test(value);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// Shapes of `rank` dimensions of up to `largest`.
pub fn shapes(rank: std::ops::RangeInclusive<usize>, largest: usize) -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(1..=largest, rank)
}

/// `n` shapes that broadcast together: dimensions are left out in front or set to 1 at random.
pub fn broadcast_shapes(n: usize) -> impl Strategy<Value = Vec<Vec<usize>>> {
    let keep = proptest::collection::vec(
        (
            0..=4_usize,
            proptest::collection::vec(proptest::bool::weighted(0.7), 4),
        ),
        n,
    );
    (shapes(0..=4, 4), keep).prop_map(|(full, keep)| {
        let narrowed = keep.into_iter().map(|(skip, keep)| {
            let dims = full.iter().zip(keep).map(|(d, keep)| if keep { *d } else { 1 });
            dims.skip(skip.saturating_sub(1).min(full.len())).collect()
        });
        narrowed.collect()
    })
}

/// Whether ONNX Runtime refused because it has no kernel for this element type.
pub fn lacks_kernel(error: &ortdpo::Error) -> bool {
    let text = error.to_string();
    text.contains("does not implement") || text.contains("Type Error")
}
