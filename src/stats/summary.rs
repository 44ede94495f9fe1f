//! A set of scores in a few numbers.

use serde::{Deserialize, Serialize};

/// Number, mean, standard error and spread of values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many values.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Standard deviation of the sample (divisor n - 1) over √n; a single value has none.
    pub standard_error: Option<f64>,
}

impl Summary {
    /// Of finite values; none if there are no values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let standard_error = (n > 1).then(|| (squares / (n - 1) as f64 / n as f64).sqrt());
        Some(Self {
            n,
            mean,
            standard_error,
        })
    }
}

/// The value below which `percent` per cent of `sorted` lie, interpolated linearly between neighbours (NumPy's default).
///
/// # Panics
/// If there are no values, or `percent` is not in 0..=100.
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    assert!((0.0..=100.0).contains(&percent), "{percent} is no percentage");
    let position = percent / 100.0 * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (position - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: [f64; 7] = [0.31, -1.2, 4.75, 2.0, 2.0, -0.08, 9.6];

    /// `numpy.mean`, `scipy.stats.sem`, `numpy.percentile` of the same values: scripts/fixtures/stats.py prints them.
    #[test]
    fn summaries_equal_numpy_and_scipy() {
        let summary = Summary::of(&VALUES).unwrap();
        assert!(
            (summary.mean - 2.482_857_142_857_142_7).abs() < 1e-14,
            "{summary:?}"
        );
        assert!((summary.standard_error.unwrap() - 1.389_698_004_682_199_6).abs() < 1e-14);
        let mut sorted = VALUES;
        sorted.sort_by(f64::total_cmp);
        let expected = [
            (0.0, -1.2),
            (2.5, -1.032),
            (25.0, 0.115),
            (50.0, 2.0),
            (90.0, 6.69),
            (100.0, 9.6),
        ];
        for (percent, expected) in expected {
            assert!(
                (percentile(&sorted, percent) - expected).abs() < 1e-14,
                "{percent}"
            );
        }
    }

    #[test]
    fn one_value_has_no_error_and_none_no_mean() {
        assert_eq!(Summary::of(&[]), None);
        let one = Summary::of(&[3.0]).unwrap();
        assert_eq!((one.mean, one.standard_error), (3.0, None));
        assert_eq!(percentile(&[3.0], 50.0), 3.0);
    }
}
