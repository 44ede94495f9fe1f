//! The drift probe: how far a reference has moved from the initial policy, on fixed draws of preferred training images.

use super::engine::{Engine, Samples};
use super::source::Source;
use crate::Result;
use crate::diffusion::NoiseSchedule;
use crate::draws::probe_draws;
use crate::params::ParamSet;
use crate::rng::Streams;

/// What the probe measures of a set of weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// `D`: mean of (denoising error − that of the initial policy). Positive: worse than at the start.
    pub d: f64,
    /// Mean squared difference of the predictions from the initial policy's.
    pub kl: f64,
}

/// Fixed samples, and what the initial policy makes of them.
pub struct Probe {
    batches: Vec<Samples>,
    draws: usize,
    initial: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Probe {
    /// Takes `draws` draws from `source` and measures `initial` on them.
    pub fn new(
        source: &dyn Source,
        schedule: &NoiseSchedule,
        streams: &Streams,
        draws: usize,
        engine: &mut Engine,
        initial: &ParamSet,
    ) -> Result<Self> {
        let geometry = engine.geometry();
        let ids: Vec<_> = (0..source.len()).map(|i| source.id(i)).collect();
        let position = |id| {
            ids.iter()
                .position(|i| *i == id)
                .expect("draws are made from these ids")
        };
        let mut noise = vec![0.0; geometry.latent_len()];
        let mut batches = vec![Samples::with_geometry(&geometry)];
        for draw in probe_draws(streams, &ids, draws, schedule.train_timesteps()) {
            if batches.last().is_some_and(|b| b.len() == geometry.samples) {
                batches.push(Samples::with_geometry(&geometry));
            }
            let pair = source.pair(position(draw.pair), streams)?;
            draw.fill_noise(&mut noise);
            let batch = batches.last_mut().expect("there is always a batch");
            batch.push(schedule, draw.timestep, &pair.latents[0], &noise, &pair.text);
        }
        Self::of_samples(batches, draws, engine, initial)
    }

    /// Measures `initial` on samples that were drawn before: `draws` of them, all batches but the last one full.
    pub fn of_samples(
        mut batches: Vec<Samples>,
        draws: usize,
        engine: &mut Engine,
        initial: &ParamSet,
    ) -> Result<Self> {
        for batch in &mut batches {
            batch.pad_to(engine.geometry().samples);
        }
        let mut probe = Self {
            batches,
            draws,
            initial: Vec::new(),
        };
        probe.initial = probe.measure(engine, initial)?;
        Ok(probe)
    }

    /// Errors and predictions, batch by batch.
    fn measure(&self, engine: &mut Engine, weights: &ParamSet) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
        self.batches
            .iter()
            .map(|batch| Ok((engine.errors(weights, batch)?, engine.predictions()?)))
            .collect()
    }

    /// Drift of `weights` from the initial policy.
    pub fn drift(&self, engine: &mut Engine, weights: &ParamSet) -> Result<Drift> {
        let now = self.measure(engine, weights)?;
        let samples = engine.geometry().samples;
        let (mut d, mut kl, mut left) = (0.0, 0.0, self.draws);
        for ((errors, predictions), (errors_0, predictions_0)) in now.iter().zip(&self.initial) {
            // What pads the last batch is not counted.
            let used = left.min(samples);
            let values = used * (predictions.len() / samples);
            let difference = |(a, b): (&f32, &f32)| f64::from(*a) - f64::from(*b);
            d += errors[..used].iter().zip(errors_0).map(difference).sum::<f64>();
            let squares = predictions[..values]
                .iter()
                .zip(predictions_0)
                .map(difference)
                .map(|x| x * x);
            kl += squares.sum::<f64>() / (predictions.len() / samples) as f64;
            left -= used;
        }
        Ok(Drift {
            d: d / self.draws as f64,
            kl: kl / self.draws as f64,
        })
    }
}
