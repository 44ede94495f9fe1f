//! The drift probe: how far a reference has moved from the initial policy, on fixed draws of preferred training images.

use super::by_size::{Batch, BySize};
use super::engine::Engine;
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
    batches: Vec<Batch>,
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
        let ids: Vec<_> = (0..source.len()).map(|i| source.id(i)).collect();
        let position = |id| {
            ids.iter()
                .position(|i| *i == id)
                .expect("draws are made from these ids")
        };
        let mut noise = Vec::new();
        let mut by_size = BySize::new(engine.geometry());
        let mut batches = Vec::new();
        for draw in probe_draws(streams, &ids, draws, schedule.train_timesteps()) {
            let pair = source.pair(position(draw.pair), streams)?;
            noise.resize(pair.latents[0].len(), 0.0);
            draw.fill_noise(&mut noise);
            let condition = (&pair.text, pair.time_ids[0]);
            batches.extend(by_size.push(pair.size, |batch| {
                batch.push(schedule, draw.timestep, &pair.latents[0], &noise, condition);
            }));
        }
        batches.extend(by_size.rest());
        Self::of_batches(batches, engine, initial)
    }

    /// Measures `initial` on samples that were drawn before.
    pub fn of_batches(batches: Vec<Batch>, engine: &mut Engine, initial: &ParamSet) -> Result<Self> {
        let mut probe = Self {
            batches,
            initial: Vec::new(),
        };
        probe.initial = probe.measure(engine, initial)?;
        Ok(probe)
    }

    /// Errors and predictions, batch by batch.
    fn measure(&self, engine: &mut Engine, weights: &ParamSet) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
        self.batches
            .iter()
            .map(|batch| {
                let errors = engine.errors(weights, &batch.samples)?;
                Ok((errors, engine.predictions()?))
            })
            .collect()
    }

    /// Drift of `weights` from the initial policy.
    pub fn drift(&self, engine: &mut Engine, weights: &ParamSet) -> Result<Drift> {
        let now = self.measure(engine, weights)?;
        let (mut d, mut kl, mut draws) = (0.0, 0.0, 0);
        for ((batch, (errors, predictions)), (errors_0, predictions_0)) in
            self.batches.iter().zip(&now).zip(&self.initial)
        {
            // What fills up a batch is not counted.
            let used = batch.positions.len();
            let len = predictions.len() / batch.samples.len();
            let difference = |(a, b): (&f32, &f32)| f64::from(*a) - f64::from(*b);
            d += errors[..used].iter().zip(errors_0).map(difference).sum::<f64>();
            let squares = predictions[..used * len]
                .iter()
                .zip(predictions_0)
                .map(difference)
                .map(|x| x * x);
            kl += squares.sum::<f64>() / len as f64;
            draws += used;
        }
        Ok(Drift {
            d: d / draws as f64,
            kl: kl / draws as f64,
        })
    }
}
