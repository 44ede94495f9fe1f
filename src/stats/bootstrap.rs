//! Bootstrap intervals of a mean (Efron & Tibshirani, *An Introduction to the Bootstrap*, ch. 13): draw as many
//! observations as there are, with replacement, over and over; the interval is that of the means' percentiles.
//!
//! Observations come in clusters, such as the images of a prompt, whose members are alike. Clusters are drawn whole, or
//! hierarchically: clusters first, then members of each drawn cluster (Davison & Hinkley, *Bootstrap Methods*, 3.8).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::percentile;
use crate::rng::{Purpose, Stream, Streams};

/// Draws that share one random stream: equal whatever the number of threads.
const BLOCK: usize = 256;

/// A confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// What is drawn again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resampling {
    /// Clusters with all their members: the interval speaks for other clusters (other prompts).
    Clusters,
    /// Clusters, then members of each: it speaks for other clusters and other members (other prompts of other seeds).
    Hierarchical,
}

/// How intervals are computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bootstrap {
    /// How often observations are drawn again.
    pub resamples: usize,
    /// Coverage, such as 0.95.
    pub level: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self {
            resamples: 10_000,
            level: 0.95,
            seed: 0,
        }
    }
}

impl Bootstrap {
    /// The interval of the mean over all members of all clusters; none if there are no members.
    ///
    /// `name` keys the random stream: statistics of different names draw independently, the same one always alike.
    pub fn mean(&self, name: &str, clusters: &[Vec<f64>], resampling: Resampling) -> Option<Interval> {
        let clusters: Vec<Cluster<'_>> = clusters
            .iter()
            .filter(|members| !members.is_empty())
            .map(|members| Cluster::new(members))
            .collect();
        if clusters.is_empty() {
            return None;
        }
        self.interval(name, |stream| drawn_mean(&clusters, resampling, stream))
    }

    /// The interval of what `draw` computes from one resample; resamples for which that is no number are left out.
    pub(super) fn interval(&self, name: &str, draw: impl Fn(&mut Stream) -> f64 + Sync) -> Option<Interval> {
        let streams = Streams::new(self.seed);
        let mut drawn: Vec<f64> = (0..self.resamples.div_ceil(BLOCK))
            .into_par_iter()
            .flat_map_iter(|block| {
                let mut stream = streams.named(Purpose::Bootstrap, &format!("{name}/{block}"));
                let draws = BLOCK.min(self.resamples - block * BLOCK);
                let draw = &draw;
                (0..draws).map(move |_| draw(&mut stream))
            })
            .filter(|value| !value.is_nan())
            .collect();
        drawn.sort_by(f64::total_cmp);
        let tail = 50.0 * (1.0 - self.level);
        (!drawn.is_empty()).then(|| Interval {
            low: percentile(&drawn, tail),
            high: percentile(&drawn, 100.0 - tail),
        })
    }
}

struct Cluster<'a> {
    members: &'a [f64],
    sum: f64,
}

impl<'a> Cluster<'a> {
    fn new(members: &'a [f64]) -> Self {
        let sum = members.iter().sum();
        Self { members, sum }
    }

    /// Sum of as many members as there are, each drawn from all.
    fn drawn_sum(&self, stream: &mut Stream) -> f64 {
        let n = self.members.len() as u64;
        (0..n).map(|_| self.members[stream.below(n) as usize]).sum()
    }
}

fn drawn_mean(clusters: &[Cluster<'_>], resampling: Resampling, stream: &mut Stream) -> f64 {
    let (mut sum, mut n) = (0.0, 0);
    for _ in 0..clusters.len() {
        let cluster = &clusters[stream.below(clusters.len() as u64) as usize];
        n += cluster.members.len();
        sum += match resampling {
            Resampling::Clusters => cluster.sum,
            Resampling::Hierarchical => cluster.drawn_sum(stream),
        };
    }
    sum / n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thirty prompts with four images each, spread within and between prompts; the recording script has the same ones.
    fn clusters() -> Vec<Vec<f64>> {
        let value =
            |i: usize, j: usize| ((i * i * 7) % 31) as f64 / 31.0 + ((i * 5 + j * 11) % 13) as f64 / 26.0;
        (0..30).map(|i| (0..4).map(|j| value(i, j)).collect()).collect()
    }

    fn bootstrap(resamples: usize) -> Bootstrap {
        Bootstrap {
            resamples,
            ..Bootstrap::default()
        }
    }

    /// `scipy.stats.bootstrap(method="percentile")` over prompts' means with 400,000 draws (scripts/fixtures/stats.py).
    /// The ends of an interval are estimates themselves; at 20,000 draws theirs have a standard error of about 0.0008.
    #[test]
    fn intervals_over_prompts_equal_scipys() {
        let interval = bootstrap(20_000)
            .mean("a", &clusters(), Resampling::Clusters)
            .unwrap();
        assert!((interval.low - 0.524_13).abs() < 0.004, "{interval:?}");
        assert!((interval.high - 0.726_67).abs() < 0.004, "{interval:?}");
    }

    /// The variance of the hierarchical bootstrap is known: that of the clusters' means, and the mean of the clusters'
    /// own variances over n.
    #[test]
    fn hierarchical_intervals_have_both_variances() {
        let clusters = clusters();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let variance = |values: &[f64]| {
            mean(
                &values
                    .iter()
                    .map(|v| (v - mean(values)).powi(2))
                    .collect::<Vec<_>>(),
            )
        };
        let means: Vec<f64> = clusters.iter().map(|members| mean(members)).collect();
        let within: Vec<f64> = clusters.iter().map(|members| variance(members) / 4.0).collect();
        let sigma = ((variance(&means) + mean(&within)) / 30.0).sqrt();
        let interval = bootstrap(20_000)
            .mean("b", &clusters, Resampling::Hierarchical)
            .unwrap();
        let width = (interval.high - interval.low) / (2.0 * 1.959_964);
        assert!((width / sigma - 1.0).abs() < 0.03, "{width} {sigma}");
        let whole = bootstrap(20_000)
            .mean("b", &clusters, Resampling::Clusters)
            .unwrap();
        assert!(whole.high - whole.low < interval.high - interval.low);
    }

    #[test]
    fn draws_depend_on_seed_and_name_and_not_on_threads() {
        let clusters = clusters();
        let draw = |seed, name, threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let bootstrap = Bootstrap {
                seed,
                ..bootstrap(1000)
            };
            pool.install(|| bootstrap.mean(name, &clusters, Resampling::Hierarchical))
        };
        assert_eq!(draw(1, "a", 1), draw(1, "a", 3));
        assert_ne!(draw(1, "a", 1), draw(2, "a", 1));
        assert_ne!(draw(1, "a", 1), draw(1, "b", 1));
    }

    #[test]
    fn equal_values_have_an_interval_without_width_and_none_no_interval() {
        let interval = bootstrap(300).mean("c", &[vec![0.5; 3], vec![0.5]], Resampling::Hierarchical);
        assert_eq!(interval, Some(Interval { low: 0.5, high: 0.5 }));
        assert_eq!(bootstrap(300).mean("c", &[vec![]], Resampling::Clusters), None);
    }
}
