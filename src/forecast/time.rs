//! Time of a training step, from its nodes: the kinds of node that cost most are run alone, the rest is scaled from them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use serde::Serialize;

use crate::Result;
use crate::onnx::{Graph, Node, write};
use crate::runtime::Session;
use crate::tensor::{DType, Tensor};
use crate::train::graphs::EngineGraphs;

/// First guesses, which only order the kinds and share out what is not measured.
const FLOPS_PER_SECOND: f64 = 1e11;
const BYTES_PER_SECOND: f64 = 5e9;
/// Share of the guessed time that is measured, if there is time for it.
const MEASURED_SHARE: f64 = 0.9;
/// Runs of a kind, after one to warm up.
const RUNS: usize = 3;
/// Above this a kind is run once.
const LONG: Duration = Duration::from_millis(100);

/// Seconds of an optimizer step, with all parts of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Time {
    /// Of the whole step.
    pub seconds: f64,
    /// Of one forward pass of its batch, which the reference takes.
    pub forward_seconds: f64,
    /// Share of the step in kinds of node that were measured.
    pub measured: f64,
}

/// How the batch of an optimizer step is divided.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// Parts that run one after another (`train.accumulate`).
    pub parts: usize,
    /// Parts that have the `kl` anchor beside them.
    pub anchored: usize,
}

/// Seconds of kinds of node, measured once each.
pub struct Calibration {
    /// Time that is left for measuring.
    left: Duration,
    measured: HashMap<String, f64>,
}

/// A kind of node in the graphs of a step.
struct Kind<'a> {
    graph: &'a Graph,
    node: &'a Node,
    /// Guess for one of them, in seconds.
    guess: f64,
    is_product: bool,
    /// How often a step runs it.
    count: f64,
}

impl Calibration {
    /// Measures for at most about `limit` in all.
    pub fn new(limit: Duration) -> Self {
        Self {
            left: limit,
            measured: HashMap::new(),
        }
    }

    /// Seconds that one run of each of `run`, which are graphs of `graphs`, takes together, and the share that was measured.
    ///
    /// # Errors
    /// ONNX Runtime refuses a node of the graphs.
    pub(super) fn seconds(&mut self, graphs: &EngineGraphs, run: &[&Graph]) -> Result<(f64, f64)> {
        let mut kinds = kinds(run);
        kinds.sort_by(|_, a, _, b| (b.count * b.guess).total_cmp(&(a.count * a.guess)));
        let all: f64 = kinds.values().map(|k| k.count * k.guess).sum();
        let mut covered = 0.0;
        for (name, kind) in &kinds {
            let share = kind.count * kind.guess / all;
            if !self.measured.contains_key(name) && covered < MEASURED_SHARE && !self.left.is_zero() {
                let started = Instant::now();
                let seconds = measure(kind, graphs)?;
                self.left = self.left.saturating_sub(started.elapsed());
                self.measured.insert(name.clone(), seconds);
            }
            if self.measured.contains_key(name) {
                covered += share;
            }
        }
        // How far the guesses are off, for products and for the rest.
        let ratio = |is_product: bool| {
            let of = kinds
                .iter()
                .filter(|(name, k)| k.is_product == is_product && self.measured.contains_key(*name));
            let (found, guessed) = of.fold((0.0, 0.0), |(found, guessed), (name, k)| {
                (found + k.count * self.measured[name], guessed + k.count * k.guess)
            });
            if guessed > 0.0 { found / guessed } else { 1.0 }
        };
        let ratios = [ratio(false), ratio(true)];
        let one = |(name, k): (&String, &Kind)| match self.measured.get(name) {
            Some(seconds) => k.count * seconds,
            None => k.count * k.guess * ratios[usize::from(k.is_product)],
        };
        Ok((kinds.iter().map(one).sum(), covered))
    }
}

/// Seconds of a kind of node, run alone in a session as those of `graphs` are; the least of a few times.
fn measure(kind: &Kind, graphs: &EngineGraphs) -> Result<f64> {
    // Where sessions keep copies of the weights, kernels see constants.
    let graph = kind.graph.alone(kind.node, graphs.copies)?;
    let mut session = Session::from_bytes(&write::to_bytes(&graph, None)?, None, &graphs.session)?;
    let inputs: Vec<(String, Tensor)> = graph
        .inputs
        .iter()
        .map(|v| (graph.name(*v), filled(graph.dtype(*v), graph.shape(*v))))
        .collect();
    let views: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
    let mut best = f64::INFINITY;
    for run in 0..=RUNS {
        let started = Instant::now();
        session.run(&views)?;
        let took = started.elapsed();
        if run > 0 {
            best = best.min(took.as_secs_f64());
        }
        if run == 1 && took > LONG {
            break;
        }
    }
    Ok(best)
}

/// A tensor of ones.
fn filled(dtype: DType, shape: &[usize]) -> Tensor {
    let len = shape.iter().product();
    match dtype {
        DType::F32 => Tensor::f32(shape, vec![1.0; len]),
        DType::I64 => Tensor::i64(shape, vec![1; len]),
        other => {
            let values = ndarray::ArrayD::from_elem(shape, 1.0);
            Tensor::from_floats("calibration", values.clone(), other).unwrap_or_else(|_| {
                Tensor::from_integers("calibration", values.mapv(|v| v as i64), other)
                    .expect("operands are numbers")
            })
        }
    }
}

/// The nodes of `graphs` by kind.
fn kinds<'a>(graphs: &[&'a Graph]) -> IndexMap<String, Kind<'a>> {
    let mut found: IndexMap<String, Kind<'a>> = IndexMap::new();
    for graph in graphs {
        for node in &graph.nodes {
            let work = graph.work(node);
            if work.bytes == 0.0 {
                continue;
            }
            let kind = found.entry(graph.kind_of_work(node)).or_insert_with(|| Kind {
                graph,
                node,
                guess: work.flops / FLOPS_PER_SECOND + work.bytes / BYTES_PER_SECOND,
                is_product: work.flops > 0.0,
                count: 0.0,
            });
            kind.count += 1.0;
        }
    }
    found
}
