//! Checkpoints of a run: writing them, going on from one, going back to one.

use std::path::PathBuf;

use super::Run;
use crate::train::checkpoint::{Checkpoint, RunState, Tensors};
use crate::train::guard::{Guard, GuardState};
use crate::train::report::Event;
use crate::{Error, Result};

impl Run<'_> {
    /// Everything that moves, on disk.
    ///
    /// # Errors
    /// It cannot be written, or holds values that are not finite: nobody could go on from them.
    pub(super) fn save(&mut self) -> Result<PathBuf> {
        self.fetch()?;
        let state = &self.state;
        let (first_moment, second_moment) = state.optimizer.moments();
        let reference = state.reference.kept(&state.initial);
        if let Some(name) = state.policy.non_finite().or(reference.non_finite()) {
            let what = format!("`{name}` is not finite after step {}", state.step);
            return Err(self.diverged(&what, super::LOWER_LR));
        }
        let (loader, rollouts) = self.feed.standing(&self.engine)?;
        let tensors = Tensors {
            policy: &state.policy,
            reference: &reference,
            initial: &state.initial,
            first_moment,
            second_moment,
            average: state.average.as_ref().map(|average| &average.weights),
            rollouts: rollouts.as_ref().map(|(_, tensors)| tensors),
        };
        let rest = RunState {
            step: state.step,
            optimizer_steps: state.optimizer.steps(),
            loader,
            rollouts: rollouts.as_ref().map(|(state, _)| state.clone()),
            timestep: state.timestep_rule.state(),
            reference: state.reference_rule.state().clone(),
            guard: self.guard.state().clone(),
            loss_scale: state.loss_scale,
            initial: self.initial_scores,
            initial_pictures: self.initial_pictures.clone(),
            best: self.best,
            seconds: self.seconds(),
            identity: self.identity.clone(),
        };
        self.store.save(&rest, &tensors)
    }

    /// Goes on from the newest checkpoint of an earlier run. Returns what a user should know about that.
    ///
    /// # Errors
    /// There is none, or it is damaged or of another run.
    pub(super) fn resume(&mut self) -> Result<Vec<String>> {
        let step = self
            .store
            .latest()?
            .expect("a folder without checkpoints is refused when it is opened");
        let found = self.store.load(step, self.engine.layout())?;
        let place = self.store.path(step).display().to_string();
        let notes = found.state.identity.accept(&self.identity, &place)?;
        if step > self.plan.train.steps {
            let what = format!(
                "is {}, but {place} is the checkpoint after step {step}",
                self.plan.train.steps
            );
            let remedy = format!("Give at least {step}, or start a new run in another --output.");
            return Err(Error::bad("train.steps", what, remedy));
        }
        self.seconds_before = found.state.seconds;
        let guard = self.restore(found)?;
        self.guard.restore(guard);
        Ok(notes)
    }

    /// Goes back because of `reason` to the newest checkpoint from before the divergence, or else to the oldest.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub(super) fn roll_back(&mut self, reason: &str) -> Result<()> {
        let steps = self.store.steps()?;
        let sound = |step: &&u64| **step + Guard::SUSPECT <= self.state.step;
        let Some(&step) = steps.iter().rfind(sound).or(steps.first()) else {
            return Err(self.diverged(reason, super::LOWER_LR));
        };
        let found = self.store.load(step, self.engine.layout())?;
        self.store.forget_after(step)?;
        let guard = self.restore(found)?;
        self.guard.rolled_back(guard);
        self.listeners.emit(&Event::RolledBack { to: step, reason })
    }

    /// Takes over what moves, except the guard's state, which it returns.
    fn restore(&mut self, found: Checkpoint) -> Result<GuardState> {
        self.stepper.forget_device();
        let (state, saved) = (&mut self.state, found.state);
        state.is_behind = false;
        state.step = saved.step;
        state.policy = found.policy;
        state.initial = found.initial;
        if let Some(model) = self.engine.model_weights() {
            state.initial.share_equal(model);
        }
        state.reference.restore(found.reference, &state.initial);
        if let (Some(average), Some(saved)) = (&mut state.average, found.average) {
            average.weights = saved;
        }
        state
            .optimizer
            .restore(saved.optimizer_steps, found.first_moment, found.second_moment)?;
        // A run may go on in another precision.
        state.loss_scale = state.loss_scale.map(|new| saved.loss_scale.unwrap_or(new));
        state.timestep_rule.restore(saved.timestep)?;
        state.reference_rule.restore(saved.reference);
        self.feed
            .restore((saved.loader, saved.rollouts.zip(found.rollouts)))?;
        self.initial_scores = saved.initial;
        self.initial_pictures = saved.initial_pictures;
        self.best = saved.best;
        Ok(saved.guard)
    }

    /// The error that ends a run which diverged: `what` happened, what there is to go back to, and what to do.
    pub(super) fn diverged(&self, what: &str, remedy: &str) -> Error {
        // One after this very step would hold the weights that failed.
        let before = |steps: Vec<u64>| steps.into_iter().rfind(|step| *step < self.state.step);
        let kept = match self.store.steps().map(before) {
            Ok(Some(step)) => format!("Checkpoint {} is whole.", self.store.path(step).display()),
            _ => "There is no checkpoint yet.".to_owned(),
        };
        Error::Diverged(format!("{what}. {kept} {remedy}"))
    }
}
