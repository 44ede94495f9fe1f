//! The divergence guard: notices a run that is no longer worth its time, and says what to do.
//!
//! Two things end diffusion preference runs: the loss jumps and stays up (images become noise), or both denoising
//! errors grow far past the initial model's while the margin looks healthy. The guard is a policy: it sees numbers and
//! returns a [`Verdict`]; the loop acts. Losses or gradients that are not finite never get here; they end a step at once.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::config::guard::{GuardAction, GuardConfig};

/// Losses whose median is compared with the starting level: one bad batch is no divergence.
const RECENT: usize = 5;

/// Weight of the newest step in the smoothed errors.
const NEWEST: f64 = 0.1;

/// Mean denoising errors of one model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Errors {
    /// On preferred images.
    pub preferred: f64,
    /// On rejected images; `None` for objectives without pairs.
    pub rejected: Option<f64>,
}

/// What the loop has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Go on.
    GoOn,
    /// End the run with this reason.
    Stop(String),
    /// Go back to a checkpoint from before [`Guard::SUSPECT`], call [`Guard::rolled_back`], and go on.
    RollBack(String),
}

/// What a checkpoint keeps of a guard.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GuardState {
    /// Losses of the first `warmup` steps.
    first_losses: Vec<f64>,
    /// The newest losses, the oldest first.
    recent_losses: VecDeque<f64>,
    /// Sum of the policy's errors over the first `warmup` steps, when it was close to the initial policy.
    first_errors: Option<Errors>,
    /// The policy's errors, smoothed over about ten steps.
    smooth_errors: Option<Errors>,
    /// How often the run went back.
    rollbacks: u32,
}

/// See the module's text.
#[derive(Debug, Clone, PartialEq)]
pub struct Guard {
    config: GuardConfig,
    state: GuardState,
}

impl Guard {
    /// Steps before a verdict whose losses led to it: the weights of that time are suspect.
    pub const SUSPECT: u64 = RECENT as u64;

    /// A guard that has seen nothing.
    pub fn new(config: &GuardConfig) -> Self {
        Self {
            config: config.clone(),
            state: GuardState::default(),
        }
    }

    /// Factor of the learning rate after the rollbacks so far.
    pub fn lr_factor(&self) -> f64 {
        self.config.lr_factor.powi(self.state.rollbacks.min(64) as i32)
    }

    /// Takes the loss and the policy's errors of one optimizer step.
    pub fn after_step(&mut self, loss: f64, policy: Errors) -> Verdict {
        let state = &mut self.state;
        if (state.first_losses.len() as u64) < self.config.warmup {
            state.first_losses.push(loss);
            state.first_errors = Some(combine(state.first_errors, policy, |sum, new| sum + new));
            return Verdict::GoOn;
        }
        state.recent_losses.push_back(loss);
        if state.recent_losses.len() > RECENT {
            state.recent_losses.pop_front();
        }
        let smooth = combine(state.smooth_errors, policy, |smooth, new| {
            smooth + NEWEST * (new - smooth)
        });
        state.smooth_errors = Some(smooth);
        let growth = || self.error_growth(smooth, self.initial_errors()?, "the last steps");
        match self.loss_spike().or_else(growth) {
            None => Verdict::GoOn,
            Some(reason) => self.act(reason),
        }
    }

    /// Takes the exact comparison that an evaluation makes: errors of the policy and of the initial policy on the
    /// same held-out draws.
    pub fn after_evaluation(&mut self, policy: Errors, initial: Errors) -> Verdict {
        match self.error_growth(policy, initial, "held-out pairs") {
            None => Verdict::GoOn,
            Some(reason) => self.act(reason),
        }
    }

    /// The loop went back to a checkpoint with this state.
    pub fn rolled_back(&mut self, checkpoint: GuardState) {
        let rollbacks = self.state.rollbacks;
        self.state = GuardState {
            rollbacks,
            ..checkpoint
        };
    }

    /// For a checkpoint.
    pub fn state(&self) -> &GuardState {
        &self.state
    }

    /// Goes on from a checkpoint of a run that was interrupted.
    pub fn restore(&mut self, state: GuardState) {
        self.state = state;
    }

    fn initial_errors(&self) -> Option<Errors> {
        let steps = self.state.first_losses.len() as f64;
        self.state.first_errors.map(|sum| Errors {
            preferred: sum.preferred / steps,
            rejected: sum.rejected.map(|rejected| rejected / steps),
        })
    }

    fn loss_spike(&self) -> Option<String> {
        let factor = self.config.loss_spike?;
        if self.state.recent_losses.len() < RECENT {
            return None;
        }
        let recent = median(self.state.recent_losses.iter().copied().collect());
        let first = median(self.state.first_losses.clone());
        (recent > factor * first).then(|| {
            format!(
                "the loss has been around {recent:.3} for {RECENT} steps, more than {factor} times the {first:.3} that \
                 the run started with (guard.loss_spike)"
            )
        })
    }

    fn error_growth(&self, policy: Errors, initial: Errors, on: &str) -> Option<String> {
        let ratio = self.config.error_growth?;
        let grew = |now: f64, before: f64| now > ratio * before;
        let both = grew(policy.preferred, initial.preferred)
            && match (policy.rejected, initial.rejected) {
                (Some(now), Some(before)) => grew(now, before),
                _ => true,
            };
        both.then(|| {
            format!(
                "denoising errors on {on} are more than {ratio} times the initial model's, {:.4} against {:.4} on \
                 preferred images (guard.error_growth)",
                policy.preferred, initial.preferred
            )
        })
    }

    fn act(&mut self, reason: String) -> Verdict {
        match self.config.action {
            GuardAction::Rollback if self.state.rollbacks < self.config.max_rollbacks => {
                self.state.rollbacks += 1;
                Verdict::RollBack(reason)
            }
            GuardAction::Rollback => Verdict::Stop(format!(
                "{reason}; it went back {} times already",
                self.state.rollbacks
            )),
            GuardAction::Stop => Verdict::Stop(reason),
        }
    }
}

fn combine(old: Option<Errors>, new: Errors, with: impl Fn(f64, f64) -> f64) -> Errors {
    match old {
        None => new,
        Some(old) => Errors {
            preferred: with(old.preferred, new.preferred),
            rejected: old.rejected.zip(new.rejected).map(|(old, new)| with(old, new)),
        },
    }
}

/// The middle value, the upper one of two; the list is not empty.
fn median(mut values: Vec<f64>) -> f64 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GuardConfig {
        GuardConfig {
            warmup: 4,
            ..GuardConfig::default()
        }
    }

    fn errors(preferred: f64, rejected: f64) -> Errors {
        Errors {
            preferred,
            rejected: Some(rejected),
        }
    }

    /// A guard after its warm-up at loss 0.7 and errors 0.1 and 0.2.
    fn warm(config: &GuardConfig) -> Guard {
        let mut guard = Guard::new(config);
        for loss in [0.6, 0.7, 0.8, 0.7] {
            assert_eq!(guard.after_step(loss, errors(0.1, 0.2)), Verdict::GoOn);
        }
        guard
    }

    /// Steps until the guard trips.
    fn steps_until_trip(guard: &mut Guard, loss: f64, policy: Errors) -> (usize, Verdict) {
        (1..100)
            .map(|step| (step, guard.after_step(loss, policy)))
            .find(|(_, verdict)| *verdict != Verdict::GoOn)
            .expect("the guard trips within 100 steps")
    }

    #[test]
    fn a_loss_that_stays_up_trips_and_single_spikes_do_not() {
        let mut guard = warm(&config());
        for step in 0..50 {
            // Every third step is a spike: two of five at most.
            let loss = if step % 3 == 0 { 100.0 } else { 0.5 };
            assert_eq!(guard.after_step(loss, errors(0.1, 0.2)), Verdict::GoOn, "{step}");
        }
        let (steps, verdict) = steps_until_trip(&mut guard, 4.0, errors(0.1, 0.2));
        let Verdict::Stop(reason) = verdict else {
            panic!("{verdict:?}")
        };
        assert!(
            steps <= 3 && reason.contains("more than 5 times the 0.700"),
            "{steps}: {reason}"
        );
    }

    #[test]
    fn both_errors_have_to_grow() {
        let mut guard = warm(&config());
        for _ in 0..100 {
            assert_eq!(guard.after_step(0.3, errors(0.15, 2.0)), Verdict::GoOn);
        }
        let (_, verdict) = steps_until_trip(&mut guard, 0.3, errors(0.5, 2.0));
        assert!(matches!(verdict, Verdict::Stop(reason) if reason.contains("initial model's")));
        // Without pairs there is only one error to grow.
        let alone = |error| Errors {
            preferred: error,
            rejected: None,
        };
        let mut guard = Guard::new(&config());
        (0..4).for_each(|_| drop(guard.after_step(0.1, alone(0.1))));
        assert_eq!(guard.after_step(0.1, alone(0.15)), Verdict::GoOn);
        assert_eq!(guard.after_evaluation(alone(0.19), alone(0.1)), Verdict::GoOn);
        assert!(matches!(
            guard.after_evaluation(alone(0.21), alone(0.1)),
            Verdict::Stop(_)
        ));
    }

    #[test]
    fn what_is_turned_off_never_trips() {
        let mut guard = warm(&GuardConfig {
            loss_spike: None,
            error_growth: None,
            ..config()
        });
        for _ in 0..50 {
            assert_eq!(guard.after_step(1e9, errors(1e9, 1e9)), Verdict::GoOn);
        }
        assert_eq!(
            guard.after_evaluation(errors(9.0, 9.0), errors(0.1, 0.1)),
            Verdict::GoOn
        );
    }

    #[test]
    fn rollbacks_lower_the_learning_rate_and_end() {
        let mut guard = warm(&GuardConfig {
            action: GuardAction::Rollback,
            max_rollbacks: 2,
            ..config()
        });
        let checkpoint = guard.state().clone();
        for expected in [0.5, 0.25] {
            let (_, verdict) = steps_until_trip(&mut guard, 50.0, errors(0.1, 0.2));
            assert!(matches!(verdict, Verdict::RollBack(_)), "{verdict:?}");
            guard.rolled_back(checkpoint.clone());
            assert_eq!(guard.lr_factor(), expected);
        }
        let (_, verdict) = steps_until_trip(&mut guard, 50.0, errors(0.1, 0.2));
        assert!(matches!(verdict, Verdict::Stop(reason) if reason.ends_with("it went back 2 times already")));
    }

    #[test]
    fn a_restored_guard_goes_on_as_if_nothing_had_happened() {
        let mut guard = warm(&config());
        (0..7).for_each(|step| drop(guard.after_step(0.1 * f64::from(step), errors(0.11, 0.21))));
        let saved = serde_json::to_string(guard.state()).unwrap();
        let mut resumed = Guard::new(&config());
        resumed.restore(serde_json::from_str(&saved).unwrap());
        assert_eq!(resumed, guard);
    }
}
