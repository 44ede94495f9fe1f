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
        let chain = self.chain;
        let (number, shape) = (self.candidates.number, engine.geometry().latent);
        let mut noises: Vec<ImageNoise> = keys
            .iter()
            .map(|key| ImageNoise::new(&chain.streams, key.prompt, key.image))
            .collect();
        let mut tried: Vec<Stream> = keys
            .iter()
            .map(|key| {
                chain
                    .streams
                    .image(Purpose::Candidates, key.prompt as u64, key.image as u64)
            })
            .collect();
        // Every image has as many rows as candidates throughout; while one step is taken they are alike.
        let rows: Vec<ImageKey> = keys
            .iter()
            .flat_map(|key| std::iter::repeat_n(*key, number))
            .collect();
        let prompts: Vec<&Embedding> = rows.iter().map(|key| &chain.embeddings[&key.prompt]).collect();
        let texts: Vec<&str> = rows.iter().map(|key| (self.text)(key.prompt)).collect();
        let len = shape.iter().product::<usize>();
        let mut latents = vec![0.0; rows.len() * len];
        for (image, slot) in latents.chunks_exact_mut(number * len).enumerate() {
            noises[image].fill(Draw::Initial, &mut slot[..len]);
            repeat_first(slot, len);
        }
        let mut denoiser = WithWeights::new(engine, weights);
        let mut guided = Guided::new(&mut denoiser, chain.guidance, &prompts, chain.negative);
        let mut prediction = guided.predict(&latents, f64::from(chain.steps[0].timestep.0))?;
        for (index, step) in chain.steps.iter().enumerate() {
            let tries = self.at.contains(&index) && step.is_random();
            let before = latents.clone();
            let mut noise = vec![0.0; latents.len()];
            for (image, slot) in noise.chunks_exact_mut(number * len).enumerate() {
                match tries {
                    true => tried[image].fill_normal(slot),
                    false if step.is_random() => {
                        noises[image].fill(Draw::Step(index), &mut slot[..len]);
                        repeat_first(slot, len);
                    }
                    false => {}
                }
            }
            step.advance(&prediction, &noise, &mut latents);
            let Some(next) = chain.steps.get(index + 1) else {
                if tries {
                    let rewards = rater.rate(&chunks(&latents, len), &texts, shape)?;
                    self.keep(
                        index,
                        &rows,
                        (&before, &latents),
                        &rewards,
                        (&mut *pool, &mut *items),
                    );
                    choose(&mut tried, number, len, &mut [&mut latents]);
                }
                break;
            };
            prediction = guided.predict(&latents, f64::from(next.timestep.0))?;
            if tries {
                let mut clean = latents.clone();
                expect_clean(chain.schedule, next.timestep, &prediction, &mut clean);
                let rewards = rater.rate(&chunks(&clean, len), &texts, shape)?;
                self.keep(
                    index,
                    &rows,
                    (&before, &latents),
                    &rewards,
                    (&mut *pool, &mut *items),
                );
                choose(&mut tried, number, len, &mut [&mut latents, &mut prediction]);
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

/// Takes one candidate of every image at random in all of `tables`.
fn choose(streams: &mut [Stream], number: usize, len: usize, tables: &mut [&mut Vec<f32>]) {
    for (image, stream) in streams.iter_mut().enumerate() {
        let chosen = stream.below(number as u64) as usize;
        for table in tables.iter_mut() {
            let rows = &mut table[image * number * len..(image + 1) * number * len];
            rows.copy_within(chosen * len..(chosen + 1) * len, 0);
            repeat_first(rows, len);
        }
    }
}
