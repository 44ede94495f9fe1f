//! Refusing what cannot run, before hours are spent on encoding pictures.
//!
//! Graphs are derived for the shapes that the pipeline's configuration files declare, which shows adapters without a layer, operators
//! without a gradient and precisions that the model does not have; what sessions say comes later. The sizes of images that the data
//! have are not known yet: a run takes at least what it takes on squares.

use super::engine::EngineOptions;
use super::graphs::EngineGraphs;
use super::model::Model;
use super::{initial, on_device, prepare};
use crate::config::TrainPlan;
use crate::onnx::Graph;
use crate::pipeline::{denoiser, geometry};
use crate::runtime::{self, ExecutionProvider};
use crate::{Error, Result, forecast};

/// Looks at what can be known of the run of `plan` without its data.
///
/// # Errors
/// The execution provider cannot be used here; nothing can be trained as the configuration says; or the run would take more memory
/// than it may.
pub fn check(plan: &TrainPlan, model: &Model) -> Result<()> {
    if plan.runtime.ep != ExecutionProvider::Cpu {
        runtime::require(plan.runtime.ep)?;
    }
    check_buckets(plan, model)?;
    let gradients_on_device = on_device::wanted(plan, 1)?;
    let side = plan.data.resolution as usize / geometry::pixels_per_latent(&model.folder);
    // Files that declare no shapes are no obstacle: the encoders will tell them.
    let Ok(sample) = geometry::declared(&model.folder, 1, Some([side; 2])) else {
        return Ok(());
    };
    let objective = prepare::objective_without_data(&plan.objective, plan.data.kind);
    let options = EngineOptions {
        gradients_on_device,
        ..prepare::engine_options(plan, model, sample, objective.as_ref())?
    };
    match plan.runtime.memory_budget {
        Some(budget) => forecast::fitting(plan, &options, budget).map(drop),
        None => {
            let choose = |graph: &Graph| initial::trainables(&plan.adapter, graph);
            EngineGraphs::derive(&options, plan.trains_all_weights(), choose).map(drop)
        }
    }
}

/// Images of several sizes need a denoiser whose sizes are open.
fn check_buckets(plan: &TrainPlan, model: &Model) -> Result<()> {
    if plan.data.buckets.is_none() {
        return Ok(());
    }
    match denoiser::only_size(&model.denoiser)? {
        Some([height, width]) => Err(Error::bad(
            "data.buckets",
            format!(
                "asks for images of several sizes, but {} was exported for latents of {height}×{width} alone",
                model.denoiser.path.display()
            ),
            "Leave data.buckets out, or export the model with open sizes.",
        )),
        None => Ok(()),
    }
}
