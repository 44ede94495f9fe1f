//! What a run says about itself while it runs. The loop emits [`Event`]s; listeners turn them into files and bars.
//!
//! ```text
//! loop ─► Event ─► Listeners ┬─► metrics.jsonl        (metrics)
//!                            ├─► events.out.tfevents  (tensorboard)
//!                            └─► bar or plain lines   (progress)
//! ```

mod metrics;
mod progress;
mod tensorboard;

pub use metrics::MetricsFile;
pub use progress::ProgressLine;
pub use tensorboard::TensorBoard;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::Result;
use crate::timestep::BinReport;

/// One optimizer step; a line of `metrics.jsonl`. Means are over the whole optimizer batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StepReport {
    /// Optimizer step, counted from 1.
    pub step: u64,
    /// Mean weighted loss, without the anchor's term.
    pub loss: f64,
    /// Learning rate that was used.
    pub lr: f64,
    /// Implicit accuracy against the reference; `null` for objectives without one.
    pub acc: Option<f64>,
    /// Mean margin against the reference.
    pub margin: Option<f64>,
    /// Mean denoising error of the policy on preferred images.
    pub e_w: f64,
    /// Mean denoising error of the policy on rejected images; `null` for objectives without pairs.
    pub e_l: Option<f64>,
    /// Mean denoising error of the reference on preferred images.
    pub ref_e_w: Option<f64>,
    /// Mean denoising error of the reference on rejected images.
    pub ref_e_l: Option<f64>,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Mean of σ(−u), the share of the objective's gradient that the logit leaves.
    pub grad_factor: Option<f64>,
    /// Mean loss weight.
    pub weight_mean: f64,
    /// Wall-clock seconds of the step.
    pub seconds: f64,
    /// The method's β in its own convention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Coefficient of the margin in the logit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_effective: Option<f64>,
    /// Value of the anchor's term before its weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor_loss: Option<f64>,
    /// Norm of the anchor's gradient as a share of the objective's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor_grad_ratio: Option<f64>,
    /// Scale of the loss, where gradients are of half precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Whether a gradient of half precision overflowed: then nothing moved.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// What was measured after the step, beyond the batch.
    #[serde(flatten)]
    pub measured: Measured,
}

/// What is measured now and then. Absent values do not appear in the log.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Held-out implicit accuracy against the initial policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_init: Option<f64>,
    /// Held-out mean margin against the initial policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin_init: Option<f64>,
    /// Held-out implicit accuracy against the reference as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_ref: Option<f64>,
    /// Held-out mean margin against the reference as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin_ref: Option<f64>,
    /// Mean squared difference of the reference's predictions from the initial policy's, on the drift probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_ref_init: Option<f64>,
    /// Mean growth of the reference's denoising error over the initial policy's, on the drift probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_ref_init: Option<f64>,
    /// The round of images that began with this step, for online objectives.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub round: Option<RoundReport>,
    /// What was found of the pictures that were drawn: means of rewards, by `reward.NAME`, and `diversity.NAME`.
    #[serde(flatten)]
    pub pictures: BTreeMap<String, f64>,
    /// Probability, weight, variance and held-out margin of each bin of timesteps, the noisiest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bins: Option<Vec<BinReport>>,
}

/// A round of images that an online objective learns from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RoundReport {
    /// Number of the round, counted from 1.
    #[serde(rename = "rollout_round")]
    pub round: u64,
    /// Mean reward of its images.
    #[serde(rename = "rollout_reward")]
    pub reward: f64,
    /// Standard deviation of the rewards.
    #[serde(rename = "rollout_reward_sd")]
    pub deviation: f64,
    /// Mean squared error of the value network.
    #[serde(rename = "value_loss", skip_serializing_if = "Option::is_none")]
    pub value_loss: Option<f64>,
}

impl RoundReport {
    /// Of a round's rewards.
    pub fn of(round: u64, rewards: &[f64], value_loss: Option<f64>) -> Self {
        let n = rewards.len().max(1) as f64;
        let mean = rewards.iter().sum::<f64>() / n;
        let variance = rewards.iter().map(|reward| (reward - mean).powi(2)).sum::<f64>() / n;
        Self {
            round,
            reward: mean,
            deviation: variance.sqrt(),
            value_loss,
        }
    }
}

impl Measured {
    /// The value of the metric that `train.keep_best` names, if it was measured.
    pub fn metric(&self, name: &str) -> Option<f64> {
        match name {
            "acc_init" => self.acc_init,
            "margin_init" => self.margin_init,
            _ => self.pictures.get(name).copied(),
        }
    }
}

/// What happens in a run, in order.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// The first step is about to begin.
    Started {
        /// Steps taken before, by the run that is resumed; 0 in a new one.
        done: u64,
        /// Steps of the whole run.
        steps: u64,
        /// Pairs per optimizer step.
        pairs_per_step: usize,
        /// What was measured before the first step of a new run.
        initial: Option<&'a Measured>,
    },
    /// A step was taken, and what follows it measured.
    Step(&'a StepReport),
    /// Something a user should read, such as where a checkpoint went.
    Note(&'a str),
    /// The run goes on from an earlier step; everything later is void.
    RolledBack {
        /// Steps that still count.
        to: u64,
        /// Why.
        reason: &'a str,
    },
    /// The last step was taken.
    Finished,
}

/// Something that hears of every event.
pub trait Listener {
    /// Takes notice of one event.
    ///
    /// # Errors
    /// A file cannot be written; the run stops.
    fn hear(&mut self, event: &Event<'_>) -> Result<()>;
}

/// All listeners of a run.
#[derive(Default)]
pub struct Listeners(Vec<Box<dyn Listener>>);

impl Listeners {
    /// Adds a listener; they hear events in the order in which they were added.
    pub fn add(&mut self, listener: impl Listener + 'static) {
        self.0.push(Box::new(listener));
    }

    /// Tells all listeners.
    ///
    /// # Errors
    /// The first that fails.
    pub fn emit(&mut self, event: &Event<'_>) -> Result<()> {
        self.0.iter_mut().try_for_each(|listener| listener.hear(event))
    }
}
