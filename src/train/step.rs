//! One optimizer step: draw, forward, backward, clip, AdamW, reference.

use super::draw::DrawnPair;
use super::engine::{Engine, PairInputs, Samples};
use super::probe::{Drift, Probe};
use super::state::State;
use crate::config::Config;
use crate::diffusion::NoiseSchedule;
use crate::margin::MarginMeter;
use crate::optim::{Follow, Gradient, GradientNorms, GradientSum, Term, clip_factor};
use crate::params::ParamSet;
use crate::reference::{Action, Blend, Verdict};
use crate::timestep::Observation;
use crate::{Error, Result};

/// Sums over one optimizer batch.
#[derive(Debug, Clone, Default)]
pub struct StepStats {
    /// Mean weighted loss.
    pub loss: f64,
    /// Margins against the reference; empty without one.
    pub margins: MarginMeter,
    /// Mean error of the policy on preferred samples.
    pub e_w: f64,
    /// Mean error of the policy on rejected samples; 0 without pairs.
    pub e_l: f64,
    /// Mean error of the reference on preferred samples.
    pub ref_e_w: f64,
    /// Mean error of the reference on rejected samples.
    pub ref_e_l: f64,
    /// Mean of σ(−u): the share of the gradient that is left.
    pub grad_factor: f64,
    /// Mean loss weight.
    pub weight_mean: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Norm of the anchor's gradient as a share of the objective's.
    pub anchor_ratio: Option<f64>,
    /// Mean squared difference that the `kl` anchor measured.
    pub anchor_loss: Option<f64>,
    /// Learning rate that was used.
    pub lr: f64,
    /// Drift that the gate measured.
    pub gate: Option<Drift>,
}

/// Buffers that live from step to step.
pub struct Stepper<'a> {
    config: &'a Config,
    noise_schedule: &'a NoiseSchedule,
    has_pairs: bool,
    has_reference: bool,
    sum: GradientSum,
    anchor_sum: GradientSum,
    candidate: ParamSet,
    samples: Samples,
}

/// Positions of the anchor's samples in a batch of `pairs` pairs: the first of each half.
fn anchor_positions(pairs: usize, samples: usize) -> impl Iterator<Item = usize> {
    (0..samples / 2).chain(pairs..pairs + samples / 2)
}

impl<'a> Stepper<'a> {
    /// For an engine that was built from `config`.
    pub fn new(
        config: &'a Config,
        noise_schedule: &'a NoiseSchedule,
        engine: &Engine,
        has_pairs: bool,
        has_reference: bool,
    ) -> Self {
        Self {
            config,
            noise_schedule,
            has_pairs,
            has_reference,
            sum: GradientSum::new(engine.layout()),
            anchor_sum: GradientSum::new(engine.layout()),
            candidate: ParamSet::zeros(engine.layout()),
            samples: Samples::with_geometry(&engine.geometry()),
        }
    }

    /// Takes one step on `pairs`, whose number is `train.pairs_per_step`.
    pub fn step(
        &mut self,
        state: &mut State,
        engine: &mut Engine,
        pairs: &[DrawnPair],
        probe: Option<&Probe>,
    ) -> Result<StepStats> {
        let mut stats = StepStats::default();
        let mut observations = Vec::with_capacity(pairs.len());
        self.accumulate(state, engine, pairs, &mut stats, &mut observations)?;
        let anchor_lambda = state
            .reference_rule
            .kl()
            .filter(|_| state.reference_rule.moves())
            .map(|kl| kl.lambda);
        let gradient = Gradient {
            objective: self.sum.term(1.0),
            anchor: anchor_lambda.map(|lambda| self.anchor_sum.term(lambda as f32)),
        };
        let norms = gradient.norms();
        self.check_finite(state, &stats, &norms, pairs)?;
        stats.grad_norm = norms.total;
        stats.anchor_ratio = norms.anchor_ratio();
        let clip = clip_factor(norms.total, self.config.optimizer.clip_norm);
        let step = state.step + 1;
        stats.lr = state.schedule.at(step) * state.lr_factor;
        let action = if self.has_reference {
            state.reference_rule.action(step)
        } else {
            Action::Keep
        };
        let follow = match action {
            Action::Move(blend) => Some(Follow {
                reference: &mut state.reference,
                initial: &state.initial,
                blend,
            }),
            Action::Keep | Action::Probe(_) => None,
        };
        state
            .adamw
            .step(&mut state.policy, &gradient, clip, stats.lr, follow);
        state.step = step;
        if let Action::Probe(blend) = action {
            stats.gate = Some(self.gate(state, engine, blend, probe)?);
        }
        state.timestep_rule.observe(&observations);
        Ok(stats)
    }

    /// Runs everything that computes on `pairs` and forgets the result.
    pub fn warm_up(&mut self, state: &State, engine: &mut Engine, pairs: &[DrawnPair]) -> Result<()> {
        let part = &pairs[..self.config.train.pairs_per_part()];
        self.accumulate(state, engine, part, &mut StepStats::default(), &mut Vec::new())
    }

    /// Loss, gradients and statistics of all parts of the batch.
    fn accumulate(
        &mut self,
        state: &State,
        engine: &mut Engine,
        pairs: &[DrawnPair],
        stats: &mut StepStats,
        observations: &mut Vec<Observation>,
    ) -> Result<()> {
        let per_part = self.config.train.pairs_per_part();
        let share = 1.0 / self.config.train.accumulate as f32;
        self.sum.clear();
        self.anchor_sum.clear();
        for part in pairs.chunks_exact(per_part) {
            let inputs = self.fill(state, part);
            let values = engine.step(&state.policy, &state.reference, &self.samples, &inputs)?;
            self.sum.add(&Term::by_name(engine.layout(), share, |name| {
                engine.gradient(name)
            })?);
            stats.loss += f64::from(values.loss) * f64::from(share);
            let weight = f64::from(share) / per_part as f64;
            for (i, pair) in part.iter().enumerate() {
                let error = |list: &[f32], k: usize| list.get(k).map_or(0.0, |v| f64::from(*v));
                let (w, l) = (error(&values.errors, i), error(&values.errors, per_part + i));
                stats.e_w += weight * w;
                stats.weight_mean += weight * f64::from(inputs.weight[i]);
                if self.has_pairs {
                    stats.e_l += weight * l;
                }
                if self.has_reference {
                    let (rw, rl) = (
                        error(&values.reference_errors, i),
                        error(&values.reference_errors, per_part + i),
                    );
                    stats.ref_e_w += weight * rw;
                    stats.ref_e_l += weight * rl;
                    stats.margins.add((rw - w) - (rl - l));
                    let reward = f64::from(values.reward_signal[i]);
                    stats.grad_factor += weight / (1.0 + reward.exp());
                    observations.push(Observation {
                        timestep: pair.timestep,
                        weight: pair.weight,
                        reward,
                    });
                }
            }
            self.anchor(state, engine, per_part, share, stats)?;
        }
        Ok(())
    }

    /// Fills the batch with one part's samples: preferred first.
    fn fill(&mut self, state: &State, part: &[DrawnPair]) -> PairInputs {
        self.samples.clear();
        for side in 0..if self.has_pairs { 2 } else { 1 } {
            for pair in part {
                self.samples.push(
                    self.noise_schedule,
                    pair.timestep,
                    &pair.latents[side],
                    &pair.noise,
                    &pair.text,
                );
            }
        }
        let rule = &state.timestep_rule;
        PairInputs {
            weight: part
                .iter()
                .map(|p| (rule.loss_weight(p.timestep) * p.weight) as f32)
                .collect(),
            reward_scale: part
                .iter()
                .map(|p| rule.reward_scale(p.timestep) as f32)
                .collect(),
            label: part.iter().map(|p| p.label).collect(),
        }
    }

    /// The `kl` anchor on the first pairs of the part that was just filled.
    fn anchor(
        &mut self,
        state: &State,
        engine: &mut Engine,
        pairs: usize,
        share: f32,
        stats: &mut StepStats,
    ) -> Result<()> {
        let Some(kl) = state
            .reference_rule
            .kl()
            .filter(|_| self.has_reference && state.reference_rule.moves())
        else {
            return Ok(());
        };
        let Some(samples) = engine.anchor_samples() else {
            return Ok(());
        };
        kl.candidate.candidate(
            &state.reference,
            &state.policy,
            &state.initial,
            &mut self.candidate,
        );
        let chosen = self.samples.select(anchor_positions(pairs, samples));
        let distance = engine.anchor(&self.candidate, &state.initial, &chosen)?;
        *stats.anchor_loss.get_or_insert(0.0) += f64::from(distance) * f64::from(share);
        self.anchor_sum
            .add(&Term::by_name(engine.layout(), share, |name| {
                engine.anchor_gradient(name)
            })?);
        Ok(())
    }

    /// Measures the candidate of a gated update and does what the gate says.
    fn gate(
        &mut self,
        state: &mut State,
        engine: &mut Engine,
        blend: Blend,
        probe: Option<&Probe>,
    ) -> Result<Drift> {
        blend.candidate(
            &state.reference,
            &state.policy,
            &state.initial,
            &mut self.candidate,
        );
        let probe = probe.expect("a run with a gate has a probe");
        let drift = probe.drift(engine, &self.candidate)?;
        match state.reference_rule.judge(state.step, drift.d)? {
            Verdict::Accept => state.reference.copy_from(&self.candidate),
            Verdict::Reinit => state.reference.copy_from(&state.initial),
            Verdict::Freeze => {}
        }
        Ok(drift)
    }

    /// Stops before a loss or gradient that is not finite reaches the weights.
    fn check_finite(
        &self,
        state: &State,
        stats: &StepStats,
        norms: &GradientNorms,
        pairs: &[DrawnPair],
    ) -> Result<()> {
        let what = match norms.non_finite {
            _ if !stats.loss.is_finite() => "the loss".to_owned(),
            Some(index) => format!("the gradient of `{}`", self.candidate.layout().names()[index]),
            None => return Ok(()),
        };
        let list = |f: &dyn Fn(&DrawnPair) -> u64| {
            pairs
                .iter()
                .map(|p| f(p).to_string())
                .collect::<Vec<_>>()
                .join(", ")
        };
        Err(Error::Diverged(format!(
            "{what} is not finite at step {} (pairs {}; timesteps {})",
            state.step + 1,
            list(&|p| p.id.0),
            list(&|p| u64::from(p.timestep.0)),
        )))
    }
}
