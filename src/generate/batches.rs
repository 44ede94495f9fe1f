//! Batch after batch through the pipeline; a second thread writes what is done meanwhile.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use super::folder::{IMAGES, OutputFolder};
use super::noise::ImageNoise;
use super::plan::{GeneratePlan, Settings};
use super::record::ImageRecord;
use super::writer::{Done, write_all};
use super::{GenerateOptions, stopped};
use crate::diffusion::NoiseSchedule;
use crate::diffusion::sampler::{SamplerConfig, sampler};
use crate::pipeline::{Embedding, Pipeline};
use crate::progress::clock;
use crate::rng::Streams;
use crate::{Error, Result};

/// Batches that may wait for the writer.
const BATCHES_WAITING: usize = 1;

/// One image to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Position of its prompt.
    pub prompt_index: usize,
    /// Its number among the images of the prompt.
    pub image_index: usize,
}

impl Work {
    /// Its file, relative to the output folder.
    pub fn file(self) -> String {
        format!("{IMAGES}/{:05}-{}.png", self.prompt_index, self.image_index)
    }
}

/// The loop over batches.
pub struct Batches<'a> {
    plan: &'a GeneratePlan,
    settings: &'a Settings,
    pipeline: Pipeline,
    sampler: SamplerConfig,
    schedule: NoiseSchedule,
}

impl<'a> Batches<'a> {
    /// Ready for the first batch.
    pub fn new(
        plan: &'a GeneratePlan,
        settings: &'a Settings,
        pipeline: Pipeline,
        (sampler, schedule): (SamplerConfig, NoiseSchedule),
    ) -> Self {
        Self {
            plan,
            settings,
            sampler,
            schedule,
            pipeline,
        }
    }

    /// Makes all of `todo` into `folder`.
    ///
    /// # Errors
    /// A network fails, the disk is full, or the run was asked to stop; what was written stays.
    pub fn run(mut self, todo: &[Work], folder: &mut OutputFolder, options: &GenerateOptions) -> Result<()> {
        let (all, output) = (folder.len() + todo.len(), folder.root().to_path_buf());
        let (send, receive) = sync_channel::<Vec<Done>>(BATCHES_WAITING);
        let settings = self.settings;
        let (made, written) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let written = write_all(receive, folder, settings);
                (written, folder.len())
            });
            let made = self.make(todo, all, options, &mut |done| send.send(done).is_ok());
            drop(send);
            let written = writer.join();
            (made, written)
        });
        let (written, done) =
            written.map_err(|_| Error::Runtime("the thread that writes images failed".into()))?;
        // A writer that gave up makes the loop stop; its reason is the one to tell.
        written?;
        match made {
            Err(Error::Interrupted(_)) => Err(stopped(done, all, &output)),
            other => other,
        }
    }

    /// Makes the images batch by batch and hands them to `give`, which says whether anybody still wants them.
    fn make(
        &mut self,
        todo: &[Work],
        all: usize,
        options: &GenerateOptions,
        give: &mut dyn FnMut(Vec<Done>) -> bool,
    ) -> Result<()> {
        let mut job = options.console.job("generate", all as u64);
        let before = all - todo.len();
        let began = Instant::now();
        for (number, part) in todo.chunks(self.pipeline.batch()).enumerate() {
            let done = number * self.pipeline.batch();
            let stop = || match options.stop.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            };
            let images = self.batch(part, &mut |_| stop())?;
            let made = done + part.len();
            if !give(images) {
                return Ok(());
            }
            let rate = made as f64 / began.elapsed().as_secs_f64();
            let left = (todo.len() - made) as f64 / rate;
            let detail = format!("{rate:.2} images/s  ETA {}", clock(left));
            job.advance((before + made) as u64, &detail);
        }
        Ok(())
    }

    fn batch(
        &mut self,
        part: &[Work],
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Done>> {
        let embeddings = self.encode(part)?;
        let prompts: Vec<&Embedding> = part.iter().map(|work| &embeddings[&work.prompt_index]).collect();
        let mut sampler = sampler(&self.sampler, &self.schedule, self.plan.steps)?;
        let streams = Streams::new(self.plan.seed);
        let mut noises: Vec<ImageNoise> = part
            .iter()
            .map(|work| ImageNoise::new(&streams, work.prompt_index, work.image_index))
            .collect();
        let latents = self.pipeline.sample(
            &mut *sampler,
            &prompts,
            &mut |image, draw, values| noises[image].fill(draw, values),
            on_step,
        )?;
        let images = self.pipeline.decode(&latents)?;
        let done = part.iter().zip(images).map(|(work, image)| Done {
            record: ImageRecord::new(self.plan, self.settings, *work),
            image,
        });
        Ok(done.collect())
    }

    /// Embeddings of the prompts of a batch, each encoded once.
    fn encode(&mut self, part: &[Work]) -> Result<HashMap<usize, Embedding>> {
        let mut indices: Vec<usize> = part.iter().map(|work| work.prompt_index).collect();
        indices.dedup();
        let texts: Vec<&str> = indices
            .iter()
            .map(|i| self.plan.prompts[*i].text.as_str())
            .collect();
        let embeddings = self.pipeline.encode_prompts(&texts)?;
        Ok(indices.into_iter().zip(embeddings).collect())
    }
}
