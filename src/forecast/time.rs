//! Time of a training step, from its nodes: the kinds of node that cost most are run alone, the rest is scaled from them.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use serde::Serialize;

use crate::Result;
use crate::onnx::{Graph, Node, Work, write};
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
/// Bytes of operands and results up to which a kind is run whole. Larger ones are run on a part of their batch: who asks whether
/// something fits into memory must not run out of it.
const LARGEST: f64 = (1 << 30) as f64;
/// Parts of a batch that are tried.
const MOST_PARTS: usize = 1024;
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
    /// Kinds that were too large to be measured, even in part.
    too_large: HashSet<String>,
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
            too_large: HashSet::new(),
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
            let is_new = !self.measured.contains_key(name) && !self.too_large.contains(name);
            if is_new && covered < MEASURED_SHARE && !self.left.is_zero() {
                let started = Instant::now();
                // Where sessions keep copies of the weights, kernels see constants.
                match part_of(kind, graphs.copies)? {
                    Some((graph, share)) => {
                        let seconds = measure(&graph, graphs)? / share;
                        self.measured.insert(name.clone(), seconds);
                    }
                    None => drop(self.too_large.insert(name.clone())),
                }
                self.left = self.left.saturating_sub(started.elapsed());
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

/// Seconds that a node takes by first guess.
fn guess(work: Work) -> f64 {
    work.flops / FLOPS_PER_SECOND + work.bytes / BYTES_PER_SECOND
}

/// A graph of a kind of node, and its share of the work: all, or as large a part of its batch as may be in memory. `None` where even one
/// row is too much.
fn part_of(kind: &Kind, constants: bool) -> Result<Option<(Graph, f64)>> {
    let whole = kind.graph.work(kind.node);
    if whole.bytes <= LARGEST {
        return Ok(Some((kind.graph.alone(kind.node, constants)?, 1.0)));
    }
    let first = (whole.bytes / LARGEST).ceil() as usize;
    for parts in first..=MOST_PARTS.max(first) {
        // Not all numbers of parts are possible.
        let Ok(graph) = kind.graph.part_alone(kind.node, constants, parts) else {
            continue;
        };
        let work = graph
            .nodes
            .last()
            .map(|node| graph.work(node))
            .unwrap_or_default();
        if work.bytes > 0.0 && work.bytes <= LARGEST {
            return Ok(Some((graph, guess(work) / guess(whole))));
        }
    }
    Ok(None)
}

/// Seconds of `graph`, run in a session as those of `graphs` are; the least of a few times.
fn measure(graph: &Graph, graphs: &EngineGraphs) -> Result<f64> {
    let mut session = Session::from_bytes(&write::to_bytes(graph, None)?, None, &graphs.session)?;
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
        DType::Bool => Tensor::Bool(ndarray::ArrayD::from_elem(shape, true)),
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
                guess: guess(work),
                is_product: work.flops > 0.0,
                count: 0.0,
            });
            kind.count += 1.0;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::TensorType;

    /// What would be measured of a product of `rows` rows, in bytes, and its share.
    fn measured(rows: usize) -> Option<(f64, f64)> {
        let mut g = Graph::new("large", 17);
        let [x, y] = ["x", "y"].map(|name| g.add_input(name, TensorType::new(DType::F32, [rows, 512, 512])));
        g.matmul(x, y).unwrap();
        let kinds = kinds(&[&g]);
        let (graph, share) = part_of(&kinds[0], false).unwrap()?;
        Some((graph.work(&graph.nodes[0]).bytes, share))
    }

    #[test]
    fn what_is_large_is_measured_in_part() {
        let row = (3 * 512 * 512 * 4) as f64;
        assert_eq!(measured(8), Some((8.0 * row, 1.0)));
        let (bytes, share) = measured(1 << 12).unwrap();
        assert!(bytes <= LARGEST && bytes > LARGEST / 4.0, "{bytes}");
        assert!((share * 4096.0 * row / bytes - 1.0).abs() < 1e-9);
        // A prime number of rows is one part, or single rows.
        assert_eq!(measured(1009).map(|(bytes, _)| bytes), Some(row));
        assert_eq!(measured(4099), None);
    }
}
