//! The parts of a run: sessions, state, and what watches over them.

use std::collections::BTreeMap;
use std::time::Instant;

use super::feed::Feed;
use super::{Run, RunOptions, manifest};
use crate::Result;
use crate::config::TrainPlan;
use crate::objective::Objective;
use crate::pipeline::VaePrecision;
use crate::reference::ReferenceWeights;
use crate::rng::Streams;
use crate::train::checkpoint::{CheckpointStore, RunIdentity};
use crate::train::engine::Engine;
use crate::train::evaluate::HeldOut;
use crate::train::folder::RunFolder;
use crate::train::guard::Guard;
use crate::train::kept::Inventory;
use crate::train::model::Model;
use crate::train::pictures::Pictures;
use crate::train::prepare::{self, Data, Measurable};
use crate::train::report::Listeners;
use crate::train::state::State;
use crate::train::step::Stepper;
use crate::train::summary::{Manifest, Versions};

/// What a run is built from.
pub(super) struct Parts<'a> {
    pub plan: &'a TrainPlan,
    pub options: &'a RunOptions<'a>,
    pub model: &'a Model,
    pub data: &'a Data,
    pub heldout: Option<&'a Measurable<'a>>,
    pub objective: &'a dyn Objective,
    /// The folder that it will have.
    pub folder: RunFolder,
    /// Version of ONNX Runtime.
    pub library: &'a str,
    pub started: Instant,
}

impl<'a> Parts<'a> {
    /// A run before its first step, and what its folder will tell of it.
    pub(super) fn build(self) -> Result<(Run<'a>, Manifest)> {
        let Self {
            plan,
            options,
            model,
            data,
            ..
        } = self;
        let (needs, streams) = (self.objective.needs(), Streams::new(plan.seed));
        let shown = (options.console, options.stop);
        let feed = Feed::prepare(plan, model, needs, data.train.as_ref(), shown)?;
        let (mut engine, state) = self.sessions(&feed, streams)?;
        let feed = feed.with_value(plan, &engine)?;
        let negative = feed.negative().filter(|_| plan.guidance_inside().is_some());
        let identity = RunIdentity::new(
            plan.identity(),
            model.hashes.clone(),
            data.hash() + &feed.hash()?,
            Versions::with_runtime(self.library),
        );
        let state = self.with_reference(state, &mut engine, streams)?;
        let manifest = manifest::of(plan, &identity, &engine, data, self.objective);
        let schedule = &model.schedule;
        let run = Run {
            plan,
            options,
            objective: self.objective,
            streams,
            store: CheckpointStore::new(self.folder.checkpoints(), plan.train.keep),
            guard: Guard::new(&plan.guard),
            feed,
            identity,
            stepper: Stepper::new(plan, schedule, &engine, self.objective, negative)?,
            engine,
            state,
            probe: None,
            pictures: Pictures::prepare(
                &plan.samples,
                model,
                &prepare::session_options(plan),
                VaePrecision::of(plan.runtime.vae_fp32),
            )?,
            noise_schedule: schedule,
            held: self
                .heldout
                .map(|source| HeldOut::new(source, schedule, streams, plan.train.eval_draws)),
            held_initial: None,
            held_means: None,
            initial_scores: None,
            initial_pictures: BTreeMap::new(),
            best: None,
            seconds_before: 0.0,
            started: self.started,
            listeners: Listeners::default(),
            folder: self.folder,
        };
        Ok((run, manifest))
    }

    /// The sessions for all sizes of images, and the state before the first step.
    fn sessions(&self, feed: &Feed, streams: Streams) -> Result<(Engine, State)> {
        let (plan, model, console) = (self.plan, self.model, self.options.console);
        let sample = feed.geometry(model, plan.data.resolution)?;
        let other_sizes = feed.other_sizes(sample, self.data.heldout.as_ref());
        if !other_sizes.is_empty() {
            let sizes = other_sizes.len() + 1;
            console.say(&format!("building graphs for {sizes} sizes of images"));
        }
        let shapes = (sample, other_sizes.as_slice());
        let (engine, initial) = prepare::engine(plan, model, shapes, self.objective, &streams)?;
        if plan.runtime.memory_budget.is_some() {
            let level = engine.recompute();
            console.say(&format!("recompute: {level}, for the memory budget"));
        }
        Ok((engine, State::new(plan, model, initial)?))
    }

    /// Moves the reference to a file, where it is to be in one.
    fn with_reference(&self, mut state: State, engine: &mut Engine, streams: Streams) -> Result<State> {
        if Inventory::of(self.plan, self.objective.needs().reference)?.reference_in_file() {
            state.reference = ReferenceWeights::mapped(&self.folder.reference(), &state.initial, streams)?;
            // Or the weights, read from the file for the reference's run, would come on top of the step's peak.
            engine.release_after_steps()?;
        }
        Ok(state)
    }
}
