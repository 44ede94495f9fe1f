//! Equal bins of the training timesteps. Bin 0 is the noisiest, as in the papers' "early" denoising steps.

use std::ops::RangeInclusive;

use serde::Serialize;

use crate::diffusion::Timestep;
use crate::margin::MarginMeter;

/// `count` bins of `train_timesteps` timesteps; sizes differ by at most one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bins {
    count: usize,
    train_timesteps: usize,
}

impl Bins {
    /// Bins of the training timesteps; the caller has checked `1 ≤ count ≤ train_timesteps`.
    pub(super) fn new(count: usize, train_timesteps: usize) -> Self {
        Self {
            count,
            train_timesteps,
        }
    }

    /// Number of bins.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The bin that holds `t`.
    pub fn bin_of(&self, t: Timestep) -> usize {
        let rank = self.train_timesteps - 1 - t.index();
        // The largest k with floor(k·T/K) ≤ rank.
        ((rank + 1) * self.count - 1) / self.train_timesteps
    }

    /// The timesteps of a bin.
    pub fn timesteps(&self, bin: usize) -> RangeInclusive<u32> {
        let noisiest_rank = bin * self.train_timesteps / self.count;
        let end_rank = (bin + 1) * self.train_timesteps / self.count;
        let timestep = |rank: usize| (self.train_timesteps - 1 - rank) as u32;
        timestep(end_rank - 1)..=timestep(noisiest_rank)
    }
}

/// What is known about one bin; the log's `bins` entry.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BinReport {
    /// Probability of the bin under the sampling.
    pub p: f64,
    /// Mean loss weight of the bin's samples.
    pub w: f64,
    /// Variance of the reward signal, once the bin has seen two samples and `variance` is used.
    pub v: Option<f64>,
    /// Mean margin of the bin's held-out draws, when measured.
    pub margin: Option<f64>,
    /// Implicit accuracy of the bin's held-out draws, when measured.
    pub acc: Option<f64>,
}

/// Margins of held-out draws, by bin.
#[derive(Debug, Clone)]
pub struct BinMargins {
    bins: Bins,
    meters: Vec<MarginMeter>,
}

impl BinMargins {
    /// No draws yet.
    pub fn new(bins: Bins) -> Self {
        Self {
            bins,
            meters: vec![MarginMeter::default(); bins.count()],
        }
    }

    /// Adds the margin of one draw at `t`.
    pub fn add(&mut self, t: Timestep, margin: f64) {
        self.meters[self.bins.bin_of(t)].add(margin);
    }

    /// The meter of one bin.
    pub fn bin(&self, bin: usize) -> &MarginMeter {
        &self.meters[bin]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_partition_the_timesteps_from_noisy_to_clean() {
        for (count, train_timesteps) in [(10, 1000), (1, 1000), (1000, 1000), (7, 1000), (3, 10), (6, 7)] {
            let bins = Bins::new(count, train_timesteps);
            let mut seen = vec![0; train_timesteps];
            for bin in 0..count {
                for t in bins.timesteps(bin) {
                    seen[t as usize] += 1;
                    assert_eq!(bins.bin_of(Timestep(t)), bin, "{count} bins, t {t}");
                }
                let size = bins.timesteps(bin).count();
                assert!(size.abs_diff(train_timesteps / count) <= 1);
            }
            assert!(
                seen.iter().all(|&times| times == 1),
                "{count} bins of {train_timesteps}"
            );
            assert_eq!(bins.bin_of(Timestep(train_timesteps as u32 - 1)), 0);
            assert_eq!(bins.bin_of(Timestep(0)), count - 1);
        }
    }

    #[test]
    fn ten_bins_are_hundreds() {
        let bins = Bins::new(10, 1000);
        assert_eq!((bins.timesteps(0), bins.timesteps(9)), (900..=999, 0..=99));
    }
}
