//! Weights from the variance of the reward signal: bins whose reward varies more weigh less, so that no
//! noise level dominates the updates only because its rewards are larger.
//!
//! Per bin, the exponentially weighted mean and variance of the reward signal are kept. A bin's past is
//! multiplied by `decay` at every optimizer step that brings it new samples. The variance is bias-corrected
//! for its finite, unequally weighted past: with sample weights a, it is
//! `Σ a(u − mean)² / Σ a · 1 / (1 − Σ a² / (Σ a)²)`.

use serde::{Deserialize, Serialize};

use crate::config::timestep::VarianceConfig;

/// Running moments of one bin's reward signal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Moments {
    /// Σ a over the decayed sample weights.
    weight: f64,
    /// Σ a².
    squared_weight: f64,
    /// Weighted mean of the signal.
    mean: f64,
    /// Σ a (u − mean)².
    scatter: f64,
    /// Samples seen, not decayed.
    samples: u64,
}

impl Moments {
    fn decay(&mut self, factor: f64) {
        self.weight *= factor;
        self.squared_weight *= factor * factor;
        self.scatter *= factor;
    }

    /// West's update, which does not subtract large numbers as `Σ a·u² − (Σ a·u)²` would.
    fn add(&mut self, weight: f64, signal: f64) {
        self.samples += 1;
        if weight <= 0.0 {
            return;
        }
        self.weight += weight;
        self.squared_weight += weight * weight;
        let deviation = signal - self.mean;
        self.mean += deviation * weight / self.weight;
        self.scatter += weight * deviation * (signal - self.mean);
    }

    /// Bias-corrected variance; `None` while there are not two effective samples.
    fn variance(&self) -> Option<f64> {
        let correction = 1.0 - self.squared_weight / (self.weight * self.weight);
        // The comparison is false for NaN, that is, for a bin without any weight.
        (correction > 1e-9).then(|| self.scatter / self.weight / correction)
    }
}

/// The state of the `variance` weighting. Serialised, it comes back bit for bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VarianceState {
    moments: Vec<Moments>,
    weights: Vec<f64>,
    steps: u64,
    frozen: bool,
}

/// The `variance` weighting over bins of given probabilities.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct VarianceWeighting {
    config: VarianceConfig,
    probabilities: Vec<f64>,
    state: VarianceState,
}

impl VarianceWeighting {
    pub fn new(config: VarianceConfig, probabilities: Vec<f64>) -> Self {
        let bins = probabilities.len();
        let state = VarianceState {
            moments: vec![Moments::default(); bins],
            weights: vec![1.0; bins],
            steps: 0,
            frozen: false,
        };
        Self {
            config,
            probabilities,
            state,
        }
    }

    /// Current weight of each bin; their mean under the sampling is 1.
    pub fn weights(&self) -> &[f64] {
        &self.state.weights
    }

    pub fn variance(&self, bin: usize) -> Option<f64> {
        self.state.moments[bin].variance()
    }

    pub fn state(&self) -> &VarianceState {
        &self.state
    }

    /// Takes over a saved state; `false` if it is one of another number of bins.
    pub fn restore(&mut self, state: VarianceState) -> bool {
        let bins = self.probabilities.len();
        let fits = state.moments.len() == bins && state.weights.len() == bins;
        if fits {
            self.state = state;
        }
        fits
    }

    /// Adds one optimizer step's samples (bin, weight, reward signal), then renews the weights.
    pub fn observe(&mut self, samples: impl Iterator<Item = (usize, f64, f64)>) {
        let mut decayed = vec![false; self.probabilities.len()];
        for (bin, weight, signal) in samples {
            let moments = &mut self.state.moments[bin];
            if !std::mem::replace(&mut decayed[bin], true) {
                moments.decay(self.config.decay);
            }
            moments.add(weight, signal);
        }
        self.state.steps += 1;
        if self.state.frozen {
            return;
        }
        if let Some(variances) = self.warmed_up_variances() {
            self.state.weights = normalised_weights(&variances, &self.probabilities, &self.config);
            self.state.frozen = self
                .config
                .freeze_after
                .is_some_and(|steps| self.state.steps >= steps);
        }
    }

    /// The variance of every bin that is sampled (0 for the others), once all of them are warmed up.
    fn warmed_up_variances(&self) -> Option<Vec<f64>> {
        let of_bin = |(moments, p): (&Moments, &f64)| match *p {
            0.0 => Some(0.0),
            _ if moments.samples < self.config.warmup => None,
            _ => moments.variance(),
        };
        self.state
            .moments
            .iter()
            .zip(&self.probabilities)
            .map(of_bin)
            .collect()
    }
}

/// `w_k ∝ (v_k + floor·v̄)^(−power)` with `Σ p_k·w_k = 1`; bins that are not sampled get 0.
fn normalised_weights(variances: &[f64], probabilities: &[f64], config: &VarianceConfig) -> Vec<f64> {
    let sampled = probabilities.iter().filter(|p| **p > 0.0).count() as f64;
    let mean = variances.iter().sum::<f64>() / sampled;
    if mean <= 0.0 {
        // Nothing varies yet: policy and reference still agree everywhere.
        return vec![1.0; variances.len()];
    }
    let raw = |(v, p): (&f64, &f64)| match *p {
        0.0 => 0.0,
        _ => (v / mean + config.floor).powf(-config.power),
    };
    let raw: Vec<f64> = variances.iter().zip(probabilities).map(raw).collect();
    let total: f64 = raw.iter().zip(probabilities).map(|(w, p)| w * p).sum();
    raw.into_iter().map(|w| w / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream, Streams};

    fn stream() -> Stream {
        Streams::new(5).named(Purpose::Noise, "rewards")
    }

    /// One optimizer step's samples: bins by turns, signals of a scale that differs by bin.
    fn step(stream: &mut Stream, scales: &[f64]) -> Vec<(usize, f64, f64)> {
        let mut noise = vec![0.0f32; 12];
        stream.fill_normal(&mut noise);
        noise
            .iter()
            .map(|&x| {
                let bin = stream.below(scales.len() as u64) as usize;
                (bin, 0.5 + stream.unit(), 3.0 + scales[bin] * f64::from(x))
            })
            .collect()
    }

    /// Variance of a bin written out from the definition: every sample with its decayed weight.
    fn direct_variance(history: &[Vec<(usize, f64, f64)>], bin: usize, decay: f64) -> f64 {
        let mut samples = Vec::new();
        for step in history {
            let new: Vec<_> = step.iter().filter(|s| s.0 == bin).map(|s| (s.1, s.2)).collect();
            if !new.is_empty() {
                samples.iter_mut().for_each(|(a, _): &mut (f64, f64)| *a *= decay);
                samples.extend(new);
            }
        }
        let total: f64 = samples.iter().map(|s| s.0).sum();
        let mean = samples.iter().map(|(a, u)| a * u).sum::<f64>() / total;
        let second = samples.iter().map(|(a, u)| a * u * u).sum::<f64>() / total;
        let squares: f64 = samples.iter().map(|s| s.0 * s.0).sum();
        (second - mean * mean) / (1.0 - squares / (total * total))
    }

    #[test]
    fn variances_and_weights_match_the_definition() {
        let scales = [2.0, 1.0, 0.25, 0.0];
        let probabilities = [0.4, 0.3, 0.2, 0.1];
        let config = VarianceConfig {
            decay: 0.9,
            power: 0.7,
            floor: 0.05,
            warmup: 20,
            freeze_after: None,
        };
        let mut weighting = VarianceWeighting::new(config, probabilities.to_vec());
        let (mut stream, mut history) = (stream(), Vec::new());
        let mut warm_steps = 0;
        for _ in 0..80 {
            history.push(step(&mut stream, &scales));
            weighting.observe(history.last().unwrap().iter().copied());
            let seen = |bin: usize| history.iter().flatten().filter(|s| s.0 == bin).count();
            if (0..4).any(|bin| seen(bin) < 20) {
                assert_eq!(weighting.weights(), [1.0; 4]);
                continue;
            }
            warm_steps += 1;
            let v: Vec<f64> = (0..4).map(|bin| direct_variance(&history, bin, 0.9)).collect();
            let mean = v.iter().sum::<f64>() / 4.0;
            let raw: Vec<f64> = v.iter().map(|v| (v + 0.05 * mean).powf(-0.7)).collect();
            let total: f64 = raw.iter().zip(probabilities).map(|(w, p)| w * p).sum();
            for bin in 0..4 {
                assert!((weighting.variance(bin).unwrap() - v[bin]).abs() < 1e-12);
                assert!((weighting.weights()[bin] / (raw[bin] / total) - 1.0).abs() < 1e-10);
            }
        }
        assert!(warm_steps > 20, "the warm case must be reached: {warm_steps}");
    }

    #[test]
    fn the_estimate_is_not_biased() {
        let config = VarianceConfig {
            decay: 0.8,
            ..VarianceConfig::default()
        };
        let mut stream = stream();
        let repeats = 4000;
        let mut sum = 0.0;
        for _ in 0..repeats {
            let mut weighting = VarianceWeighting::new(config.clone(), vec![1.0]);
            let mut noise = [0.0f32; 4];
            for _ in 0..3 {
                stream.fill_normal(&mut noise);
                weighting.observe(noise.iter().map(|&x| (0, 1.0, f64::from(x))));
            }
            sum += weighting.variance(0).unwrap();
        }
        // The variance of an estimate from about 11 effective samples is near 2/11.
        let error = sum / f64::from(repeats) - 1.0;
        assert!(error.abs() < 5.0 * (0.2 / f64::from(repeats)).sqrt(), "{error}");
    }

    #[test]
    fn weights_equalise_what_they_are_meant_to() {
        let variances = [4.0, 1.0, 0.25];
        let p = [0.2, 0.3, 0.5];
        let config = |power| VarianceConfig {
            power,
            floor: 1e-9,
            ..VarianceConfig::default()
        };
        let scale = normalised_weights(&variances, &p, &config(0.5));
        let products: Vec<f64> = scale.iter().zip(variances).map(|(w, v)| w * v.sqrt()).collect();
        assert!(
            products.iter().all(|x| (x / products[0] - 1.0).abs() < 1e-6),
            "{products:?}"
        );
        let inverse = normalised_weights(&variances, &p, &config(1.0));
        assert!((inverse[2] / inverse[0] - 16.0).abs() < 1e-5);
        assert_eq!(normalised_weights(&[0.0; 3], &p, &config(0.5)), [1.0; 3]);
    }

    #[test]
    fn frozen_weights_stay_and_statistics_go_on() {
        let config = VarianceConfig {
            warmup: 4,
            freeze_after: Some(10),
            ..VarianceConfig::default()
        };
        let mut weighting = VarianceWeighting::new(config, vec![0.5, 0.5]);
        let mut stream = stream();
        for _ in 0..10 {
            weighting.observe(step(&mut stream, &[1.0, 3.0]).into_iter());
        }
        let (weights, variance) = (weighting.weights().to_vec(), weighting.variance(0));
        assert_ne!(weights, [1.0; 2]);
        for _ in 0..10 {
            weighting.observe(step(&mut stream, &[3.0, 1.0]).into_iter());
        }
        assert_eq!(weighting.weights(), weights);
        assert_ne!(weighting.variance(0), variance);
    }

    #[test]
    fn bins_that_are_never_sampled_do_not_hold_up_warm_up() {
        let config = VarianceConfig {
            warmup: 2,
            ..VarianceConfig::default()
        };
        let mut weighting = VarianceWeighting::new(config, vec![0.5, 0.0, 0.5]);
        weighting.observe([(0, 1.0, 1.0), (0, 1.0, 2.0), (2, 1.0, 0.0), (2, 1.0, 4.0)].into_iter());
        let w = weighting.weights();
        assert!(w[0] > 1.0 && w[1] == 0.0 && w[2] < 1.0, "{w:?}");
        assert!((0.5 * w[0] + 0.5 * w[2] - 1.0).abs() < 1e-15);
    }
}
