//! A training run: from a checked plan to a folder of results.
//!
//! ```text
//! prepare (model, pairs, sessions) ─► [resume] ─► warm up ─► step ─► measure ─► checkpoint ─► … ─► results
//! ```
//!
//! The loop only executes: what moves the reference, weighs timesteps, notices divergence or keeps checkpoints are
//! policies of their own.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::checkpoint::{Best, CheckpointStore, RunIdentity, RunState, Tensors};
use super::draw::DrawnPair;
use super::engine::Engine;
use super::evaluate::{Errors, HeldOut};
use super::folder::RunFolder;
use super::guard::{self, Guard, Verdict};
use super::model::Model;
use super::prepare::{self, Measurable};
use super::probe::Probe;
use super::report::{Event, Listeners, Measured, MetricsFile, ProgressLine, StepReport, TensorBoard};
use super::state::State;
use super::step::{StepStats, Stepper};
use super::summary::{DataSummary, HeldOutScores, Manifest, Summary, Versions};
use super::{memory, results};
use crate::config::TrainPlan;
use crate::config::objective::ObjectiveConfig;
use crate::data::{Dataset, Loader, Part};
use crate::objective::Objective;
use crate::progress::Console;
use crate::rng::Streams;
use crate::timestep::BinMargins;
use crate::{Error, Result, runtime};

/// What a run is told besides its plan.
pub struct RunOptions<'a> {
    /// Folder of the run.
    pub output: PathBuf,
    /// Go on from the newest checkpoint there.
    pub resume: bool,
    /// Where progress is shown.
    pub console: Console,
    /// Set to ask for an orderly end: the step is finished and a checkpoint written.
    pub stop: &'a AtomicBool,
}

/// Runs that are never timed: the first two or three of a session are several times slower than the rest.
const WARM_UP_RUNS: usize = 2;

/// Trains as `plan` says and returns what came of it.
pub fn run(plan: &TrainPlan, options: &RunOptions) -> Result<Summary> {
    let started = Instant::now();
    let library = runtime::init(&runtime::RuntimeOptions::default())?
        .version()
        .to_owned();
    let model = Model::open(&plan.model)?;
    let folder = match options.resume {
        true => RunFolder::existing(&options.output)?,
        false => RunFolder::create(&options.output, &plan.to_yaml())?,
    };
    let data = |part| prepare::dataset(plan, &model, part, options.console, options.stop);
    let train = data(Part::Train)?.expect("the split that is trained on is always named");
    let heldout = data(Part::Heldout)?;
    let streams = Streams::new(plan.seed);
    let objective = prepare::objective(&plan.objective);
    let (mut engine, initial) = prepare::engine(plan, &model, &train, objective.as_ref(), &streams)?;
    let state = State::new(plan, &model, initial)?;
    let identity = RunIdentity::new(
        plan.identity(),
        hex(&model.hash.0),
        data_hash(&train, heldout.as_ref()),
        Versions::with_runtime(library),
    );
    let manifest = manifest(
        plan,
        &identity,
        &engine,
        &train,
        heldout.as_ref(),
        objective.as_ref(),
    );
    manifest.write(&folder.manifest())?;
    let (train_source, heldout_source) = (Measurable(&train), heldout.as_ref().map(Measurable));
    let needs_probe = objective.needs_reference() && state.reference_rule.moves();
    let probe = match needs_probe {
        true => Some(Probe::new(
            &train_source,
            &model.schedule,
            &streams,
            plan.reference.probe,
            &mut engine,
            &state.initial,
        )?),
        false => None,
    };
    let held = heldout_source
        .as_ref()
        .filter(|_| objective.needs_pairs())
        .map(|source| {
            HeldOut::new(
                source,
                &model.schedule,
                streams,
                source.0.pairs().len(),
                plan.train.eval_draws,
            )
        });
    let stepper = Stepper::new(
        plan,
        &model.schedule,
        &engine,
        objective.needs_pairs(),
        objective.needs_reference(),
    );
    let mut run = Run {
        plan,
        options,
        objective: objective.as_ref(),
        streams,
        store: CheckpointStore::new(folder.checkpoints(), plan.train.keep),
        guard: Guard::new(&plan.guard),
        loader: Loader::new(&train, streams, plan.data.ties, plan.data.prompt_dropout),
        identity,
        engine,
        state,
        stepper,
        probe,
        held,
        held_initial: None,
        held_means: None,
        initial_scores: None,
        best: None,
        seconds_before: 0.0,
        started,
        listeners: Listeners::default(),
    };
    if options.resume {
        run.resume(None)?;
    }
    run.listeners
        .add(MetricsFile::open(&folder.metrics(), run.state.step)?);
    run.listeners.add(TensorBoard::create(folder.root())?);
    run.listeners.add(ProgressLine::new(options.console));
    for warning in train.warnings() {
        run.listeners.emit(&Event::Note(&warning))?;
    }
    let last = run.train()?;
    results::write(&folder, plan, &model, &run.engine, &run.state.policy)?;
    let summary = Summary {
        initial: run.initial_scores,
        last,
        ceiling_acc: heldout.as_ref().and_then(results::ceiling),
        steps: run.state.step,
        seconds: run.seconds(),
        peak_rss_mb: memory::peak_rss_mb(),
        manifest,
    };
    summary.write(&folder.summary())?;
    run.listeners.emit(&Event::Finished)?;
    Ok(summary)
}

/// A run under way.
struct Run<'a> {
    plan: &'a TrainPlan,
    options: &'a RunOptions<'a>,
    objective: &'a dyn Objective,
    streams: Streams,
    store: CheckpointStore,
    guard: Guard,
    loader: Loader<'a>,
    identity: RunIdentity,
    engine: Engine,
    state: State,
    stepper: Stepper<'a>,
    probe: Option<Probe>,
    held: Option<HeldOut<'a>>,
    /// Errors of the initial policy on all held-out draws; measured when first needed.
    held_initial: Option<Errors>,
    /// Mean errors of policy and initial policy at the evaluation of this step.
    held_means: Option<(guard::Errors, guard::Errors)>,
    initial_scores: Option<HeldOutScores>,
    best: Option<Best>,
    seconds_before: f64,
    started: Instant,
    listeners: Listeners,
}

impl Run<'_> {
    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    /// All steps that are left; returns the last evaluation.
    fn train(&mut self) -> Result<Option<HeldOutScores>> {
        self.warm_up()?;
        let mut measured = Measured::default();
        if self.state.step == 0 {
            self.initial_scores = self.evaluate(self.all_heldout(), &mut measured)?;
        }
        self.listeners.emit(&Event::Started {
            done: self.state.step,
            steps: self.plan.train.steps,
            pairs_per_step: self.plan.train.pairs_per_step,
            initial: self.initial_scores.is_some().then_some(&measured),
        })?;
        let mut last = None;
        while self.state.step < self.plan.train.steps {
            let (report, scores) = self.one_step()?;
            self.listeners.emit(&Event::Step(&report))?;
            last = scores.or(last);
            let step = self.state.step;
            let stopping = self.options.stop.load(Ordering::Relaxed) && step < self.plan.train.steps;
            if stopping || self.plan.train.saves_at(step) {
                let path = self.save()?;
                self.listeners
                    .emit(&Event::Note(&format!("checkpoint {}", path.display())))?;
            }
            if stopping {
                return Err(Error::Interrupted(format!(
                    "stopped after step {step}; go on with the same command and --resume"
                )));
            }
        }
        Ok(last)
    }

    /// Draws, steps, measures. Divergence ends the run or takes it back.
    fn one_step(&mut self) -> Result<(StepReport, Option<HeldOutScores>)> {
        let began = Instant::now();
        let pairs = self.draw()?;
        self.state.lr_factor = self.guard.lr_factor();
        let stats = self
            .stepper
            .step(&mut self.state, &mut self.engine, &pairs, self.probe.as_ref())?;
        let mut report = self.report(&stats);
        report.seconds = began.elapsed().as_secs_f64();
        let errors = guard::Errors {
            preferred: stats.e_w,
            rejected: self.objective.needs_pairs().then_some(stats.e_l),
        };
        let mut verdict = self.guard.after_step(stats.loss, errors);
        let mut scores = None;
        let step = self.state.step;
        if self.plan.train.evaluates_at(step) {
            let pairs = match step == self.plan.train.steps {
                true => self.all_heldout(),
                false => self.plan.train.eval_pairs.unwrap_or(self.all_heldout()),
            };
            scores = self.evaluate(pairs, &mut report.measured)?;
        }
        if let (Some(probe), true) = (&self.probe, self.state.reference_rule.drift_due(step)) {
            let drift = probe.drift(&mut self.engine, &self.state.reference)?;
            report.measured.d_ref_init = Some(drift.d);
            report.measured.kl_ref_init = Some(drift.kl);
        }
        if verdict == Verdict::GoOn
            && let Some((policy, initial)) = self.held_means.take()
        {
            verdict = self.guard.after_evaluation(policy, initial);
        }
        match verdict {
            Verdict::GoOn => {}
            Verdict::Stop(reason) => return Err(Error::Diverged(reason)),
            Verdict::RollBack(reason) => self.resume(Some(&reason))?,
        }
        Ok((report, scores))
    }

    /// The pairs of the next step with all their random numbers.
    fn draw(&mut self) -> Result<Vec<DrawnPair>> {
        let batch = self.loader.next_batch(self.plan.train.pairs_per_step)?;
        Ok(DrawnPair::from_batch(
            &batch,
            &self.streams,
            &self.state.timestep_rule,
        ))
    }

    /// Runs every session on the first batch without using what comes out.
    fn warm_up(&mut self) -> Result<()> {
        let before = self.loader.state();
        let pairs = self.draw()?;
        self.loader.resume(before)?;
        for _ in 0..WARM_UP_RUNS {
            self.stepper.warm_up(&self.state, &mut self.engine, &pairs)?;
        }
        Ok(())
    }

    fn report(&self, stats: &StepStats) -> StepReport {
        let reference = self.objective.needs_reference();
        let beta = match &self.plan.objective {
            ObjectiveConfig::Dpo(dpo) => Some(dpo.beta),
            ObjectiveConfig::Sft(_) => None,
        };
        StepReport {
            step: self.state.step,
            loss: stats.loss,
            lr: stats.lr,
            acc: stats.margins.accuracy(),
            margin: stats.margins.mean(),
            e_w: stats.e_w,
            e_l: self.objective.needs_pairs().then_some(stats.e_l),
            ref_e_w: reference.then_some(stats.ref_e_w),
            ref_e_l: reference.then_some(stats.ref_e_l),
            grad_norm: stats.grad_norm,
            grad_factor: reference.then_some(stats.grad_factor),
            weight_mean: stats.weight_mean,
            seconds: 0.0,
            beta,
            beta_effective: self.objective.beta_effective(),
            anchor_loss: stats.anchor_loss,
            anchor_grad_ratio: stats.anchor_ratio,
            measured: Measured {
                d_ref_init: stats.gate.map(|g| g.d),
                ..Measured::default()
            },
        }
    }

    fn all_heldout(&self) -> usize {
        self.held.as_ref().map_or(0, HeldOut::pairs)
    }

    /// Margins on the first `pairs` held-out pairs, against the initial policy and the reference.
    fn evaluate(&mut self, pairs: usize, measured: &mut Measured) -> Result<Option<HeldOutScores>> {
        let Some(held) = &self.held else { return Ok(None) };
        let console = self.options.console;
        let errors = |engine: &mut Engine, weights: &_, what: &str, pairs: usize| {
            let mut job = console.job(&format!("evaluating {what}"), pairs as u64);
            held.errors(engine, weights, pairs, |done| job.advance(done as u64, "pairs"))
        };
        if self.held_initial.is_none() {
            let all = held.pairs();
            self.held_initial = Some(errors(
                &mut self.engine,
                &self.state.initial,
                "initial policy",
                all,
            )?);
        }
        let initial = self.held_initial.as_ref().expect("measured above");
        let same = |a: &crate::params::ParamSet, b: &crate::params::ParamSet| a.values() == b.values();
        let policy = match same(&self.state.policy, &self.state.initial) {
            true => initial.clone(),
            false => errors(&mut self.engine, &self.state.policy, "policy", pairs)?,
        };
        let reference = match same(&self.state.reference, &self.state.initial) {
            true => initial.clone(),
            false => errors(&mut self.engine, &self.state.reference, "reference", pairs)?,
        };
        let bins = self.state.timestep_rule.bins();
        let (to_init, by_bin): (_, BinMargins) = held.margins(&policy, initial, bins);
        let (to_ref, _) = held.margins(&policy, &reference, bins);
        let scores = HeldOutScores {
            acc_init: to_init.accuracy().unwrap_or(0.5),
            margin_init: to_init.mean().unwrap_or(0.0),
            acc_ref: to_ref.accuracy().unwrap_or(0.5),
            margin_ref: to_ref.mean().unwrap_or(0.0),
        };
        measured.acc_init = Some(scores.acc_init);
        measured.margin_init = Some(scores.margin_init);
        measured.acc_ref = Some(scores.acc_ref);
        measured.margin_ref = Some(scores.margin_ref);
        measured.bins = Some(self.state.timestep_rule.bins_report(Some(&by_bin)));
        self.held_means = Some((policy.means(), initial.first(policy.len()).means()));
        self.best = Some(Best::or(self.best, self.state.step, scores.acc_init));
        Ok(Some(scores))
    }

    /// Everything that moves, on disk.
    fn save(&mut self) -> Result<PathBuf> {
        let state = &self.state;
        let (first_moment, second_moment) = state.adamw.moments();
        let tensors = Tensors {
            policy: &state.policy,
            reference: &state.reference,
            initial: &state.initial,
            first_moment,
            second_moment,
        };
        let rest = RunState {
            step: state.step,
            optimizer_steps: state.adamw.steps(),
            loader: self.loader.state(),
            timestep: state.timestep_rule.state(),
            reference: state.reference_rule.state().clone(),
            guard: self.guard.state().clone(),
            initial: self.initial_scores,
            best: self.best,
            seconds: self.seconds(),
            identity: self.identity.clone(),
        };
        self.store.save(&rest, &tensors)
    }

    /// Goes on from the newest checkpoint: of an earlier run, or back from a divergence with its `reason`.
    fn resume(&mut self, rolled_back: Option<&str>) -> Result<()> {
        let folder = self.store.path(0);
        let place = folder.parent().unwrap_or(&folder).display().to_string();
        let Some(step) = self.store.latest()? else {
            return Err(match rolled_back {
                Some(reason) => Error::Diverged(format!("{reason}; there is no checkpoint to go back to")),
                None => Error::bad(place, "holds no checkpoint", "Start a new run without --resume."),
            });
        };
        let found = self.store.load(step, self.engine.layout())?;
        let notes = found
            .state
            .identity
            .accept(&self.identity, &self.store.path(step).display().to_string())?;
        for note in notes {
            self.listeners.emit(&Event::Note(&note))?;
        }
        let state = &mut self.state;
        state.step = found.state.step;
        state.policy = found.policy;
        state.reference = found.reference;
        state.initial = found.initial;
        state.adamw.restore(
            found.state.optimizer_steps,
            found.first_moment,
            found.second_moment,
        )?;
        state.timestep_rule.restore(found.state.timestep)?;
        state.reference_rule.restore(found.state.reference);
        self.loader.resume(found.state.loader)?;
        self.initial_scores = found.state.initial;
        self.best = found.state.best;
        match rolled_back {
            None => {
                self.guard.restore(found.state.guard);
                self.seconds_before = found.state.seconds;
            }
            Some(reason) => {
                self.guard.rolled_back(found.state.guard);
                self.listeners.emit(&Event::RolledBack { to: step, reason })?;
            }
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn data_hash(train: &Dataset, heldout: Option<&Dataset>) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(train.hash().as_bytes());
    hash.update(heldout.map_or("", Dataset::hash).as_bytes());
    hash.finalize().to_hex().to_string()
}

fn manifest(
    plan: &TrainPlan,
    identity: &RunIdentity,
    engine: &Engine,
    train: &Dataset,
    heldout: Option<&Dataset>,
    objective: &dyn Objective,
) -> Manifest {
    let options = prepare::session_options(plan);
    let counts = train.counts();
    Manifest {
        versions: identity.versions.clone(),
        config_hash: identity.config_hash.clone(),
        model_hash: identity.model_hash.clone(),
        data: DataSummary {
            hash: identity.data_hash.clone(),
            pairs: counts.pairs,
            ties: counts.ties,
            skipped: counts.skipped,
            truncated: counts.truncated_captions,
            heldout_pairs: heldout.map_or(0, |h| h.counts().pairs),
        },
        seed: plan.seed,
        trainable: engine.trainables().parameter_count(),
        pairs_per_step: plan.train.pairs_per_step,
        effective_lr: plan.optimizer.effective_lr(plan.train.pairs_per_step),
        beta: match &plan.objective {
            ObjectiveConfig::Dpo(dpo) => Some(dpo.beta),
            ObjectiveConfig::Sft(_) => None,
        },
        beta_effective: objective.beta_effective(),
        ep: options.ep.to_string(),
        threads: options.thread_count(),
    }
}
