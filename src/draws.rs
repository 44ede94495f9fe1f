//! Fixed draws of (pair, timestep, noise): what held-out evaluation and the reference's drift probe measure
//! on. They depend on the seed and the pairs alone, so every model of a run is measured on the same ones.
//!
//! Timesteps are stratified: draw i of n lies in the i-th of n equal parts of the training timesteps, which
//! covers all noise levels evenly and leaves less variance than independent draws.

use crate::diffusion::Timestep;
use crate::rng::{PairId, Purpose, Stream, Streams, Visit};

/// One measurement's randomness.
#[derive(Debug, Clone)]
pub struct Draw {
    /// The pair that is measured; a drift probe uses its preferred image.
    pub pair: PairId,
    /// The timestep.
    pub timestep: Timestep,
    noise: Stream,
}

impl Draw {
    fn new(mut stream: Stream, pair: PairId, stratum: usize, strata: usize, train_timesteps: usize) -> Self {
        let position = (stratum as f64 + stream.unit()) / strata as f64;
        let index = (position * train_timesteps as f64) as usize;
        // Rounding could reach the end, which is not a timestep.
        let timestep = Timestep(index.min(train_timesteps - 1) as u32);
        Self {
            pair,
            timestep,
            noise: stream,
        }
    }

    /// Writes the draw's noise, (C,H,W) flat; the same every time.
    pub fn fill_noise(&self, noise: &mut [f32]) {
        self.noise.clone().fill_normal(noise);
    }
}

/// The `count` evaluation draws of a held-out pair.
pub fn evaluation_draws(
    streams: &Streams,
    pair: PairId,
    count: usize,
    train_timesteps: usize,
) -> impl Iterator<Item = Draw> {
    let streams = *streams;
    (0..count).map(move |index| {
        let stream = streams.pair(Purpose::Evaluation, pair, Visit(index as u64));
        Draw::new(stream, pair, index, count, train_timesteps)
    })
}

/// The `count` draws of the drift probe, from `pairs` of the training split in any order. With fewer pairs
/// than draws, pairs are used again with other noise.
///
/// # Panics
/// If `pairs` is empty; training has refused an empty data set before.
pub fn probe_draws(streams: &Streams, pairs: &[PairId], count: usize, train_timesteps: usize) -> Vec<Draw> {
    let mut chosen = pairs.to_vec();
    chosen.sort_unstable();
    streams.named(Purpose::Probe, "pairs").shuffle(&mut chosen);
    (0..count)
        .map(|index| {
            let pair = chosen[index % chosen.len()];
            let round = (index / chosen.len()) as u64;
            let stream = streams.pair(Purpose::Probe, pair, Visit(round));
            Draw::new(stream, pair, index, count, train_timesteps)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn evaluation_draws_cover_all_noise_levels_and_repeat() {
        let streams = Streams::new(9);
        let draws: Vec<_> = evaluation_draws(&streams, PairId(5), 16, 1000).collect();
        for (index, draw) in draws.iter().enumerate() {
            let strata = (index * 1000 / 16) as u32..=((index + 1) * 1000 / 16) as u32;
            assert!(strata.contains(&draw.timestep.0), "{index}: {:?}", draw.timestep);
        }
        let again: Vec<_> = evaluation_draws(&streams, PairId(5), 16, 1000).collect();
        let (mut a, mut b, mut c) = ([0.0; 8], [0.0; 8], [0.0; 8]);
        draws[3].fill_noise(&mut a);
        again[3].fill_noise(&mut b);
        draws[4].fill_noise(&mut c);
        assert_eq!((draws[3].timestep, a), (again[3].timestep, b));
        assert_ne!(a, c);
        draws[3].fill_noise(&mut b);
        assert_eq!(a, b);
    }

    #[test]
    fn a_probe_does_not_depend_on_the_order_of_the_data() {
        let pairs: Vec<PairId> = (0..200).map(PairId).collect();
        let reversed: Vec<PairId> = pairs.iter().rev().copied().collect();
        let key = |draws: Vec<Draw>| draws.iter().map(|d| (d.pair, d.timestep)).collect::<Vec<_>>();
        let probe = key(probe_draws(&Streams::new(2), &pairs, 64, 1000));
        assert_eq!(probe, key(probe_draws(&Streams::new(2), &reversed, 64, 1000)));
        assert_ne!(probe, key(probe_draws(&Streams::new(3), &pairs, 64, 1000)));
        assert_eq!(
            probe.iter().map(|d| d.0).collect::<HashSet<_>>().len(),
            64,
            "pairs are not used twice"
        );
    }

    #[test]
    fn few_pairs_are_used_again_with_other_noise() {
        let draws = probe_draws(&Streams::new(2), &[PairId(1), PairId(8)], 6, 1000);
        let noises: HashSet<u32> = draws
            .iter()
            .map(|draw| {
                let mut noise = [0.0];
                draw.fill_noise(&mut noise);
                noise[0].to_bits()
            })
            .collect();
        assert_eq!(noises.len(), 6);
    }
}
