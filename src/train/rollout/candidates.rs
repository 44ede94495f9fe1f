//! Step pairs in the manner of SPO (arXiv 2406.04314): from one noisy image several steps are tried; the best and the worst
//! become a pair, and one of them at random is taken.

use super::chain::{Chain, ImageKey};
use super::items::{Item, Pool};
use super::rater::Rater;
use crate::Result;
use crate::diffusion::sampler::expect_clean;
use crate::generate::ImageNoise;
use crate::objective::Candidates;
use crate::params::ParamSet;
use crate::pipeline::sampling::Guided;
use crate::pipeline::{Draw, Embedding};
use crate::rng::{Purpose, Stream};
use crate::train::engine::Engine;
use crate::train::pictures::WithWeights;

/// What a round is made with.
pub struct Trial<'a> {
    /// How images are made.
    pub chain: &'a Chain<'a>,
    /// How many steps are tried.
    pub candidates: Candidates,
    /// At which steps of the trajectory.
    pub at: &'a [usize],
    /// Texts of the prompts, for the reward.
    pub text: &'a dyn Fn(usize) -> &'a str,
}

impl Trial<'_> {
    /// Images made at once: every one takes as many rows as there are candidates.
    pub fn at_once(&self, engine: &Engine) -> usize {
        (self.chain.at_once(engine) / self.candidates.number).max(1)
    }

    /// Makes the images of `keys`, adds what is learnt from to `pool` and `items`, and returns the images' rewards.
    ///
    /// # Errors
    /// A network fails.
    pub fn run(
        &self,
        engine: &mut Engine,
        weights: &ParamSet,
        keys: &[ImageKey],
        rater: &mut Rater,
        (pool, items): (&mut Pool, &mut Vec<Item>),
    ) -> Result<Vec<f64>> {
        let (chain, number) = (self.chain, self.candidates.number);
        let shape = engine.geometry().latent;
        let len = shape.iter().product::<usize>();
        // Every image has as many rows as candidates throughout; while one step is taken they are alike.
        let rows: Vec<ImageKey> = keys
            .iter()
            .flat_map(|key| std::iter::repeat_n(*key, number))
            .collect();
        let prompts: Vec<&Embedding> = rows.iter().map(|key| &chain.embeddings[&key.prompt]).collect();
        let texts: Vec<&str> = rows.iter().map(|key| (self.text)(key.prompt)).collect();
        let mut noise = Noises::new(chain, keys, number, len);
        let mut latents = noise.draw(Some(Draw::Initial));
        let mut denoiser = WithWeights::new(engine, weights);
        let mut guided = Guided::new(&mut denoiser, chain.guidance, &prompts, chain.negative);
        let mut prediction = guided.predict(&latents, f64::from(chain.steps[0].timestep.0))?;
        for (index, step) in chain.steps.iter().enumerate() {
            let tries = self.at.contains(&index) && step.is_random();
            let before = latents.clone();
            let fresh = match (step.is_random(), tries) {
                (false, _) => vec![0.0; latents.len()],
                (true, false) => noise.draw(Some(Draw::Step(index))),
                (true, true) => noise.draw(None),
            };
            step.advance(&prediction, &fresh, &mut latents);
            // What each candidate leads to: the clean latents that the policy expects of it, or it is clean itself.
            let mut clean = latents.clone();
            if let Some(next) = chain.steps.get(index + 1) {
                prediction = guided.predict(&latents, f64::from(next.timestep.0))?;
                expect_clean(chain.schedule, next.timestep, &prediction, &mut clean);
            }
            if tries {
                let rewards = rater.rate(&chunks(&clean, len), &texts, shape)?;
                self.keep(
                    index,
                    &rows,
                    (&before, &latents),
                    &rewards,
                    (&mut *pool, &mut *items),
                );
                noise.choose(&mut [&mut latents, &mut prediction]);
            }
        }
        let finals: Vec<&[f32]> = latents
            .chunks_exact(number * len)
            .map(|image| &image[..len])
            .collect();
        let texts: Vec<&str> = texts.iter().step_by(number).copied().collect();
        rater.rate(&finals, &texts, shape)
    }

    /// Notes the best and the worst candidate of every image, unless all are alike.
    fn keep(
        &self,
        step: usize,
        rows: &[ImageKey],
        (before, after): (&[f32], &[f32]),
        rewards: &[f64],
        (pool, items): (&mut Pool, &mut Vec<Item>),
    ) {
        let number = self.candidates.number;
        let len = before.len() / rows.len();
        let row = |values: &[f32], k: usize| values[k * len..(k + 1) * len].to_vec();
        for (image, rewards) in rewards.chunks_exact(number).enumerate() {
            let by_reward = |a: &usize, b: &usize| rewards[*a].total_cmp(&rewards[*b]);
            let (best, worst) = ((0..number).max_by(by_reward), (0..number).min_by(by_reward));
            let (Some(best), Some(worst)) = (best, worst) else {
                continue;
            };
            if rewards[best] == rewards[worst] {
                continue;
            }
            let first = image * number;
            let from = pool.add(row(before, first));
            let to = [best, worst].map(|k| pool.add(row(after, first + k)));
            items.push(Item {
                prompt: rows[first].prompt,
                step,
                from: [from; 2],
                to,
                old_error: 0.0,
                advantage: 0.0,
            });
        }
    }
}

fn chunks(values: &[f32], len: usize) -> Vec<&[f32]> {
    values.chunks_exact(len).collect()
}

/// Copies the first row of an image over its other ones.
fn repeat_first(rows: &mut [f32], len: usize) {
    let (first, others) = rows.split_at_mut(len);
    others
        .chunks_exact_mut(len)
        .for_each(|row| row.copy_from_slice(first));
}

/// The random numbers of images with several rows each.
struct Noises {
    /// Of images that take one step, as everywhere.
    images: Vec<ImageNoise>,
    /// Of steps that are tried, and of which one is taken.
    tried: Vec<Stream>,
    /// Rows of an image.
    number: usize,
    /// Values of a row.
    len: usize,
}

impl Noises {
    fn new(chain: &Chain<'_>, keys: &[ImageKey], number: usize, len: usize) -> Self {
        let tried = |key: &ImageKey| {
            let (prompt, image) = (key.prompt as u64, key.image as u64);
            chain.streams.image(Purpose::Candidates, prompt, image)
        };
        let image = |key: &ImageKey| ImageNoise::new(&chain.streams, key.prompt, key.image);
        Self {
            images: keys.iter().map(image).collect(),
            tried: keys.iter().map(tried).collect(),
            number,
            len,
        }
    }

    /// Normal numbers, the same for all rows of an image; or other ones for each where the step is tried.
    fn draw(&mut self, alike: Option<Draw>) -> Vec<f32> {
        let mut values = vec![0.0; self.images.len() * self.number * self.len];
        for (image, rows) in values.chunks_exact_mut(self.number * self.len).enumerate() {
            match alike {
                Some(draw) => {
                    self.images[image].fill(draw, &mut rows[..self.len]);
                    repeat_first(rows, self.len);
                }
                None => self.tried[image].fill_normal(rows),
            }
        }
        values
    }

    /// Takes one candidate of every image at random in all of `tables`.
    fn choose(&mut self, tables: &mut [&mut Vec<f32>]) {
        let (number, len) = (self.number, self.len);
        for (image, stream) in self.tried.iter_mut().enumerate() {
            let chosen = stream.below(number as u64) as usize;
            for table in tables.iter_mut() {
                let rows = &mut table[image * number * len..(image + 1) * number * len];
                rows.copy_within(chosen * len..(chosen + 1) * len, 0);
                repeat_first(rows, len);
            }
        }
    }
}
