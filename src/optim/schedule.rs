//! Learning-rate schedules, as `get_scheduler` of diffusers and transformers defines them.

use std::f64::consts::PI;

use crate::config::optimizer::{LrScheduleKind, OptimizerConfig};

/// The learning rate of every optimizer step of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct LrSchedule {
    kind: LrScheduleKind,
    highest: f64,
    warmup: u64,
    steps: u64,
}

impl LrSchedule {
    /// The schedule over `steps` optimizer steps of `pairs` pairs each.
    pub fn new(config: &OptimizerConfig, pairs: usize, steps: u64) -> Self {
        Self {
            kind: config.schedule.kind,
            highest: config.effective_lr(pairs),
            warmup: config.schedule.warmup,
            steps,
        }
    }

    /// The effective learning rate: what steps use at the schedule's highest point.
    pub fn highest(&self) -> f64 {
        self.highest
    }

    /// The learning rate of optimizer step `step`, counted from 1.
    ///
    /// With warm-up the first step has rate 0, as in diffusers and transformers: it fills the moments only.
    ///
    /// # Panics
    /// If `step` is 0.
    pub fn at(&self, step: u64) -> f64 {
        assert!(step > 0, "optimizer steps are counted from 1");
        let done = step - 1;
        if done < self.warmup {
            return self.highest * done as f64 / self.warmup as f64;
        }
        let after_warmup = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let progress = (done - self.warmup) as f64 / after_warmup;
        let factor = match self.kind {
            LrScheduleKind::Constant => 1.0,
            LrScheduleKind::Linear => 1.0 - progress,
            LrScheduleKind::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
        };
        self.highest * factor.max(0.0)
    }
}
