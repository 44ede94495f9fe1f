//! Held-out evaluation: does the policy tell preferred from rejected images better than another model?
//!
//! Every held-out pair has the same stratified draws of timestep and noise at every evaluation, so that numbers compare
//! over the whole run. A pair's margin is the mean over its draws; accuracy counts pairs (ties half).

use super::by_size::{Batch, BySize};
use super::engine::Engine;
use super::guard;
use super::source::Source;
use crate::Result;
use crate::diffusion::NoiseSchedule;
use crate::draws::evaluation_draws;
use crate::margin::MarginMeter;
use crate::params::ParamSet;
use crate::rng::Streams;
use crate::timestep::{BinMargins, Bins};

/// Errors of one model on every draw: pair by pair, draw by draw, preferred before rejected.
#[derive(Debug, Clone, PartialEq)]
pub struct Errors(Vec<f32>);

impl Errors {
    /// Number of measurements.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first `len` measurements, to compare with an evaluation of fewer pairs.
    pub fn first(&self, len: usize) -> Self {
        Self(self.0[..len.min(self.0.len())].to_vec())
    }

    /// Mean errors on preferred and on rejected images.
    pub fn means(&self) -> guard::Errors {
        let mean = |side: usize| {
            let sum: f64 = self.0.iter().skip(side).step_by(2).map(|e| f64::from(*e)).sum();
            sum / (self.0.len() / 2).max(1) as f64
        };
        guard::Errors {
            preferred: mean(0),
            rejected: Some(mean(1)),
        }
    }
}

/// Held-out pairs with their draws.
pub struct HeldOut<'a> {
    source: &'a dyn Source,
    schedule: &'a NoiseSchedule,
    streams: Streams,
    draws: usize,
}

impl<'a> HeldOut<'a> {
    /// The pairs of `source`, `draws` draws each.
    pub fn new(source: &'a dyn Source, schedule: &'a NoiseSchedule, streams: Streams, draws: usize) -> Self {
        Self {
            source,
            schedule,
            streams,
            draws,
        }
    }

    /// Number of pairs.
    pub fn pairs(&self) -> usize {
        self.source.len()
    }

    /// Errors of `weights` on all draws of the first `pairs` pairs.
    pub fn errors(
        &self,
        engine: &mut Engine,
        weights: &ParamSet,
        pairs: usize,
        mut progress: impl FnMut(usize),
    ) -> Result<Errors> {
        let mut batches = BySize::new(engine.geometry());
        let pairs = pairs.min(self.pairs());
        let mut found = vec![f32::NAN; 2 * pairs * self.draws];
        let mut noise = Vec::new();
        let mut measure = |batch: Batch| -> Result<()> {
            let errors = engine.errors(weights, &batch.samples)?;
            for (position, error) in batch.positions.into_iter().zip(errors) {
                found[position] = error;
            }
            Ok(())
        };
        for index in 0..pairs {
            let pair = self.source.pair(index, &self.streams)?;
            noise.resize(pair.latents[0].len(), 0.0);
            for draw in evaluation_draws(
                &self.streams,
                pair.id,
                self.draws,
                self.schedule.train_timesteps(),
            ) {
                draw.fill_noise(&mut noise);
                for (latent, time_ids) in pair.latents.iter().zip(pair.time_ids) {
                    let condition = (&pair.text, time_ids);
                    let full = batches.push(pair.size, |batch| {
                        batch.push(self.schedule, draw.timestep, latent, &noise, condition);
                    });
                    full.map_or(Ok(()), &mut measure)?;
                }
            }
            progress(index + 1);
        }
        batches.rest().try_for_each(measure)?;
        Ok(Errors(found))
    }

    /// Margins of the policy against another model, both measured on the same pairs; per pair, and per bin of timesteps.
    pub fn margins(&self, policy: &Errors, other: &Errors, bins: Bins) -> (MarginMeter, BinMargins) {
        let (mut whole, mut by_bin) = (MarginMeter::default(), BinMargins::new(bins));
        let per_pair = 2 * self.draws;
        for (index, (p, o)) in policy
            .0
            .chunks_exact(per_pair)
            .zip(other.0.chunks_exact(per_pair))
            .enumerate()
        {
            let id = self.source.id(index);
            let draws = evaluation_draws(&self.streams, id, self.draws, self.schedule.train_timesteps());
            let mut sum = 0.0;
            for (draw, (p, o)) in draws.zip(p.chunks_exact(2).zip(o.chunks_exact(2))) {
                let margin = (f64::from(o[0]) - f64::from(p[0])) - (f64::from(o[1]) - f64::from(p[1]));
                by_bin.add(draw.timestep, margin);
                sum += margin;
            }
            whole.add(sum / self.draws as f64);
        }
        (whole, by_bin)
    }
}
