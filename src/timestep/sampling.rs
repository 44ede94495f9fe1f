//! Where training timesteps are drawn: a bin by its probability, then uniform inside the bin.

use std::ops::RangeInclusive;

use super::Bins;
use crate::config::timestep::SamplingConfig;
use crate::diffusion::Timestep;
use crate::rng::Stream;

/// A distribution over the training timesteps that is uniform inside each bin's sampled part.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    bins: Bins,
    /// Probability of each bin.
    probabilities: Vec<f64>,
    /// The part of each bin that is drawn from; `None` where the probability is 0.
    cells: Vec<Option<RangeInclusive<u32>>>,
}

impl Sampling {
    /// The distribution that `config` describes over `bins`; the caller has checked the configuration.
    pub(super) fn new(config: &SamplingConfig, bins: Bins) -> Self {
        let whole = |bin: usize| bins.timesteps(bin);
        let size = |cell: &RangeInclusive<u32>| cell.clone().count() as f64;
        let (weights, cells): (Vec<f64>, Vec<RangeInclusive<u32>>) = (0..bins.count())
            .map(|bin| match config {
                SamplingConfig::Uniform {} => (size(&whole(bin)), whole(bin)),
                SamplingConfig::Geometric { gamma } => (gamma.powi(bin as i32), whole(bin)),
                SamplingConfig::Table { weights } => (weights[bin], whole(bin)),
                SamplingConfig::Range { min, max } => {
                    let cell = *whole(bin).start().max(min)..=*whole(bin).end().min(max);
                    (size(&cell), cell)
                }
            })
            .unzip();
        let total: f64 = weights.iter().sum();
        let probabilities: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        let cells = cells
            .into_iter()
            .zip(&probabilities)
            .map(|(cell, &p)| (p > 0.0).then_some(cell))
            .collect();
        Self {
            bins,
            probabilities,
            cells,
        }
    }

    /// Probability of each bin, noisiest first.
    pub fn bin_probabilities(&self) -> &[f64] {
        &self.probabilities
    }

    /// Probability of one timestep.
    pub fn probability(&self, t: Timestep) -> f64 {
        let bin = self.bins.bin_of(t);
        match &self.cells[bin] {
            Some(cell) if cell.contains(&t.0) => self.probabilities[bin] / cell.clone().count() as f64,
            _ => 0.0,
        }
    }

    /// Draws a timestep.
    pub fn sample(&self, stream: &mut Stream) -> Timestep {
        let mut left = stream.unit();
        let mut drawn = None;
        for (p, cell) in self.probabilities.iter().zip(&self.cells) {
            let Some(cell) = cell else { continue };
            drawn = Some(cell);
            if left < *p {
                break;
            }
            left -= p;
        }
        // Rounding may leave `left` beyond the last bin: then that bin is meant.
        let cell = drawn.expect("probabilities sum to 1, so some bin has one");
        Timestep(cell.start() + stream.below(cell.clone().count() as u64) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Streams};

    fn geometric(bins: usize) -> Sampling {
        Sampling::new(&SamplingConfig::Geometric { gamma: 0.9 }, Bins::new(bins, 1000))
    }

    /// The table of the geometric sampling with gamma 0.9 in the survey of the method (arXiv 2505.18736):
    /// bins, p of the first and the last bin, mean t, mass of the noisiest tenth, mass of t ≥ 500.
    #[test]
    fn geometric_sampling_has_the_tabulated_numbers() {
        for (bins, first, last, mean, tenth, half) in [
            (10, 0.1535, 0.0595, 585.0, 0.154, 0.629),
            (20, 0.1138, 0.0154, 663.0, 0.216, 0.741),
            (50, 0.1005, 0.00058, 815.0, 0.412, 0.933),
            (1000, 0.1000, 2e-47, 990.0, 1.0, 1.0),
        ] {
            let sampling = geometric(bins);
            let p = sampling.bin_probabilities();
            assert!((p[0] - first).abs() < 5.1e-5, "{bins} bins: {}", p[0]);
            assert!(
                (p[bins - 1] / last - 1.0).abs() < 0.1,
                "{bins} bins: {}",
                p[bins - 1]
            );
            let of = |from: u32| (from..1000).map(|t| sampling.probability(Timestep(t)));
            let mean_t: f64 = of(0).enumerate().map(|(t, p)| t as f64 * p).sum();
            assert!((mean_t - mean).abs() < 0.6, "{bins} bins: {mean_t}");
            assert!((of(900).sum::<f64>() - tenth).abs() < 5.1e-4, "{bins} bins");
            assert!((of(500).sum::<f64>() - half).abs() < 5.1e-4, "{bins} bins");
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let table = SamplingConfig::Table {
            weights: vec![3.0, 0.0, 1.0, 2.0, 0.0],
        };
        for (config, bins) in [
            (SamplingConfig::Uniform {}, 7),
            (SamplingConfig::Geometric { gamma: 0.7 }, 5),
            (SamplingConfig::Range { min: 13, max: 41 }, 5),
            (table, 5),
        ] {
            let sampling = Sampling::new(&config, Bins::new(bins, 50));
            let mut stream = Streams::new(3).named(Purpose::Timestep, "frequencies");
            let n = 50_000;
            let mut counts = [0u32; 50];
            for _ in 0..n {
                counts[sampling.sample(&mut stream).index()] += 1;
            }
            let total: f64 = (0..50).map(|t| sampling.probability(Timestep(t))).sum();
            assert!((total - 1.0).abs() < 1e-12, "{config:?}");
            for (t, &count) in counts.iter().enumerate() {
                let p = sampling.probability(Timestep(t as u32));
                let error = f64::from(count) / f64::from(n) - p;
                let standard_error = (p * (1.0 - p) / f64::from(n)).sqrt();
                assert!(error.abs() <= 5.0 * standard_error, "{config:?}, t {t}: {error}");
            }
        }
    }

    #[test]
    fn uniform_and_range_are_flat_even_when_bins_are_not_equal() {
        let uniform = Sampling::new(&SamplingConfig::Uniform {}, Bins::new(7, 1000));
        assert!((0..1000).all(|t| (uniform.probability(Timestep(t)) - 1e-3).abs() < 1e-15));
        let range = Sampling::new(&SamplingConfig::Range { min: 250, max: 749 }, Bins::new(10, 1000));
        assert!((250..750).all(|t| (range.probability(Timestep(t)) - 2e-3).abs() < 1e-15));
        assert_eq!(range.bin_probabilities()[1], 0.0);
        assert!((range.bin_probabilities()[2] - 0.1).abs() < 1e-15);
    }
}
