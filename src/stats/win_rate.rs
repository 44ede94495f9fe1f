//! How often one model's image is scored above another's for the same prompt and seed.

use serde::{Deserialize, Serialize};

/// Wins, ties and losses over paired scores. A win is a strictly greater score.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WinRate {
    /// Pairs whose first score is greater.
    pub wins: usize,
    /// Pairs of equal scores.
    pub ties: usize,
    /// Pairs whose first score is smaller.
    pub losses: usize,
}

impl WinRate {
    /// Of `scores` against the `baseline`'s scores of the same prompts and seeds.
    ///
    /// # Panics
    /// If there are not as many of the one as of the other.
    pub fn of(scores: &[f64], baseline: &[f64]) -> Self {
        assert_eq!(scores.len(), baseline.len(), "scores come in pairs");
        let mut count = Self::default();
        for (score, baseline) in scores.iter().zip(baseline) {
            match outcome(*score, *baseline) {
                1.0 => count.wins += 1,
                0.0 => count.losses += 1,
                _ => count.ties += 1,
            }
        }
        count
    }

    /// Pairs that were compared.
    pub fn n(&self) -> usize {
        self.wins + self.ties + self.losses
    }

    /// (wins + ½ ties) / n; none without pairs.
    pub fn rate(&self) -> Option<f64> {
        let n = self.n();
        (n > 0).then(|| (self.wins as f64 + 0.5 * self.ties as f64) / n as f64)
    }
}

/// 1 for a win, ½ for a tie, 0 for a loss: its mean over pairs is the win rate.
pub fn outcome(score: f64, baseline: f64) -> f64 {
    match score.total_cmp(&baseline) {
        _ if score == baseline => 0.5,
        std::cmp::Ordering::Greater => 1.0,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_half() {
        let count = WinRate::of(&[1.0, 2.0, 3.0, -0.0, 5.0], &[0.0, 2.0, 4.0, 0.0, 1.0]);
        assert_eq!(
            count,
            WinRate {
                wins: 2,
                ties: 2,
                losses: 1
            }
        );
        assert_eq!((count.n(), count.rate()), (5, Some(0.6)));
        assert_eq!(WinRate::default().rate(), None);
    }
}
