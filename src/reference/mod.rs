//! The reference rule: how the reference model follows the policy, and what holds it near the initial one.
//!
//! The rule is pure: it is told which optimizer step is due and returns what the loop has to do
//! ([`Action`]); the loop executes. Three [`ParamSet`](crate::params::ParamSet)s take part: the policy θ, the
//! reference, and the initial policy θ0, towards which every anchor holds.
//!
//! | update | rule | source |
//! |---|---|---|
//! | `frozen` | never moves | Diffusion-DPO, arXiv 2311.12908 |
//! | `ema` | every `every` steps `ref ← (1−α)·ref + α·θ` | TR-DPO soft, arXiv 2404.09656 |
//! | `copy` | every `every` steps `ref ← θ` | TR-DPO hard; arXiv 2505.18736 |
//!
//! | anchor | what it does | here |
//! |---|---|---|
//! | `kl` | a loss term on the reference as the next update will make it | [`ReferenceRule::kl`] |
//! | `pull` | a proximal step towards θ0 after each update | inside [`Blend`] |
//! | `gate` | an update is taken only while the denoising error stays near θ0's | [`ReferenceRule::judge`] |

mod blend;
mod weights;

use serde::{Deserialize, Serialize};

pub use blend::Blend;
pub(crate) use blend::lerp;
pub use weights::ReferenceWeights;

use crate::config::reference::{AnchorConfig, OnTripConfig, ReferenceConfig, UpdateConfig};
use crate::{Error, Result};

/// What the loop does to the reference in one optimizer step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    /// Nothing.
    Keep,
    /// Move the reference, in the same pass over memory as the optimizer step.
    Move(Blend),
    /// After the optimizer step, make the candidate, measure its drift `D` on the probe, and ask
    /// [`ReferenceRule::judge`].
    Probe(Blend),
}

/// What becomes of a measured candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The candidate becomes the reference.
    Accept,
    /// The reference stays as it is, now and for the rest of the run.
    Freeze,
    /// The reference becomes the initial policy again; updates go on.
    Reinit,
}

/// The `kl` anchor: adds `lambda · mean (prediction_ref' − prediction_θ0)²` to the loss, its gradient with
/// respect to `ref' = candidate` handed to the policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KlAnchor {
    /// Weight λ₁; the chain rule's factor α is part of it.
    pub lambda: f64,
    /// Share of the batch that the term is evaluated on.
    pub fraction: f64,
    /// Makes `ref'` from reference and policy.
    pub candidate: Blend,
}

impl KlAnchor {
    /// How many of `pairs` pairs the term is evaluated on; at least one.
    pub fn pairs(&self, pairs: usize) -> usize {
        ((pairs as f64 * self.fraction).round() as usize).clamp(1, pairs.max(1))
    }

    /// On how many of the `parts` parts of a batch, `pairs` pairs each, the term is evaluated; at least one. All of them, unless
    /// parts are so small that [`pairs`](Self::pairs) is more than the fraction of one.
    pub fn parts(&self, pairs: usize, parts: usize) -> usize {
        let each = self.pairs(pairs) as f64;
        let wanted = (pairs * parts) as f64 * self.fraction / each;
        (wanted.round() as usize).clamp(1, parts.max(1))
    }
}

/// One decision of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GateRecord {
    /// Optimizer step, counted from 1.
    pub step: u64,
    /// Mean over the probe of (denoising error of the candidate − that of the initial policy).
    pub drift: f64,
    /// Whether the candidate was taken.
    pub accepted: bool,
}

/// What a checkpoint keeps of a rule. Serialised as JSON, it comes back bit for bit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReferenceState {
    /// Whether a tripped gate has stopped all updates.
    pub frozen: bool,
    /// Every decision of the gate so far.
    pub gate: Vec<GateRecord>,
}

/// Update, anchor and measurements of the reference.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceRule {
    update: UpdateConfig,
    every: u64,
    measure_every: u64,
    blend: Blend,
    gate: Option<(f64, OnTripConfig)>,
    kl: Option<KlAnchor>,
    state: ReferenceState,
}

impl ReferenceRule {
    /// The rule of `config`; errors name the configuration key.
    pub fn new(config: &ReferenceConfig) -> Result<Self> {
        config.check()?;
        let alpha = match config.update {
            UpdateConfig::Copy => 1.0,
            UpdateConfig::Ema | UpdateConfig::Frozen => config.alpha,
        };
        let strength = match config.anchor {
            AnchorConfig::Pull { strength } => strength,
            _ => 0.0,
        };
        let blend = Blend::new(alpha, strength);
        Ok(Self {
            update: config.update,
            every: config.every(),
            measure_every: config.measure_every,
            blend,
            gate: match config.anchor {
                AnchorConfig::Gate { delta, on_trip } => Some((delta, on_trip)),
                _ => None,
            },
            kl: match config.anchor {
                AnchorConfig::Kl { lambda, fraction } => Some(KlAnchor {
                    lambda,
                    fraction,
                    candidate: blend,
                }),
                _ => None,
            },
            state: ReferenceState::default(),
        })
    }

    /// What to do in optimizer step `step`, counted from 1.
    pub fn action(&self, step: u64) -> Action {
        let moves = self.moves() && step.is_multiple_of(self.every);
        match (moves, &self.gate) {
            (false, _) => Action::Keep,
            (true, None) => Action::Move(self.blend),
            (true, Some(_)) => Action::Probe(self.blend),
        }
    }

    /// Decides on the candidate of step `step`, whose denoising error on the probe exceeds the initial
    /// policy's by `drift`. A drift that is not a number stops the run.
    ///
    /// # Panics
    /// If [`ReferenceRule::action`] did not ask for a probe.
    pub fn judge(&mut self, step: u64, drift: f64) -> Result<Verdict> {
        let (delta, on_trip) = self.gate.expect("only a gate asks for a probe");
        if !drift.is_finite() {
            return Err(Error::Diverged(format!(
                "the denoising error of the reference's candidate at step {step} is not finite"
            )));
        }
        let accepted = drift <= delta;
        self.state.gate.push(GateRecord {
            step,
            drift,
            accepted,
        });
        Ok(match on_trip {
            _ if accepted => Verdict::Accept,
            OnTripConfig::Freeze => {
                self.state.frozen = true;
                Verdict::Freeze
            }
            OnTripConfig::Reinit => Verdict::Reinit,
        })
    }

    /// The `kl` anchor, where it is configured.
    pub fn kl(&self) -> Option<KlAnchor> {
        self.kl
    }

    /// Whether updates draw the reference back towards the initial policy.
    pub fn pulls(&self) -> bool {
        self.blend.pulls()
    }

    /// Whether the reference can still differ from what it is now.
    pub fn moves(&self) -> bool {
        self.update != UpdateConfig::Frozen && !self.state.frozen
    }

    /// Whether the reference's drift is to be measured after optimizer step `step`, counted from 1: every
    /// `measure_every` steps and wherever the gate decides. A rule that never moves has no drift.
    pub fn drift_due(&self, step: u64) -> bool {
        let gate_decides = self.state.gate.last().is_some_and(|record| record.step == step);
        self.update != UpdateConfig::Frozen && (step.is_multiple_of(self.measure_every) || gate_decides)
    }

    /// What a checkpoint has to keep, besides the reference itself.
    pub fn state(&self) -> &ReferenceState {
        &self.state
    }

    /// Goes on from a checkpoint's state.
    pub fn restore(&mut self, state: ReferenceState) {
        self.state = state;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(yaml: &str) -> ReferenceRule {
        ReferenceRule::new(&serde_yaml::from_str(yaml).unwrap()).unwrap()
    }

    fn moving_steps(rule: &ReferenceRule, steps: u64) -> Vec<u64> {
        (1..=steps)
            .filter(|&step| rule.action(step) != Action::Keep)
            .collect()
    }

    #[test]
    fn each_update_moves_when_it_should() {
        assert_eq!(moving_steps(&rule("update: frozen"), 100), Vec::<u64>::new());
        assert_eq!(moving_steps(&rule("update: ema"), 4), [1, 2, 3, 4]);
        assert_eq!(moving_steps(&rule("{update: ema, every: 3}"), 10), [3, 6, 9]);
        assert_eq!(moving_steps(&rule("update: copy"), 100), [32, 64, 96]);
        assert_eq!(
            rule("{update: ema, alpha: 0.05}").action(1),
            Action::Move(Blend::new(0.05, 0.0))
        );
        assert_eq!(
            rule("update: copy").action(32),
            Action::Move(Blend::new(1.0, 0.0))
        );
        let pull = rule("{update: ema, alpha: 0.05, anchor: {kind: pull, strength: 0.2}}");
        assert_eq!(pull.action(1), Action::Move(Blend::new(0.05, 0.2)));
    }

    #[test]
    fn a_gate_accepts_up_to_delta_and_then_freezes_for_good() {
        let mut rule = rule("{update: copy, every: 2, anchor: {kind: gate, delta: 0.005}}");
        assert_eq!(rule.action(1), Action::Keep);
        assert_eq!(rule.action(2), Action::Probe(Blend::new(1.0, 0.0)));
        assert_eq!(rule.judge(2, -0.001).unwrap(), Verdict::Accept);
        assert_eq!(rule.judge(4, 0.005).unwrap(), Verdict::Accept);
        assert!(rule.moves());
        assert_eq!(rule.judge(6, 0.0051).unwrap(), Verdict::Freeze);
        assert!(!rule.moves());
        assert_eq!(moving_steps(&rule, 100), Vec::<u64>::new());
        let history: Vec<_> = rule
            .state()
            .gate
            .iter()
            .map(|r| (r.step, r.drift, r.accepted))
            .collect();
        assert_eq!(history, [(2, -0.001, true), (4, 0.005, true), (6, 0.0051, false)]);
    }

    #[test]
    fn a_gate_that_reinitialises_goes_on() {
        let mut rule = rule("{update: copy, every: 2, anchor: {kind: gate, delta: 0.005, on_trip: reinit}}");
        assert_eq!(rule.judge(2, 0.01).unwrap(), Verdict::Reinit);
        assert_eq!(rule.action(4), Action::Probe(Blend::new(1.0, 0.0)));
        assert_eq!(rule.judge(4, 0.004).unwrap(), Verdict::Accept);
        assert_eq!(rule.state().gate.len(), 2);
    }

    #[test]
    fn a_drift_that_is_not_a_number_stops_the_run() {
        let mut rule = rule("{update: copy, anchor: {kind: gate}}");
        for drift in [f64::NAN, f64::INFINITY] {
            let error = rule.judge(32, drift).unwrap_err();
            assert!(
                matches!(&error, Error::Diverged(text) if text.contains("step 32")),
                "{error}"
            );
        }
    }

    #[test]
    fn drift_is_measured_at_its_period_and_where_the_gate_decides() {
        let mut gated = rule("{update: copy, every: 32, measure_every: 50, anchor: {kind: gate}}");
        let mut due = Vec::new();
        for step in 1..=130 {
            if let Action::Probe(_) = gated.action(step) {
                gated.judge(step, 0.0).unwrap();
            }
            if gated.drift_due(step) {
                due.push(step);
            }
        }
        assert_eq!(due, [32, 50, 64, 96, 100, 128]);
        assert!(!(1..=200).any(|step| rule("update: frozen").drift_due(step)));
    }

    #[test]
    fn the_kl_anchor_looks_one_update_ahead() {
        let kl = rule("{update: ema, alpha: 0.02, anchor: {kind: kl, lambda: 2.0, fraction: 0.25}}")
            .kl()
            .unwrap();
        assert_eq!(kl.candidate, Blend::new(0.02, 0.0));
        assert_eq!([1, 2, 6, 16, 64].map(|pairs| kl.pairs(pairs)), [1, 1, 2, 4, 16]);
        // A quarter of the batch, however it is divided: one part has no smaller anchor than a pair.
        let parts = [(1, 1), (1, 2), (1, 64), (2, 32), (4, 16), (16, 4), (64, 1)];
        assert_eq!(
            parts.map(|(pairs, parts)| kl.parts(pairs, parts)),
            [1, 1, 16, 16, 16, 4, 1]
        );
        let copy = rule("{update: copy, anchor: {kind: kl}}").kl().unwrap();
        assert_eq!((copy.lambda, copy.candidate), (1.0, Blend::new(1.0, 0.0)));
        assert_eq!(rule("update: ema").kl(), None);
    }

    #[test]
    fn a_checkpoint_goes_on_bit_for_bit() {
        let yaml = "{update: copy, every: 2, anchor: {kind: gate, delta: 0.3}}";
        let mut straight = rule(yaml);
        assert_eq!(straight.judge(2, 0.1 + 0.2).unwrap(), Verdict::Freeze);
        let saved = serde_json::to_string(straight.state()).unwrap();
        let mut resumed = rule(yaml);
        resumed.restore(serde_json::from_str(&saved).unwrap());
        assert_eq!(resumed, straight);
        assert_eq!(resumed.state().gate[0].drift.to_bits(), (0.1f64 + 0.2).to_bits());
        assert_eq!(
            resumed.action(4),
            Action::Keep,
            "0.1 + 0.2 is above 0.3, so the gate froze"
        );
    }
}
