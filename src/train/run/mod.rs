//! A training run: from a checked plan to a folder of results.
//!
//! ```text
//! refuse what cannot run ─► encode ─► build ─► [resume] ─► warm up ─► step ─► measure ─► checkpoint ─► … ─► results
//! ```
//!
//! The loop only executes: what moves the reference, weighs timesteps, notices divergence or keeps checkpoints are
//! policies of their own.

mod build;
mod evaluation;
mod feed;
mod manifest;
mod saving;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use self::build::Parts;
use self::feed::Feed;
use super::checkpoint::{Best, CheckpointStore, RunIdentity};
use super::draw::DrawnPair;
use super::engine::Engine;
use super::evaluate::{Errors, HeldOut};
use super::folder::RunFolder;
use super::guard::{self, Guard, Verdict};
use super::model::Model;
use super::pictures::Pictures;
use super::prepare::{self, Data, Measurable};
use super::probe::Probe;
use super::record::Recorder;
use super::report::{Event, Listeners, Measured, MetricsFile, ProgressLine, StepReport, TensorBoard};
use super::rollout::Policies;
use super::state::State;
use super::step::{StepStats, Stepper};
use super::summary::{HeldOutScores, Manifest, Summary};
use super::{inputs, memory, refuse, results};
use crate::config::TrainPlan;
use crate::config::guard::GuardAction;
use crate::config::reference::UpdateConfig;
use crate::data::Dataset;
use crate::diffusion::NoiseSchedule;
use crate::objective::Objective;
use crate::progress::Console;
use crate::rng::Streams;
use crate::{Error, Result, runtime};

/// What a run is told besides its plan.
pub struct RunOptions<'a> {
    /// Folder of the run.
    pub output: PathBuf,
    /// Go on from the newest checkpoint there.
    pub resume: bool,
    /// A new folder for what every step is computed from; see [`super::record`].
    pub record: Option<PathBuf>,
    /// Where progress is shown.
    pub console: Console,
    /// Set to ask for an orderly end: the step is finished and a checkpoint written.
    pub stop: &'a AtomicBool,
}

/// Runs that are never timed: the first two or three of a session are several times slower than the rest.
const WARM_UP_RUNS: usize = 2;

const LOWER_LR: &str = "Start a new run with a lower optimizer.lr.";

/// Trains as `plan` says and returns what came of it.
///
/// # Errors
/// Whatever is wrong with the input is found before the first step, and leaves the output folder as it was.
/// [`Error::Diverged`] and [`Error::Interrupted`] leave the checkpoints.
pub fn run(plan: &TrainPlan, options: &RunOptions) -> Result<Summary> {
    let started = Instant::now();
    let recorder = options.record.as_deref().map(Recorder::new).transpose()?;
    let library = runtime::init(&runtime::RuntimeOptions::default())?.version();
    let reserved = match options.resume {
        true => RunFolder::existing(&options.output)?,
        false => RunFolder::create(&options.output)?,
    };
    inputs::check(plan)?;
    let model = Model::open(&plan.model)?;
    refuse::check(plan, &model)?;
    let data = Data::prepare(plan, &model, options.console, options.stop)?;
    let objective = prepare::objective(&plan.objective, plan.data.kind, data.train.as_ref())?;
    let heldout = data.heldout.as_ref().map(Measurable);
    let parts = Parts {
        plan,
        options,
        model: &model,
        data: &data,
        heldout: heldout.as_ref(),
        objective: objective.as_ref(),
        folder: reserved.folder().clone(),
        library,
        started,
    };
    let (mut run, manifest) = parts.build()?;
    let notes = run.go_on(&model, &data)?;
    let folder = reserved.begin(&plan.to_yaml())?;
    manifest.write(&folder.manifest())?;
    run.listen(&folder, &notes)?;
    if let Some(recorder) = recorder {
        results::write_to(&recorder.begin()?, plan, &model, &run.engine, &run.state.policy)?;
        run.stepper.record(recorder);
    }
    let last = run.train()?;
    run.finish(&folder, &model, &data, last, manifest)
}

/// A run under way.
struct Run<'a> {
    plan: &'a TrainPlan,
    options: &'a RunOptions<'a>,
    objective: &'a dyn Objective,
    streams: Streams,
    store: CheckpointStore,
    guard: Guard,
    feed: Feed<'a>,
    identity: RunIdentity,
    engine: Engine,
    state: State,
    stepper: Stepper<'a>,
    probe: Option<Probe>,
    held: Option<HeldOut<'a>>,
    pictures: Option<Pictures>,
    noise_schedule: &'a NoiseSchedule,
    folder: RunFolder,
    /// Errors of the initial policy on all held-out draws; measured when first needed.
    held_initial: Option<Errors>,
    /// Mean errors of policy and initial policy at the evaluation of this step.
    held_means: Option<(guard::Errors, guard::Errors)>,
    initial_scores: Option<HeldOutScores>,
    /// What was found of the pictures drawn before the first step.
    initial_pictures: BTreeMap<String, f64>,
    best: Option<Best>,
    seconds_before: f64,
    started: Instant,
    listeners: Listeners,
}

impl Run<'_> {
    /// Brings weights and moments up to date, if newer ones are on the device.
    fn fetch(&mut self) -> Result<()> {
        self.stepper.fetch(&mut self.state)
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    /// What came of the run.
    fn summary(&self, last: Option<HeldOutScores>, ceiling_acc: Option<f64>, manifest: Manifest) -> Summary {
        Summary {
            initial: self.initial_scores,
            initial_pictures: self.initial_pictures.clone(),
            last,
            ceiling_acc,
            steps: self.state.step,
            seconds: self.seconds(),
            peak_rss_mb: memory::peak_rss_mb(),
            manifest,
        }
    }

    /// Takes up a checkpoint, where that is asked for, and measures what the initial policy does; returns what there is to note.
    fn go_on(&mut self, model: &Model, data: &Data) -> Result<Vec<String>> {
        let mut notes = data.train.as_ref().map_or_else(Vec::new, Dataset::warnings);
        if self.options.resume {
            notes.extend(self.resume()?);
        }
        // After the initial policy is known, which a resumed run has from its checkpoint.
        self.measure_initial_probe(model, data)?;
        Ok(notes)
    }

    /// Writes what came of the run.
    fn finish(
        &mut self,
        folder: &RunFolder,
        model: &Model,
        data: &Data,
        last: Option<HeldOutScores>,
        manifest: Manifest,
    ) -> Result<Summary> {
        self.write_results(folder, model)?;
        let ceiling = data.heldout.as_ref().and_then(results::ceiling);
        let summary = self.summary(last, ceiling, manifest);
        summary.write(&folder.summary())?;
        self.listeners.emit(&Event::Finished)?;
        Ok(summary)
    }

    /// Sets up the drift probe where the reference moves, or did until a gate froze it.
    fn measure_initial_probe(&mut self, model: &Model, data: &Data) -> Result<()> {
        if self.objective.needs().reference && self.plan.reference.update != UpdateConfig::Frozen {
            let draws = self.plan.reference.probe;
            let initial = (&mut self.engine, &self.state.initial);
            let source = self.feed.probe_source(data.train.as_ref(), initial, draws)?;
            self.probe = Some(Probe::new(
                source.as_ref(),
                &model.schedule,
                &self.streams,
                draws,
                &mut self.engine,
                &self.state.initial,
            )?);
        }
        Ok(())
    }

    /// Opens the files that tell of the run, and tells the first things.
    fn listen(&mut self, folder: &RunFolder, notes: &[String]) -> Result<()> {
        self.listeners
            .add(MetricsFile::open(&folder.metrics(), self.state.step)?);
        self.listeners.add(TensorBoard::create(folder.root())?);
        self.listeners.add(ProgressLine::new(self.options.console));
        notes
            .iter()
            .try_for_each(|note| self.listeners.emit(&Event::Note(note)))
    }

    /// All steps that are left; returns the last evaluation.
    fn train(&mut self) -> Result<Option<HeldOutScores>> {
        self.warm_up()?;
        let mut measured = Measured::default();
        if self.state.step == 0 {
            self.initial_scores = self.evaluate(self.all_heldout(), &mut measured)?;
            self.draw_pictures(&mut measured)?;
            self.initial_pictures.clone_from(&measured.pictures);
        }
        self.listeners.emit(&Event::Started {
            done: self.state.step,
            steps: self.plan.train.steps,
            pairs_per_step: self.plan.train.pairs_per_step,
            initial: (self.initial_scores.is_some() || self.pictures.is_some()).then_some(&measured),
        })?;
        let mut last = None;
        while self.state.step < self.plan.train.steps {
            let (report, scores, verdict) = match self.one_step() {
                // In the middle of a round of rollouts, which will be made anew: the step before is whole.
                Err(Error::Interrupted(_)) if self.state.step > 0 => {
                    self.save_if_due()?;
                    continue;
                }
                done => done?,
            };
            self.listeners.emit(&Event::Step(&report))?;
            match verdict {
                Verdict::GoOn => {
                    self.keep_best(&report.measured)?;
                    last = scores.or(last);
                }
                Verdict::Stop(reason) => return Err(self.diverged(&reason, self.after_guard())),
                Verdict::RollBack(reason) => {
                    self.roll_back(&reason)?;
                    continue;
                }
            }
            self.save_if_due()?;
        }
        // A run that was cut off between its last checkpoint and its results is resumed with no step left.
        match last {
            None => {
                self.fetch()?;
                self.evaluate(self.all_heldout(), &mut Measured::default())
            }
            found => Ok(found),
        }
    }

    /// Writes a checkpoint after the steps that the plan names, and when the user asks to stop, which ends the run.
    fn save_if_due(&mut self) -> Result<()> {
        let step = self.state.step;
        let stopping = self.options.stop.load(Ordering::Relaxed) && step < self.plan.train.steps;
        if stopping || self.plan.train.saves_at(step) {
            let path = self.save()?;
            self.listeners
                .emit(&Event::Note(&format!("checkpoint {}", path.display())))?;
        }
        match stopping {
            true => Err(Error::Interrupted(format!(
                "stopped after step {step}; go on with the same command and --resume"
            ))),
            false => Ok(()),
        }
    }

    /// Saves a checkpoint if the evaluation that was just made is the best so far.
    fn keep_best(&mut self, measured: &Measured) -> Result<()> {
        let Some(name) = &self.plan.train.keep_best else {
            return Ok(());
        };
        let Some(value) = measured.metric(name) else {
            return Ok(());
        };
        let best = Best::or(self.best, self.state.step, value);
        if self.best == Some(best) {
            return Ok(());
        }
        self.best = Some(best);
        // Saved with the next regular checkpoint where that is due right now.
        if !self.plan.train.saves_at(self.state.step) {
            self.save()?;
        }
        let note = format!("step {}: the best so far by {name}, {value:.4}", self.state.step);
        self.listeners.emit(&Event::Note(&note))
    }

    /// Writes the weights that the run leaves: the policy's, and where they are kept the average's and the best ones.
    fn write_results(&mut self, folder: &RunFolder, model: &Model) -> Result<()> {
        self.fetch()?;
        let write =
            |folder: &RunFolder, weights| results::write(folder, self.plan, model, &self.engine, weights);
        write(folder, &self.state.policy)?;
        if let Some(average) = &self.state.average {
            write(&folder.part("ema")?, &average.weights)?;
        }
        if let Some(best) = self.best {
            let found = self.store.load(best.step, self.engine.layout())?;
            let part = folder.part("best")?;
            write(&part, found.average.as_ref().unwrap_or(&found.policy))?;
            part.describe_best(self.plan.train.keep_best.as_deref().unwrap_or_default(), best)?;
        }
        Ok(())
    }

    /// What a user can do when the guard has stopped the run.
    fn after_guard(&self) -> &'static str {
        match (self.plan.guard.action, self.store.latest()) {
            (GuardAction::Stop, Ok(Some(_))) => {
                "Resume with --set guard.action=rollback to go on from there at a lower learning rate, or start a \
                 new run with a lower optimizer.lr."
            }
            _ => LOWER_LR,
        }
    }

    /// Draws, steps, measures, and asks the guard what to do next.
    fn one_step(&mut self) -> Result<(StepReport, Option<HeldOutScores>, Verdict)> {
        let began = Instant::now();
        let pairs = self.draw()?;
        self.state.lr_factor = self.guard.lr_factor();
        let stats = self
            .stepper
            .step(&mut self.state, &mut self.engine, &pairs, self.probe.as_ref())
            .map_err(|error| match error {
                Error::Diverged(what) => self.diverged(&what, LOWER_LR),
                other => other,
            })?;
        let mut report = self.report(&stats);
        report.seconds = began.elapsed().as_secs_f64();
        let errors = guard::Errors {
            preferred: stats.e_w,
            rejected: self.objective.needs().pairs.then_some(stats.e_l),
        };
        let is_steps = self.objective.needs().experience.is_steps();
        let mut verdict = match is_steps || stats.skipped {
            // Losses of policy gradients are around zero, and errors of steps are as large as their noise: neither tells.
            true => Verdict::GoOn,
            false => self.guard.after_step(stats.loss, errors),
        };
        report.measured.round = self.feed.take_report();
        let scores = self.measure(&mut report.measured)?;
        if let Some((policy, initial)) = self.held_means.take()
            && verdict == Verdict::GoOn
        {
            verdict = self.guard.after_evaluation(policy, initial);
        }
        Ok((report, scores, verdict))
    }

    /// What the plan wants to see after this step, beyond the batch.
    fn measure(&mut self, measured: &mut Measured) -> Result<Option<HeldOutScores>> {
        let step = self.state.step;
        let mut scores = None;
        if self.plan.train.evaluates_at(step) {
            self.fetch()?;
            let pairs = match step == self.plan.train.steps {
                true => self.all_heldout(),
                false => self.plan.train.eval_pairs.unwrap_or(self.all_heldout()),
            };
            scores = self.evaluate(pairs, measured)?;
            self.draw_pictures(measured)?;
        }
        if self.probe.is_some() && self.state.reference_rule.drift_due(step) {
            self.fetch()?;
        }
        if let (Some(probe), true) = (&self.probe, self.state.reference_rule.drift_due(step)) {
            let drift = probe.drift(&mut self.engine, &self.state.reference())?;
            measured.d_ref_init = Some(drift.d);
            measured.kl_ref_init = Some(drift.kl);
        }
        Ok(scores)
    }

    /// The pairs of the next step with all their random numbers.
    fn draw(&mut self) -> Result<Vec<DrawnPair>> {
        if self.objective.needs().experience.is_online() {
            self.fetch()?;
        }
        let policies = Policies {
            engine: &mut self.engine,
            state: &self.state,
        };
        self.feed.next_batch(policies, self.plan.train.pairs_per_step)
    }

    /// What the next step will be given.
    fn peek(&mut self) -> Result<Vec<DrawnPair>> {
        let policies = Policies {
            engine: &mut self.engine,
            state: &self.state,
        };
        self.feed.peek(policies, self.plan.train.pairs_per_step)
    }

    /// Runs every session on the first batch without using what comes out.
    fn warm_up(&mut self) -> Result<()> {
        let pairs = self.peek()?;
        for _ in 0..WARM_UP_RUNS {
            self.stepper.warm_up(&self.state, &mut self.engine, &pairs)?;
        }
        Ok(())
    }

    fn report(&self, stats: &StepStats) -> StepReport {
        let needs = self.objective.needs();
        StepReport {
            step: self.state.step,
            loss: stats.loss,
            lr: stats.lr,
            acc: stats.margins.accuracy(),
            margin: stats.margins.mean(),
            e_w: stats.e_w,
            e_l: needs.pairs.then_some(stats.e_l),
            ref_e_w: needs.reference.then_some(stats.ref_e_w),
            ref_e_l: (needs.reference && needs.pairs).then_some(stats.ref_e_l),
            grad_norm: stats.grad_norm,
            grad_factor: stats.grad_factor,
            weight_mean: stats.weight_mean,
            seconds: 0.0,
            beta: self.objective.beta(),
            beta_effective: self.objective.beta_effective(),
            anchor_loss: stats.anchor_loss,
            anchor_grad_ratio: stats.anchor_ratio,
            loss_scale: stats.loss_scale.map(f64::from),
            skipped: stats.skipped,
            measured: Measured {
                d_ref_init: stats.gate.map(|g| g.d),
                ..Measured::default()
            },
        }
    }
}
