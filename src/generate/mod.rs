//! Images for a list of prompts, into a folder that an interrupted run can go on filling.
//!
//! ```text
//! prompts, settings ─► GeneratePlan ─► batches ─► pipeline ─► writer thread ─► images/PPPPP-I.png
//!                                                                          └─► images.jsonl, contact-sheet.png
//! ```
//!
//! The noise of an image depends on seed, prompt index and image index alone: batch size, order and interruptions change
//! none of it. Images that are there already under the same settings are kept; a folder made with other settings is
//! refused.

mod batches;
mod folder;
mod noise;
mod plan;
mod record;
mod sheet;
mod writer;

pub use noise::ImageNoise;
pub use plan::{GeneratePlan, Settings};
pub use record::ImageRecord;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::fsutil::check_output;
use crate::model_folder::ModelFolder;
use crate::pipeline::{Pipeline, PipelineOptions, VaePrecision};
use crate::progress::Console;
use crate::runtime::SessionOptions;
use crate::{Error, Result};
use batches::{Batches, Work};
use folder::OutputFolder;

/// How images are made, apart from what is in them.
#[derive(Debug, Clone)]
pub struct GenerateOptions<'a> {
    /// How sessions are built.
    pub session: SessionOptions,
    /// What the VAE computes in.
    pub vae: VaePrecision,
    /// Where progress is shown.
    pub console: Console,
    /// Asks the run to end after the images that are done.
    pub stop: &'a AtomicBool,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// All images of the folder, by prompt and image index.
    pub records: Vec<ImageRecord>,
    /// How many of them this run made; the others were there.
    pub made: usize,
    /// Seconds that making them took, without loading the model.
    pub seconds: f64,
}

/// Makes the images of `plan` in `output`. What is there already is kept.
///
/// # Errors
/// The plan does not fit the model; the folder holds images of other settings or prompts; the disk is full; or
/// [`Error::Interrupted`]. After the last two the same call goes on where it stopped.
pub fn run(plan: &GeneratePlan, output: &Path, options: &GenerateOptions) -> Result<Generated> {
    plan.check()?;
    if let Some(path) = &plan.noise {
        check_output(path, true)?;
    }
    let model = ModelFolder::open(&plan.model)?;
    Pipeline::check_files(&model, &plan.adapters)?;
    let settings = Settings::of(plan, &model)?;
    let mut folder = OutputFolder::open(output, &settings, plan)?;
    let todo: Vec<Work> = plan
        .images()
        .filter(|work| !folder.has(work.prompt_index, work.image_index))
        .collect();
    let made = todo.len();
    let mut seconds = 0.0;
    if made > 0 {
        if folder.kept() > 0 {
            options
                .console
                .say(&format!("{} images are there already", folder.kept()));
        }
        let sampling = plan.sampling(&model)?;
        let pipeline = Pipeline::load(&model, &plan.adapters, &pipeline_options(plan, options, made))?;
        if let Some(path) = &plan.noise {
            noise::save(path, plan, pipeline.latent_shape())?;
        }
        // Nothing is left behind by a run that cannot begin.
        folder.begin(&settings)?;
        let began = Instant::now();
        let batches = Batches::new(plan, &settings, pipeline, sampling);
        batches.run(&todo, &mut folder, options)?;
        seconds = began.elapsed().as_secs_f64();
    }
    let records = folder.finish()?;
    sheet::write(output, &records, plan.images_per_prompt)?;
    Ok(Generated {
        records,
        made,
        seconds,
    })
}

fn pipeline_options(plan: &GeneratePlan, options: &GenerateOptions, images: usize) -> PipelineOptions {
    PipelineOptions {
        session: options.session.clone(),
        vae: options.vae,
        // A batch that is never full would compute images that nobody wants.
        batch: plan.batch.min(images),
        guidance: plan.guidance,
        clip_skip: plan.clip_skip,
        negative: plan.negative.clone(),
        size: [plan.height, plan.width],
    }
}

/// The error of a run that was asked to stop.
fn stopped(done: usize, all: usize, output: &Path) -> Error {
    Error::Interrupted(format!(
        "{done} of {all} images are in {}; the same command goes on from there",
        output.display()
    ))
}
