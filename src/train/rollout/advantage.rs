//! How much better than expected an image is, in standard deviations of rewards.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::config::rollout::{BufferConfig, RewardBaseline};

/// Keeps a division by the standard deviation finite, as in DDPO's code.
const EPSILON: f64 = 1e-6;

/// The latest rewards of each prompt, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RewardHistory(BTreeMap<usize, VecDeque<f64>>);

/// Mean and standard deviation (of the values, not of what they are drawn from).
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / n;
    let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / n;
    (mean, variance.sqrt())
}

/// Rewards in standard deviations above the mean of the first round's, which is set by the first call.
pub fn standardized(first: &mut Option<(f64, f64)>, rewards: &[f64]) -> Vec<f64> {
    let (mean, deviation) = *first.get_or_insert_with(|| moments(rewards.iter().copied()));
    rewards
        .iter()
        .map(|reward| (reward - mean) / (deviation + EPSILON))
        .collect()
}

/// Advantages of a round's images; `prompts` says of which prompt each one is. The history learns of them first.
pub fn advantages(
    config: &BufferConfig,
    history: &mut RewardHistory,
    prompts: &[usize],
    rewards: &[f64],
) -> Vec<f64> {
    if config.baseline == RewardBaseline::Prompt {
        for (prompt, reward) in prompts.iter().zip(rewards) {
            let known = history.0.entry(*prompt).or_default();
            known.push_back(*reward);
            if known.len() > config.history {
                known.pop_front();
            }
        }
    }
    let round = moments(rewards.iter().copied());
    let of = |prompt: usize| match config.baseline {
        RewardBaseline::Round => round,
        RewardBaseline::Group => {
            let own = prompts
                .iter()
                .zip(rewards)
                .filter(move |(other, _)| **other == prompt);
            moments(own.map(|(_, reward)| *reward))
        }
        RewardBaseline::Prompt => match history.0.get(&prompt) {
            Some(known) if known.len() >= config.min_count => moments(known.iter().copied()),
            _ => round,
        },
    };
    prompts
        .iter()
        .zip(rewards)
        .map(|(prompt, reward)| {
            let (mean, deviation) = of(*prompt);
            (reward - mean) / (deviation + EPSILON)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(baseline: RewardBaseline) -> BufferConfig {
        BufferConfig {
            baseline,
            history: 3,
            min_count: 3,
            ..BufferConfig::default()
        }
    }

    fn close(found: &[f64], wanted: &[f64]) {
        assert_eq!(found.len(), wanted.len());
        for (f, w) in found.iter().zip(wanted) {
            assert!((f - w).abs() < 1e-5, "{found:?} instead of {wanted:?}");
        }
    }

    #[test]
    fn rewards_are_compared_with_the_round_the_group_or_the_prompts_own_past() {
        let mut history = RewardHistory::default();
        let rewards = [1.0, 3.0, 10.0, 14.0];
        let prompts = [5, 5, 7, 7];
        // The round's mean is 7, its variance (36 + 16 + 9 + 49) / 4.
        let round: Vec<f64> = rewards.iter().map(|r| (r - 7.0) / 27.5f64.sqrt()).collect();
        let found = advantages(&config(RewardBaseline::Round), &mut history, &prompts, &rewards);
        close(&found, &round);
        let found = advantages(&config(RewardBaseline::Group), &mut history, &prompts, &rewards);
        close(&found, &[-1.0, 1.0, -1.0, 1.0]);
        // Two rewards of each prompt are too few; with two more the oldest is forgotten: 3, 4 and 8 are left of prompt 5.
        let config = config(RewardBaseline::Prompt);
        close(&advantages(&config, &mut history, &prompts, &rewards), &round);
        let found = advantages(&config, &mut history, &[5, 5], &[4.0, 8.0]);
        let deviation = (14.0f64 / 3.0).sqrt();
        close(&found, &[-1.0 / deviation, 3.0 / deviation]);
    }
}
