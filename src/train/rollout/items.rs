//! What is learnt from a round: which steps of which images, in pairs or alone, in which order.

use serde::{Deserialize, Serialize};

use super::chain::Trajectory;
use crate::config::rollout::BufferPairs;
use crate::diffusion::sampler::GaussianStep;
use crate::rng::Stream;
use crate::timestep::TimestepRule;

/// Latents of a round, each (C,H,W) flat; items name them by their positions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pool(pub Vec<Vec<f32>>);

impl Pool {
    /// Adds latents; returns their position.
    pub fn add(&mut self, latents: Vec<f32>) -> u32 {
        self.0.push(latents);
        (self.0.len() - 1) as u32
    }

    /// Latents by their position.
    pub fn get(&self, position: u32) -> &[f32] {
        &self.0[position as usize]
    }
}

/// A pair of samples, or a single one, to be learnt from. Numbers that JSON keeps bit for bit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Position of the prompt in the list.
    pub prompt: usize,
    /// Which denoising step; for images the number of the draw.
    pub step: usize,
    /// Where the steps started, or the images: the preferred one first. A single one has itself beside it.
    pub from: [u32; 2],
    /// Where the steps went.
    pub to: [u32; 2],
    /// Error of the policy that took a single step.
    pub old_error: f64,
    /// How much better than expected a single step's image is.
    pub advantage: f64,
}

/// An image of a round with what was said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rated {
    /// The image.
    pub trajectory: Trajectory,
    /// Its reward or label.
    pub reward: f64,
}

/// `n` of the steps that can be learnt from (`eligible`, positions in `steps`), all of them where `n` is `None`. Where the
/// timestep rule draws all alike each comes at most once; else they are drawn by its probabilities.
pub fn choose_steps(
    steps: &[GaussianStep],
    eligible: &[usize],
    n: Option<usize>,
    rule: &TimestepRule,
    stream: &mut Stream,
) -> Vec<usize> {
    let probability = |step: usize| rule.sampling().probability(steps[step].timestep);
    let mut possible: Vec<usize> = eligible
        .iter()
        .copied()
        .filter(|step| probability(*step) > 0.0)
        .collect();
    let Some(&first) = possible.first() else {
        return Vec::new();
    };
    let alike = |step: &usize| (probability(*step) / probability(first) - 1.0).abs() < 1e-9;
    if possible.iter().all(alike) {
        stream.shuffle(&mut possible);
        possible.truncate(n.unwrap_or(possible.len()));
        return possible;
    }
    let total: f64 = possible.iter().map(|step| probability(*step)).sum();
    let mut draw = || {
        let mut left = stream.unit() * total;
        let mut drawn = first;
        for step in &possible {
            drawn = *step;
            left -= probability(*step);
            if left < 0.0 {
                break;
            }
        }
        drawn
    };
    (0..n.unwrap_or(possible.len())).map(|_| draw()).collect()
}

/// The pairs among images of one prompt, as positions: the better one first.
pub fn pairs_of(rewards: &[f64], which: BufferPairs) -> Vec<(usize, usize)> {
    let all = (0..rewards.len()).flat_map(|a| (0..rewards.len()).map(move |b| (a, b)));
    let pairs = all.filter(|(a, b)| rewards[*a] > rewards[*b]);
    match which {
        BufferPairs::All => pairs.collect(),
        // The first of several that are equally far apart.
        BufferPairs::BestWorst => pairs
            .reduce(|best, pair| {
                let gap = |pair: (usize, usize)| rewards[pair.0] - rewards[pair.1];
                if gap(pair) > gap(best) { pair } else { best }
            })
            .into_iter()
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_make_no_pairs() {
        let rewards = [1.0, 3.0, 1.0, 2.0];
        assert_eq!(
            pairs_of(&rewards, BufferPairs::All),
            [(1, 0), (1, 2), (1, 3), (3, 0), (3, 2)]
        );
        assert_eq!(pairs_of(&rewards, BufferPairs::BestWorst), [(1, 0)]);
        assert!(pairs_of(&[0.5, 0.5], BufferPairs::All).is_empty());
        assert!(pairs_of(&[0.5, 0.5], BufferPairs::BestWorst).is_empty());
    }
}
