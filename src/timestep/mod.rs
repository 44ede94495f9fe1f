//! The timestep rule: where training samples timesteps, how it weighs a sample's loss, and how it scales a
//! sample's margin. It knows nothing of the objective.
//!
//! Each step the loop draws a timestep per pair, reads [`TimestepRule::loss_weight`] and
//! [`TimestepRule::reward_scale`] for it, and after the optimizer step hands the reward signals back through
//! [`TimestepRule::observe`]. Loss weights are normalised so that their mean under the sampling is 1: the
//! learning rate keeps its meaning whatever the weighting.
//!
//! Sources: geometric sampling and the reward scale arXiv 2505.18736; Min-SNR arXiv 2303.09556.

mod bins;
mod sampling;
mod variance;

use serde::{Deserialize, Serialize};

pub use bins::{BinMargins, BinReport, Bins};
pub use sampling::Sampling;
pub use variance::VarianceState;
use variance::VarianceWeighting;

use crate::config::timestep::{RewardScaleConfig, TimestepConfig, WeightingConfig};
use crate::diffusion::{NoiseSchedule, PredictionType, Timestep};
use crate::rng::Stream;
use crate::{Error, Result};

/// SNR below which the reward scale no longer rises; keeps zero-terminal-SNR schedules finite.
const SMALLEST_SNR: f64 = 1e-4;

/// Sampling, loss weight and reward scale over the training timesteps.
#[derive(Debug, Clone, PartialEq)]
pub struct TimestepRule {
    bins: Bins,
    sampling: Sampling,
    weighting: Weighting,
    /// λ(t) of every training timestep.
    reward_scale: Vec<f64>,
    /// With `replace: false`, the share λ₂ of the normalised weight that joins the plain loss.
    added: Option<f64>,
}

#[derive(Debug, Clone, PartialEq)]
enum Weighting {
    /// One weight per training timestep, normalised.
    Fixed(Vec<f64>),
    /// Weights per bin that move.
    Variance(VarianceWeighting),
}

/// What a checkpoint keeps of a rule. Serialised as JSON, it comes back bit for bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimestepState {
    /// State of the `variance` weighting, where that is used.
    pub variance: Option<VarianceState>,
}

/// One sample of an optimizer step, for [`TimestepRule::observe`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// The sample's timestep.
    pub timestep: Timestep,
    /// The sample's own weight in the data, 1 unless the data says otherwise; not the rule's loss weight.
    pub weight: f64,
    /// The objective's reward signal: the logit u for paired objectives. Finite.
    pub reward: f64,
}

impl TimestepRule {
    /// The rule of `config` for a model trained with `schedule`; errors name the configuration key.
    pub fn new(config: &TimestepConfig, schedule: &NoiseSchedule) -> Result<Self> {
        config.check()?;
        let train_timesteps = schedule.train_timesteps();
        check_against_model(config, train_timesteps)?;
        let bins = Bins::new(config.bins, train_timesteps);
        let sampling = Sampling::new(&config.sampling, bins);
        let weighting = Weighting::new(&config.weighting, schedule, bins, &sampling)?;
        Ok(Self {
            bins,
            sampling,
            weighting,
            reward_scale: reward_scale(config.reward_scale, schedule),
            added: (!config.replace).then_some(config.lambda),
        })
    }

    /// The bins of the rule.
    pub fn bins(&self) -> Bins {
        self.bins
    }

    /// The distribution of training timesteps.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Draws the timestep of a pair.
    pub fn sample(&self, stream: &mut Stream) -> Timestep {
        self.sampling.sample(stream)
    }

    /// Factor of the loss of a sample at `t`.
    pub fn loss_weight(&self, t: Timestep) -> f64 {
        let normalised = self.weighting.at(t, self.bins);
        self.added.map_or(normalised, |lambda| 1.0 + lambda * normalised)
    }

    /// Factor λ(t) of the margin of a sample at `t`.
    pub fn reward_scale(&self, t: Timestep) -> f64 {
        self.reward_scale[t.index()]
    }

    /// Takes in the samples of one whole optimizer step, over all micro-batches, in a fixed order.
    /// To be called once per step, after the step's own weights were used.
    pub fn observe(&mut self, samples: &[Observation]) {
        if let Weighting::Variance(variance) = &mut self.weighting {
            let bins = self.bins;
            variance.observe(
                samples
                    .iter()
                    .map(|s| (bins.bin_of(s.timestep), s.weight, s.reward)),
            );
        }
    }

    /// Probability, weight and variance of every bin, with held-out margins where they were measured.
    pub fn bins_report(&self, measured: Option<&BinMargins>) -> Vec<BinReport> {
        let report = |bin: usize| {
            let meter = measured.map(|measured| measured.bin(bin));
            BinReport {
                p: self.sampling.bin_probabilities()[bin],
                w: self.mean_weight(bin),
                v: match &self.weighting {
                    Weighting::Variance(variance) => variance.variance(bin),
                    Weighting::Fixed(_) => None,
                },
                margin: meter.and_then(|meter| meter.mean()),
                acc: meter.and_then(|meter| meter.accuracy()),
            }
        };
        (0..self.bins.count()).map(report).collect()
    }

    /// What a checkpoint has to keep.
    pub fn state(&self) -> TimestepState {
        let variance = match &self.weighting {
            Weighting::Variance(variance) => Some(variance.state().clone()),
            Weighting::Fixed(_) => None,
        };
        TimestepState { variance }
    }

    /// Goes on from a checkpoint's state; one of another configuration is an error.
    pub fn restore(&mut self, state: TimestepState) -> Result<()> {
        let fits = match (&mut self.weighting, state.variance) {
            (Weighting::Variance(variance), Some(state)) => variance.restore(state),
            (Weighting::Fixed(_), None) => true,
            _ => false,
        };
        if fits {
            return Ok(());
        }
        Err(Error::bad(
            "timestep",
            "differs from the configuration that wrote the checkpoint",
            "Resume with the same timestep.weighting and timestep.bins.",
        ))
    }

    /// Mean loss weight inside a bin, over the timesteps that are sampled there; 0 where none is.
    fn mean_weight(&self, bin: usize) -> f64 {
        if self.sampling.bin_probabilities()[bin] == 0.0 {
            return 0.0;
        }
        // Inside a bin the sampled timesteps are equally likely.
        let sampled = self
            .bins
            .timesteps(bin)
            .map(Timestep)
            .filter(|t| self.sampling.probability(*t) > 0.0);
        let (count, sum) = sampled.fold((0, 0.0), |(n, sum), t| (n + 1, sum + self.loss_weight(t)));
        sum / f64::from(count)
    }
}

impl Weighting {
    fn new(
        config: &WeightingConfig,
        schedule: &NoiseSchedule,
        bins: Bins,
        sampling: &Sampling,
    ) -> Result<Self> {
        let raw: Box<dyn Fn(Timestep) -> f64> = match config {
            WeightingConfig::None {} => return Ok(Self::Fixed(vec![1.0; schedule.train_timesteps()])),
            WeightingConfig::Variance(variance) => {
                let probabilities = sampling.bin_probabilities().to_vec();
                return Ok(Self::Variance(VarianceWeighting::new(
                    variance.clone(),
                    probabilities,
                )));
            }
            WeightingConfig::MinSnr { gamma } => Box::new(|t| min_snr(schedule, t, *gamma)),
            WeightingConfig::Table { weights } => Box::new(|t| weights[bins.bin_of(t)]),
        };
        let timesteps = || (0..schedule.train_timesteps() as u32).map(Timestep);
        let mean: f64 = timesteps().map(|t| sampling.probability(t) * raw(t)).sum();
        if mean <= 0.0 {
            return Err(Error::bad(
                "timestep.weighting",
                "gives weight 0 to every timestep that timestep.sampling draws",
                "Give a positive weight to a bin that is sampled.",
            ));
        }
        Ok(Self::Fixed(timesteps().map(|t| raw(t) / mean).collect()))
    }

    fn at(&self, t: Timestep, bins: Bins) -> f64 {
        match self {
            Self::Fixed(weights) => weights[t.index()],
            Self::Variance(variance) => variance.weights()[bins.bin_of(t)],
        }
    }
}

fn check_against_model(config: &TimestepConfig, train_timesteps: usize) -> Result<()> {
    use crate::config::timestep::SamplingConfig::Range;
    if config.bins > train_timesteps {
        return Err(Error::bad(
            "timestep.bins",
            format!(
                "is {}, more than the model's {train_timesteps} training timesteps",
                config.bins
            ),
            "Give fewer bins.",
        ));
    }
    match config.sampling {
        Range { max, .. } if max as usize >= train_timesteps => Err(Error::bad(
            "timestep.sampling.max",
            format!(
                "is {max}, but the model's training timesteps are 0 to {}",
                train_timesteps - 1
            ),
            "Give a timestep of the model; both ends are included.",
        )),
        _ => Ok(()),
    }
}

/// Min-SNR weight. For epsilon `min(SNR, γ)/SNR`, written so that SNR 0 gives its limit 1.
fn min_snr(schedule: &NoiseSchedule, t: Timestep, gamma: f64) -> f64 {
    let snr = schedule.snr(t);
    match schedule.prediction_type() {
        PredictionType::Epsilon => (gamma / snr).min(1.0),
        PredictionType::VPrediction => snr.min(gamma) / (snr + 1.0),
    }
}

/// λ of every training timestep: 1, or `1 + minmax(1/√SNR)`, which lies in [1, 2].
fn reward_scale(config: RewardScaleConfig, schedule: &NoiseSchedule) -> Vec<f64> {
    let timesteps = (0..schedule.train_timesteps() as u32).map(Timestep);
    match config {
        RewardScaleConfig::None => timesteps.map(|_| 1.0).collect(),
        RewardScaleConfig::InverseSqrtSnr => {
            let noise: Vec<f64> = timesteps
                .map(|t| schedule.snr(t).max(SMALLEST_SNR).sqrt().recip())
                .collect();
            let least = noise.iter().copied().fold(f64::INFINITY, f64::min);
            let most = noise.iter().copied().fold(0.0, f64::max);
            // A schedule of one noise level has nothing to tell apart.
            let spread = if most > least { most - least } else { 1.0 };
            noise
                .into_iter()
                .map(|value| 1.0 + (value - least) / spread)
                .collect()
        }
    }
}

#[cfg(test)]
mod tests;
