//! Forecasts for every level of recomputation, and the fastest that keeps within a budget.

use serde::Serialize;

use super::{Batch, Calibration, DeviceMemory, Memory, Time, sizes};
use crate::autodiff::Recompute;
use crate::config::TrainPlan;
use crate::config::bytes::ByteSize;
use crate::onnx::{Graph, weight_bytes};
use crate::runtime::ExecutionProvider;
use crate::train::engine::EngineOptions;
use crate::train::graphs::EngineGraphs;
use crate::train::initial;
use crate::train::kept::{self, Inventory, KeptSet};
use crate::{Error, Result};

/// Where the figures of a forecast come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Basis {
    /// Forecasts like it were compared with runs.
    #[serde(rename = "compared with runs")]
    Compared,
    /// From graphs and assumptions alone.
    #[serde(rename = "computed, not measured")]
    Computed,
}

/// What a run takes at one level of recomputation.
#[derive(Debug, Clone, Serialize)]
pub struct Level {
    /// What backward passes compute again.
    pub recompute: Recompute,
    /// What is known of such forecasts.
    pub basis: Basis,
    /// The host's memory by part: all there is on the CPU.
    pub memory: Memory,
    /// What `memory.trained` is made of.
    pub trained_sets: Vec<KeptSet>,
    /// A device's memory by part, where one computes.
    pub device: Option<DeviceMemory>,
    /// Time of a step on the run's own size of images, if it was asked for.
    pub time: Option<Time>,
}

/// Forecast for a run of `plan` with `options`, with times of steps on whole batches where there is a calibration.
///
/// # Errors
/// The graphs cannot be derived, or ONNX Runtime refuses a node of them.
pub fn forecast(
    plan: &TrainPlan,
    options: &EngineOptions,
    calibration: Option<(&mut Calibration, Batch)>,
) -> Result<Level> {
    let choose = |graph: &Graph| initial::trainables(&plan.adapter, graph);
    let derive = |options: &EngineOptions| EngineGraphs::derive(options, plan.trains_all_weights(), choose);
    let graphs = derive(options)?;
    let sizes = sizes::all(options, &graphs, derive)?;
    let needs_reference = options.objective.needs().reference;
    let inventory = Inventory::of(plan, needs_reference)?;
    let on_device = options.gradients_on_device;
    let mut trained_sets = inventory.host_sets(&graphs.layout, on_device);
    let ep = options.session.ep;
    if on_device && ep == ExecutionProvider::Cpu {
        // Which can play a device.
        trained_sets.extend(inventory.device_sets(&graphs.layout, true));
    }
    let (weights, trained) = (weight_bytes(&graphs.denoiser) as u64, kept::bytes(&trained_sets));
    let (basis, memory, device) = match ep {
        ExecutionProvider::Cpu => (Basis::Compared, Memory::on_cpu(&sizes, weights, trained), None),
        _ => {
            let there = kept::bytes(&inventory.device_sets(&graphs.layout, on_device));
            let constants = (sizes::weights_of_step(&graphs), ep == ExecutionProvider::Cuda);
            let device = DeviceMemory::of(&sizes, constants, there);
            let host = Memory::beside_device(&sizes, weights, trained);
            (Basis::Computed, host, Some(device))
        }
    };
    let time = calibration.map(|(c, batch)| time(&graphs, needs_reference, c, batch));
    Ok(Level {
        recompute: options.recompute,
        basis,
        memory,
        trained_sets,
        device,
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

/// The fastest level, from `options.recompute` on, that keeps the host's memory within `budget`.
///
/// # Errors
/// None does: says what the smallest takes.
pub fn fitting(plan: &TrainPlan, options: &EngineOptions, budget: ByteSize) -> Result<Recompute> {
    let mut least: Option<Level> = None;
    for recompute in Recompute::ALL {
        if recompute < options.recompute {
            continue;
        }
        let level = forecast(plan, &options.recomputing(recompute), None)?;
        if level.memory.is_within(budget) {
            return Ok(recompute);
        }
        if least
            .as_ref()
            .is_none_or(|l| level.memory.total() < l.memory.total())
        {
            least = Some(level);
        }
    }
    let least = least.expect("there is at least one level");
    let enough = least.memory.budget();
    let sizes = match options.other_sizes.len() {
        0 => String::new(),
        others => format!(" with images of {} sizes", others + 1),
    };
    Err(Error::bad(
        "runtime.memory_budget",
        format!(
            "is {budget}, but the run takes {enough} at least{sizes} (recompute: {}), some 5 % to spare included",
            least.recompute
        ),
        format!(
            "Set it to {enough} or more (--memory-budget {enough}), or make steps smaller: train.accumulate, \
             data.resolution. `ortdpo plan` shows where memory goes."
        ),
    ))
}
