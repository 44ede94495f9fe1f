//! Forecasts for every level of recomputation, and the fastest that keeps within a budget.

use serde::Serialize;

use super::{Batch, Calibration, Memory, Time};
use crate::autodiff::Recompute;
use crate::config::bytes::ByteSize;
use crate::onnx::Graph;
use crate::train::engine::EngineOptions;
use crate::train::graphs::EngineGraphs;
use crate::traingraph::Trainables;
use crate::{Error, Result};

/// What a run takes at one level of recomputation.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Level {
    /// What backward passes compute again.
    pub recompute: Recompute,
    /// Memory by part.
    pub memory: Memory,
    /// Time of a step, if it was asked for.
    pub time: Option<Time>,
}

/// Forecast for `options`, with times of steps on whole batches where there is a calibration.
///
/// # Errors
/// The graphs cannot be derived, or ONNX Runtime refuses a node of them.
pub fn forecast(
    options: &EngineOptions,
    split_shared: bool,
    choose: impl Fn(&Graph) -> Result<Trainables>,
    calibration: Option<(&mut Calibration, Batch)>,
) -> Result<Level> {
    let graphs = EngineGraphs::derive(options, split_shared, choose)?;
    let memory = Memory::of(&graphs);
    let time = calibration.map(|(c, batch)| time(&graphs, options.objective.needs().reference, c, batch));
    Ok(Level {
        recompute: options.recompute,
        memory,
        time: time.transpose()?,
    })
}

fn time(
    graphs: &EngineGraphs,
    has_reference: bool,
    calibration: &mut Calibration,
    batch: Batch,
) -> Result<Time> {
    let (forward, _) = calibration.seconds(graphs, &[&graphs.errors])?;
    let mut run: Vec<&Graph> = vec![&graphs.step];
    if has_reference {
        run.push(&graphs.errors);
    }
    run.extend(&graphs.batch);
    let (part, part_measured) = calibration.seconds(graphs, &run)?;
    let (anchor, anchor_measured) = match &graphs.anchor {
        Some((graph, _)) => calibration.seconds(graphs, &[graph])?,
        None => (0.0, 0.0),
    };
    let [parts, anchored] = [batch.parts, batch.anchored].map(|n| n as f64);
    let seconds = parts * part + anchored * anchor;
    Ok(Time {
        seconds,
        forward_seconds: parts * forward,
        measured: (parts * part * part_measured + anchored * anchor * anchor_measured) / seconds,
    })
}

/// The fastest level, from `options.recompute` on, that keeps within `budget`.
///
/// # Errors
/// None does: says what the smallest takes.
pub fn fitting(
    options: &EngineOptions,
    split_shared: bool,
    choose: impl Fn(&Graph) -> Result<Trainables>,
    budget: ByteSize,
) -> Result<Recompute> {
    let mut least: Option<Level> = None;
    for recompute in Recompute::ALL {
        if recompute < options.recompute {
            continue;
        }
        let level = forecast(&options.recomputing(recompute), split_shared, &choose, None)?;
        if level.memory.total() <= budget.0 {
            return Ok(recompute);
        }
        if least.is_none_or(|l| level.memory.total() < l.memory.total()) {
            least = Some(level);
        }
    }
    let least = least.expect("there is at least one level");
    let enough = least.memory.budget();
    Err(Error::bad(
        "runtime.memory_budget",
        format!(
            "is {budget}, but the run takes {enough} at least (recompute: {})",
            least.recompute
        ),
        format!(
            "Set it to {enough} or more (--memory-budget {enough}), or make steps smaller: train.accumulate, \
             data.resolution. `ortdpo plan` shows where memory goes."
        ),
    ))
}
