//! Random numbers that depend only on what they are for.
//!
//! Every draw comes from a stream of its own, keyed by (seed, purpose, pair, visit). The noise of a pair on
//! its third visit is therefore the same whatever the batch size, the number of threads or workers, or
//! whether the run was resumed, and a checkpoint stores no generator: visit numbers are enough.
//!
//! The key is derived with BLAKE3's key-derivation mode and drives ChaCha8, whose output is defined bit by
//! bit. Normal numbers use the ziggurat method.

use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

/// Separates this program's keys from any other use of BLAKE3.
const PAIR_CONTEXT: &str = "ortdpo v1: random stream of a pair";
const NAME_CONTEXT: &str = "ortdpo v1: random stream of a name";

/// A preference pair's identity: stable over runs, epochs and shuffles of the same data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PairId(pub u64);

/// How often a pair was drawn before: 0 on the first visit. Evaluation numbers its draws the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Visit(pub u64);

/// What random numbers are for. Purposes never share a stream.
///
/// The numbers are part of every stream's key: one that is given away stays, or old runs cannot be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    /// The noise tensor added to both latents of a pair.
    Noise = 0,
    /// The training timestep of a pair.
    Timestep = 1,
    /// Sampling latents from the VAE's posterior: preferred image first, then the rejected one.
    Latent = 2,
    /// Offset of the random crop.
    Crop = 3,
    /// The horizontal flip.
    Flip = 4,
    /// Whether the prompt is replaced by the empty one.
    PromptDropout = 5,
    /// Initial values of an adapter's factors; keyed by parameter name.
    AdapterInit = 6,
    /// Timestep and noise of a held-out evaluation draw.
    Evaluation = 7,
    /// Timestep and noise of a draw of the reference's drift probe.
    Probe = 8,
    /// The order of the pairs in an epoch.
    Order = 9,
    /// Which image of a tied pair counts as preferred.
    Tie = 10,
    /// Where a generated image starts; keyed by prompt and image.
    ImageStart = 11,
    /// The noise that a sampler adds to a generated image on its way, call by call.
    ImageSteps = 12,
    /// The order in which rollouts take prompts.
    PromptOrder = 13,
    /// Which steps of a round of rollouts are learnt from, and in which order.
    BufferOrder = 14,
    /// Noise of the steps that are tried from one noisy image; keyed by prompt and image.
    Candidates = 15,
    /// Which steps a value network is fitted to.
    ValueBatch = 16,
    /// Which observations a bootstrap draws; keyed by the statistic's name.
    Bootstrap = 20,
    /// Which image of a pair a rater of the Bradley-Terry model prefers; keyed by the pair.
    Rater = 21,
    /// Which prompts are held out; keyed by the prompt.
    Split = 22,
    /// Which pictures a subset of KID holds; keyed by the subset.
    Subset = 23,
    /// Rounding of a reference that is kept in bfloat16; keyed by optimizer step and block.
    Rounding = 24,
    /// Which pairs are shown as examples; keyed by the pair.
    Examples = 40,
}

/// The source of all streams of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    seed: u64,
}

impl Streams {
    /// Streams of the run with this seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The stream of one pair's visit for one purpose.
    pub fn pair(&self, purpose: Purpose, pair: PairId, visit: Visit) -> Stream {
        let mut material = [0; 25];
        material[..8].copy_from_slice(&self.seed.to_le_bytes());
        material[8] = purpose as u8;
        material[9..17].copy_from_slice(&pair.0.to_le_bytes());
        material[17..].copy_from_slice(&visit.0.to_le_bytes());
        Stream::from_key(blake3::derive_key(PAIR_CONTEXT, &material))
    }

    /// The stream of a generated image, by the positions of its prompt and of the image among those of the prompt.
    pub fn image(&self, purpose: Purpose, prompt: u64, image: u64) -> Stream {
        self.pair(purpose, PairId(prompt), Visit(image))
    }

    /// The stream of something that has a name instead of a pair: a parameter's initial values.
    pub fn named(&self, purpose: Purpose, name: &str) -> Stream {
        let mut material = self.seed.to_le_bytes().to_vec();
        material.push(purpose as u8);
        material.extend_from_slice(name.as_bytes());
        Stream::from_key(blake3::derive_key(NAME_CONTEXT, &material))
    }

    /// The stream that orders the pairs of an epoch.
    pub fn epoch_order(&self, epoch: u64) -> Stream {
        self.pair(Purpose::Order, PairId(0), Visit(epoch))
    }

    /// The stream that orders the parts of an epoch, where batches are in parts of images of one size.
    pub fn part_order(&self, epoch: u64) -> Stream {
        self.pair(Purpose::Order, PairId(1), Visit(epoch))
    }
}

/// One stream: a sequence of random numbers that starts anew for every key.
#[derive(Debug, Clone)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    fn from_key(key: [u8; 32]) -> Self {
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Fills `values` with standard normal numbers.
    pub fn fill_normal(&mut self, values: &mut [f32]) {
        values.fill_with(|| self.0.sample(StandardNormal));
    }

    /// Fills `bytes` with random bits.
    pub fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }

    /// A number uniform in [0, 1), with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        self.0.random()
    }

    /// An integer uniform in 0..`end`.
    ///
    /// # Panics
    /// If `end` is 0: there is no such integer.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0.random_range(0..end)
    }

    /// `true` with the given probability; values outside [0, 1] act as the nearer end.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Puts `items` in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        items.shuffle(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    const PURPOSES: [Purpose; 23] = [
        Purpose::Noise,
        Purpose::Timestep,
        Purpose::Latent,
        Purpose::Crop,
        Purpose::Flip,
        Purpose::PromptDropout,
        Purpose::AdapterInit,
        Purpose::Evaluation,
        Purpose::Probe,
        Purpose::Order,
        Purpose::Tie,
        Purpose::ImageStart,
        Purpose::ImageSteps,
        Purpose::PromptOrder,
        Purpose::BufferOrder,
        Purpose::Candidates,
        Purpose::ValueBatch,
        Purpose::Bootstrap,
        Purpose::Rater,
        Purpose::Split,
        Purpose::Subset,
        Purpose::Rounding,
        Purpose::Examples,
    ];

    fn noise(seed: u64, pair: u64, visit: u64) -> Vec<f32> {
        let mut values = vec![0.0; 256];
        Streams::new(seed)
            .pair(Purpose::Noise, PairId(pair), Visit(visit))
            .fill_normal(&mut values);
        values
    }

    #[test]
    fn batches_and_threads_do_not_change_a_pairs_noise() {
        let pairs: Vec<u64> = (0..48).collect();
        let alone: Vec<_> = pairs.iter().map(|&pair| noise(7, pair, 3)).collect();
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            for batch in [1, 6, 48] {
                let batched: Vec<_> = pool.install(|| {
                    pairs
                        .par_chunks(batch)
                        .flat_map_iter(|c| c.iter().map(|&p| noise(7, p, 3)))
                        .collect()
                });
                assert_eq!(batched, alone, "{threads} threads, batches of {batch}");
            }
        }
    }

    #[test]
    fn each_part_of_the_key_gives_another_stream() {
        let base = noise(0, 0, 0);
        for other in [noise(1, 0, 0), noise(0, 1, 0), noise(0, 0, 1)] {
            let correlation: f32 = base.iter().zip(&other).map(|(a, b)| a * b).sum::<f32>() / 256.0;
            assert!(correlation.abs() < 0.3, "{correlation}");
        }
        let streams = Streams::new(0);
        let mut firsts: Vec<u64> = PURPOSES
            .iter()
            .map(|&purpose| streams.pair(purpose, PairId(0), Visit(0)).below(u64::MAX))
            .chain(["a", "b"].map(|name| streams.named(Purpose::AdapterInit, name).below(u64::MAX)))
            .collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), PURPOSES.len() + 2);
    }

    #[test]
    fn draws_have_the_moments_of_their_distributions() {
        let mut stream = Streams::new(11).named(Purpose::Noise, "moments");
        let n = 200_000;
        let mut normal = vec![0.0f32; n];
        stream.fill_normal(&mut normal);
        let moment = |power: i32| normal.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / n as f64;
        // Five standard errors of each moment's estimate.
        for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let error = (moment(power) - expected).abs();
            assert!(
                error < 5.0 * f64::sqrt(variance / n as f64),
                "moment {power} is off by {error}"
            );
        }
        let mean = (0..n).map(|_| stream.unit()).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 5.0 * f64::sqrt(1.0 / 12.0 / n as f64));
        let hits = (0..n).filter(|_| stream.chance(0.2)).count() as f64 / n as f64;
        assert!((hits - 0.2).abs() < 5.0 * f64::sqrt(0.16 / n as f64));
    }

    /// Computed outside this program, from BLAKE3's and ChaCha's definitions: whoever wants to follow a run in
    /// another language can, and a change would make every earlier run unrepeatable.
    #[test]
    fn streams_are_blake3_keyed_chacha8() {
        let mut stream = Streams::new(0).pair(Purpose::Timestep, PairId(42), Visit(1));
        let drawn = [stream.unit(), stream.unit(), stream.unit()];
        assert_eq!(
            drawn,
            [
                0.198_746_953_415_487_76,
                0.576_228_504_448_238_8,
                0.285_728_853_042_849_8
            ]
        );
    }
}
