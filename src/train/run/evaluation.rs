//! Held-out evaluation during a run: what is measured, against what, and what becomes of it.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use super::Run;
use crate::params::ParamSet;
use crate::progress::Console;
use crate::timestep::BinMargins;
use crate::train::engine::Engine;
use crate::train::evaluate::{Errors, HeldOut};
use crate::train::report::Measured;
use crate::train::summary::HeldOutScores;
use crate::{Error, Result};

impl Run<'_> {
    /// Number of held-out pairs.
    pub(super) fn all_heldout(&self) -> usize {
        self.held.as_ref().map_or(0, HeldOut::pairs)
    }

    /// Margins on the first `pairs` held-out pairs, against the initial policy and the reference. `None` without
    /// held-out pairs.
    pub(super) fn evaluate(
        &mut self,
        pairs: usize,
        measured: &mut Measured,
    ) -> Result<Option<HeldOutScores>> {
        let Some(held) = &self.held else { return Ok(None) };
        let (state, engine, console) = (&self.state, &mut self.engine, self.options.console);
        if self.held_initial.is_none() {
            let all = held.pairs();
            let found = errors(held, engine, console, ("initial policy", &state.initial), all)?;
            self.held_initial = Some(found);
        }
        let initial = self.held_initial.as_ref().expect("measured above");
        let mut of = |what, weights: &ParamSet| match weights.values() == state.initial.values() {
            true => Ok(initial.clone()),
            false => errors(held, engine, console, (what, weights), pairs),
        };
        let policy = of("policy", state.evaluated())?;
        let reference = of("reference", &state.reference())?;
        let bins = state.timestep_rule.bins();
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
        measured.bins = Some(state.timestep_rule.bins_report(Some(&by_bin)));
        self.held_means = Some((policy.means(), initial.first(policy.len()).means()));
        Ok(Some(scores))
    }

    /// Draws the pictures of `samples` with the weights that are evaluated, and writes them down.
    pub(super) fn draw_pictures(&mut self, measured: &mut Measured) -> Result<()> {
        let Some(pictures) = &self.pictures else {
            return Ok(());
        };
        let mut job = self.options.console.job("drawing", pictures.len() as u64);
        let stop = self.options.stop;
        let mut progress = |done: usize| {
            job.advance(done as u64, "pictures");
            match stop.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let weights = self.state.evaluated();
        let drawn = match pictures.draw(&mut self.engine, weights, self.noise_schedule, &mut progress) {
            // The step before is whole: the loop ends the run in order.
            Err(Error::Interrupted(_)) => return Ok(()),
            drawn => drawn?,
        };
        measured.pictures = drawn.means;
        pictures.write_sheet(&self.folder.sheet(self.state.step)?, &drawn.images)
    }
}

/// Errors of named weights on the first `pairs` held-out pairs.
fn errors(
    held: &HeldOut,
    engine: &mut Engine,
    console: Console,
    (what, weights): (&str, &ParamSet),
    pairs: usize,
) -> Result<Errors> {
    let mut job = console.job(&format!("evaluating {what}"), pairs as u64);
    held.errors(engine, weights, pairs, |done| job.advance(done as u64, "pairs"))
}
