//! One optimizer step: draw, forward, backward, clip, optimizer, reference.

use super::draw::{Content, DrawnPair};
use super::engine::{Engine, PairInputs, ReferenceValues, Samples, StepValues};
use super::moving::Moving;
use super::probe::{Drift, Probe};
use super::record::Recorder;
use super::source::Text;
use super::state::State;
use crate::config::Config;
use crate::diffusion::NoiseSchedule;
use crate::margin::MarginMeter;
use crate::objective::{Needs, Objective};
use crate::optim::{GradientNorms, clip_factor};
use crate::params::ParamSet;
use crate::pipeline::TimeIds;
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
    /// Mean of σ(−u), the share of the gradient that is left; for objectives whose loss is −log σ(u).
    pub grad_factor: Option<f64>,
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
    /// Scale of the loss, where gradients are of half precision.
    pub loss_scale: Option<f32>,
    /// Whether the step was left out because a gradient of half precision overflowed.
    pub skipped: bool,
}

/// Buffers that live from step to step.
pub struct Stepper<'a> {
    config: &'a Config,
    noise_schedule: &'a NoiseSchedule,
    needs: Needs,
    is_logistic: bool,
    /// Conditioning of the rows that guidance leads away from, where it is inside the likelihood.
    negative: Option<Text>,
    /// Micro-conditioning of pictures that the policy makes.
    picture_ids: TimeIds,
    moving: Moving,
    candidate: ParamSet,
    samples: Samples,
    recorder: Option<Recorder>,
}

impl<'a> Stepper<'a> {
    /// For an engine that was built from `config`.
    ///
    /// # Errors
    /// The device has too little memory for what moves.
    pub fn new(
        config: &'a Config,
        noise_schedule: &'a NoiseSchedule,
        engine: &Engine,
        objective: &dyn Objective,
        negative: Option<Text>,
    ) -> Result<Self> {
        let needs = objective.needs();
        Ok(Self {
            config,
            noise_schedule,
            needs,
            is_logistic: objective.is_logistic(),
            negative,
            picture_ids: engine.geometry().picture_ids(),
            moving: Moving::new(config, engine, needs.reference)?,
            candidate: ParamSet::zeros(engine.layout()),
            samples: Samples::with_geometry(&engine.geometry()),
            recorder: None,
        })
    }

    /// Brings weights and moments of `state` up to date, if newer ones are on the device.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn fetch(&mut self, state: &mut State) -> Result<()> {
        self.moving.fetch(state)
    }

    /// The state was replaced: what is on the device is not it.
    pub fn forget_device(&mut self) {
        self.moving.forget();
    }

    /// Writes what every step is computed from.
    pub fn record(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
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
        stats.loss_scale = state.loss_scale.map(|s| s.scale);
        self.accumulate(state, engine, pairs, &mut stats, &mut observations)?;
        let norms = self.moving.norms(state, engine, &mut self.candidate)?;
        stats.skipped = self.overflows(state, &stats, &norms, pairs)?;
        let step = state.step + 1;
        let action = match self.needs.reference {
            true => state.reference_rule.action(step),
            false => Action::Keep,
        };
        if stats.skipped {
            // Where the reference follows the policy on a certain step, it does so also if the policy stays where it is.
            self.moving.step_of_reference(state, action)?;
        } else {
            stats.grad_norm = norms.total;
            stats.anchor_ratio = norms.anchor_ratio();
            let clip = clip_factor(norms.total, self.config.optimizer.clip_norm);
            stats.lr = state.schedule.at(step) * state.lr_factor;
            let room = &mut self.candidate;
            self.moving.step(state, engine, (clip, stats.lr), action, room)?;
            state.timestep_rule.observe(&observations);
        }
        state.step = step;
        if let Action::Probe(blend) = action {
            stats.gate = Some(self.gate(state, engine, blend, probe)?);
        }
        Ok(stats)
    }

    /// Whether the step has to be left out because a gradient of half precision overflowed, after which the loss has another
    /// scale.
    fn overflows(
        &self,
        state: &mut State,
        stats: &StepStats,
        norms: &GradientNorms,
        pairs: &[DrawnPair],
    ) -> Result<bool> {
        let finite = self.check_finite(state, stats, norms, pairs);
        let Some(scale) = &mut state.loss_scale else {
            return finite.map(|()| false);
        };
        let Err(overflow) = finite else {
            scale.succeeded();
            return Ok(false);
        };
        if scale.overflowed() {
            return Ok(true);
        }
        Err(Error::Diverged(format!(
            "{} steps in a row overflowed in half precision, the last with a loss scale of {}: {overflow}; \
             runtime.mixed_precision: no computes in single precision",
            scale.overflows(),
            2.0 * scale.scale
        )))
    }

    /// Runs everything that computes on `pairs` and forgets the result.
    pub fn warm_up(&mut self, state: &State, engine: &mut Engine, pairs: &[DrawnPair]) -> Result<()> {
        let part = &pairs[..self.config.train.pairs_per_part()];
        let recorder = self.recorder.take();
        let done = self.accumulate(state, engine, part, &mut StepStats::default(), &mut Vec::new());
        self.recorder = recorder;
        done
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
        if let Some(scale) = state.loss_scale {
            engine.scale_loss(scale.scale);
        }
        self.moving.begin(state)?;
        let (batch_means, kept) = self.batch_means(state, engine, pairs, share)?;
        for (index, part) in pairs.chunks_exact(per_part).enumerate() {
            let mut inputs = self.fill(state, part);
            inputs.batch_means.clone_from(&batch_means);
            let reference = match kept.get(index) {
                Some(reference) => reference.clone(),
                None => self.moving.reference(state, engine, &self.samples)?,
            };
            let policy = self.moving.policy(state);
            let values = engine.step_beside(policy, None, reference, &self.samples, &inputs)?;
            if let Some(recorder) = &self.recorder {
                let geometry = engine.geometry();
                recorder.part(state.step + 1, index, &geometry, &self.samples, &inputs, &values)?;
            }
            self.moving.add(engine, share / engine.loss_scale())?;
            self.count(part, &inputs, &values, f64::from(share), stats, observations);
            self.anchor(state, engine, index, stats)?;
        }
        Ok(())
    }

    /// The means over the whole batch that the loss uses, from a first pass over its parts, with what the reference gave
    /// for each part. Empty if the loss uses none or the batch is one part.
    fn batch_means(
        &mut self,
        state: &State,
        engine: &mut Engine,
        pairs: &[DrawnPair],
        share: f32,
    ) -> Result<(Vec<f32>, Vec<ReferenceValues>)> {
        let (mut means, mut kept) = (Vec::new(), Vec::new());
        if !engine.needs_batch_means() {
            return Ok((means, kept));
        }
        for part in pairs.chunks_exact(self.config.train.pairs_per_part()) {
            let inputs = self.fill(state, part);
            let reference = self.moving.reference(state, engine, &self.samples)?;
            let policy = self.moving.policy(state);
            let found = engine.batch_means(policy, &reference, &self.samples, &inputs)?;
            means.resize(found.len(), 0.0);
            for (mean, found) in means.iter_mut().zip(found) {
                *mean += share * found;
            }
            kept.push(reference);
        }
        Ok((means, kept))
    }

    /// Adds what one part measured, whose share of the batch is `share`.
    fn count(
        &self,
        part: &[DrawnPair],
        inputs: &PairInputs,
        values: &StepValues,
        share: f64,
        stats: &mut StepStats,
        observations: &mut Vec<Observation>,
    ) {
        let pairs = part.len();
        let each = share / pairs as f64;
        let value = |list: &[f32], k: usize| list.get(k).map_or(0.0, |v| f64::from(*v));
        stats.loss += f64::from(values.loss) * share;
        for i in 0..pairs {
            let (w, l) = (value(&values.errors, i), value(&values.errors, pairs + i));
            stats.e_w += each * w;
            stats.weight_mean += each * f64::from(inputs.weight[i]);
            if self.needs.pairs {
                stats.e_l += each * l;
            }
            if self.needs.reference {
                let rw = value(&values.reference_errors, i);
                stats.ref_e_w += each * rw;
                if self.needs.pairs {
                    let rl = value(&values.reference_errors, pairs + i);
                    stats.ref_e_l += each * rl;
                    stats.margins.add((rw - w) - (rl - l));
                }
            }
        }
        for (k, reward) in values.reward_signal.iter().enumerate() {
            let reward = f64::from(*reward);
            if self.is_logistic {
                *stats.grad_factor.get_or_insert(0.0) += each / (1.0 + reward.exp());
            }
            // One value a pair, or one a sample: preferred ones first.
            let pair = &part[k % pairs];
            observations.push(Observation {
                timestep: pair.timestep,
                weight: pair.weight,
                reward,
            });
        }
    }

    /// Fills the batch with one part's samples: preferred first.
    fn fill(&mut self, state: &State, part: &[DrawnPair]) -> PairInputs {
        self.samples.clear();
        if let Some(negative) = &self.negative {
            for (pair, side) in in_order(part, &self.needs) {
                if let Content::Steps { sides, .. } = &pair.content {
                    let condition = (negative, self.picture_ids);
                    self.samples
                        .push_row(&sides[side].noisy, pair.timestep, condition);
                }
            }
        }
        for (pair, side) in in_order(part, &self.needs) {
            let (t, text) = (pair.timestep, &pair.text);
            match &pair.content {
                Content::Images {
                    latents,
                    noise,
                    size,
                    time_ids,
                } => {
                    // All of a part are alike.
                    self.samples.size = *size;
                    let condition = (text, time_ids[side]);
                    let schedule = self.noise_schedule;
                    self.samples.push(schedule, t, &latents[side], noise, condition);
                }
                Content::Steps { sides, .. } => {
                    self.samples
                        .push_row(&sides[side].noisy, t, (text, self.picture_ids));
                    self.samples.target.extend_from_slice(&sides[side].target);
                }
            }
        }
        self.pair_inputs(state, part)
    }

    /// What the loss is told of each pair.
    fn pair_inputs(&self, state: &State, part: &[DrawnPair]) -> PairInputs {
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
            score_gap: match self.needs.scores {
                true => part.iter().filter_map(|p| p.score_gap).collect(),
                false => Vec::new(),
            },
            precision: steps(part, |s| s.0),
            old_errors: match self.needs.pairs {
                true => Vec::new(),
                false => steps(part, |s| s.1),
            },
            advantage: match self.needs.pairs {
                true => Vec::new(),
                false => steps(part, |s| s.2),
            },
            batch_means: Vec::new(),
        }
    }

    /// The `kl` anchor on the first pairs of the part that was just filled, the batch's `part`-th, if it is one of those that
    /// have it.
    fn anchor(
        &mut self,
        state: &State,
        engine: &mut Engine,
        part: usize,
        stats: &mut StepStats,
    ) -> Result<()> {
        let Some(kl) = state
            .reference_rule
            .kl()
            .filter(|_| self.needs.reference && state.reference_rule.moves())
        else {
            return Ok(());
        };
        let Some(samples) = engine.anchor_samples() else {
            return Ok(());
        };
        let train = &self.config.train;
        let pairs = train.pairs_per_part();
        let parts = kl.parts(pairs, train.accumulate);
        if part >= parts {
            return Ok(());
        }
        let share = 1.0 / parts as f32;
        kl.candidate.candidate(
            &state.reference(),
            &state.policy,
            &state.initial,
            &mut self.candidate,
        );
        let chosen = self.samples.rows_at(self.anchor_rows(pairs, samples));
        let distance = engine.anchor(&self.candidate, &state.initial, &chosen)?;
        *stats.anchor_loss.get_or_insert(0.0) += f64::from(distance) * f64::from(share);
        self.moving.add_anchor(engine, share / engine.loss_scale())
    }

    /// Rows of the anchor's samples: the first of each side of a batch of `pairs` pairs, under their own prompts.
    fn anchor_rows(&self, pairs: usize, samples: usize) -> impl Iterator<Item = usize> + use<> {
        let sides = self.needs.samples(1);
        let first = if self.negative.is_some() { sides * pairs } else { 0 };
        let each = samples / sides;
        (0..sides).flat_map(move |side| (0..each).map(move |k| first + side * pairs + k))
    }

    /// Measures the candidate of a gated update and does what the gate says.
    fn gate(
        &mut self,
        state: &mut State,
        engine: &mut Engine,
        blend: Blend,
        probe: Option<&Probe>,
    ) -> Result<Drift> {
        self.fetch(state)?;
        blend.candidate(
            &state.reference(),
            &state.policy,
            &state.initial,
            &mut self.candidate,
        );
        let probe = probe.expect("a run with a gate has a probe");
        let drift = probe.drift(engine, &self.candidate)?;
        match state.reference_rule.judge(state.step, drift.d)? {
            // The next candidate is written over what was the reference.
            Verdict::Accept => {
                let candidate = &mut self.candidate;
                state
                    .reference
                    .become_candidate(candidate, &state.initial, state.step);
            }
            Verdict::Reinit => state.reference.reset(&state.initial),
            Verdict::Freeze => {}
        }
        self.forget_device();
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

/// The pairs' samples in the order of the batch: preferred first.
fn in_order<'a>(
    part: &'a [DrawnPair],
    needs: &Needs,
) -> impl Iterator<Item = (&'a DrawnPair, usize)> + use<'a> {
    (0..needs.samples(1)).flat_map(move |side| part.iter().map(move |pair| (pair, side)))
}

/// A number of each denoising step: one of precision, old error and advantage. Empty where pairs are images.
fn steps(part: &[DrawnPair], number: impl Fn((f32, f32, f32)) -> f32) -> Vec<f32> {
    let of = |pair: &DrawnPair| match pair.content {
        Content::Images { .. } => None,
        Content::Steps {
            precision,
            old_error,
            advantage,
            ..
        } => Some(number((precision, old_error, advantage))),
    };
    part.iter().filter_map(of).collect()
}
