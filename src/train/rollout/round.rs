//! A round: images of some prompts, what they are worth, and what is learnt from them.

use std::sync::atomic::Ordering;

use super::Rollouts;
use super::advantage;
use super::candidates::Trial;
use super::chain::{ImageKey, Trajectory};
use super::items::{Item, Pool, Rated, choose_steps, pairs_of};
use super::rater::Rater;
use super::value::States;
use crate::objective::{Baseline, Candidates, Experience};
use crate::params::ParamSet;
use crate::rng::{PairId, Purpose, Stream, Visit};
use crate::timestep::TimestepRule;
use crate::train::engine::Engine;
use crate::train::report::RoundReport;
use crate::train::state::State;
use crate::{Error, Result};

/// An image of a round, its latents in the pool.
struct Kept {
    prompt: usize,
    /// Where its latents are: before the first step and after each one, or those of the image alone.
    places: Vec<u32>,
    /// Of each step.
    errors: Vec<f32>,
    advantage: f64,
}

/// A round as it was made.
#[derive(Debug, Clone, Default)]
struct Made {
    pool: Pool,
    items: Vec<Item>,
    /// Of all images.
    rewards: Vec<f64>,
    /// Mean squared error of the value network.
    value_loss: Option<f64>,
}

impl<'a> Rollouts<'a> {
    /// One round: images, rewards, items. Nothing changes if it is interrupted.
    pub(super) fn make_round(&mut self, engine: &mut Engine, state: &State, pairs: usize) -> Result<()> {
        let round = self.state.round;
        let (prompts, images) = (self.buffer.prompts, self.config.images_per_prompt);
        let keys = self.prompts.round(round, prompts, images, &self.streams);
        self.encode(keys.iter().map(|key| key.prompt))?;
        // Rated images are those of the initial policy.
        let weights = if self.prompts.are_labelled() {
            &state.initial
        } else {
            &state.policy
        };
        let mut made = match self.experience {
            Experience::Candidates(_) => self.try_steps(engine, weights, &state.timestep_rule, &keys)?,
            _ => self.make_images(engine, weights, &state.timestep_rule, &keys)?,
        };
        let last = made.items.len() / pairs * pairs;
        if last == 0 && !made.items.is_empty() {
            // Fewer than a step takes: they are taken again.
            let few = made.items.clone();
            made.items.extend(few.iter().cycle().take(pairs - few.len()));
        } else {
            made.items.truncate(last);
        }
        self.report = Some(RoundReport::of(round + 1, &made.rewards, made.value_loss));
        self.pool = made.pool;
        self.state.first_id += self.state.items.len() as u64;
        self.state.items = made.items;
        self.state.taken = 0;
        self.state.round = round + 1;
        Ok(())
    }

    /// Tells how far a round is, and stops in its middle when asked to.
    pub(super) fn progress(&self, what: &str, images: usize) -> impl FnMut(usize) -> Result<()> + use<'a> {
        let mut job = self.console.job(what, images as u64);
        let stop = self.stop;
        move |done| {
            job.advance(done as u64, "images");
            match stop.load(Ordering::Relaxed) {
                true => Err(Error::Interrupted("stopped while images were made".into())),
                false => Ok(()),
            }
        }
    }

    /// Whole images, and what is learnt from them.
    fn make_images(
        &mut self,
        engine: &mut Engine,
        weights: &ParamSet,
        rule: &TimestepRule,
        keys: &[ImageKey],
    ) -> Result<Made> {
        let mut progress = self.progress("rollouts", keys.len());
        let mut rated = Vec::with_capacity(keys.len());
        let at_once = self.chain(&self.embeddings).at_once(engine);
        for part in keys.chunks(at_once) {
            let made = self.chain(&self.embeddings).sample(engine, weights, part)?;
            let latents: Vec<&[f32]> = made.iter().map(|trajectory| trajectory.image()).collect();
            let texts: Vec<&str> = part.iter().map(|key| self.prompts.text(key.prompt)).collect();
            let rewards = match &mut self.rater {
                Some(rater) => rater.rate(&latents, &texts, engine.geometry().latent)?,
                None => part.iter().filter_map(|key| self.prompts.label(*key)).collect(),
            };
            rated.extend(
                made.into_iter()
                    .zip(rewards)
                    .map(|(trajectory, reward)| Rated { trajectory, reward }),
            );
            progress(rated.len())?;
        }
        let mut made = self.items_of(rated, rule);
        if self.value.is_some() {
            self.expect_values(&mut made, engine.geometry().text[1])?;
        }
        Ok(made)
    }

    /// Turns a round's images into items, pass by pass.
    fn items_of(&mut self, rated: Vec<Rated>, rule: &TimestepRule) -> Made {
        let rewards: Vec<f64> = rated.iter().map(|image| image.reward).collect();
        let prompts: Vec<usize> = rated.iter().map(|image| image.trajectory.key.prompt).collect();
        let advantages = self.advantages(&prompts, &rewards);
        let mut pool = Pool::default();
        let images: Vec<Kept> = rated
            .into_iter()
            .zip(advantages)
            .map(|(image, advantage)| self.kept(image, advantage, &mut pool))
            .collect();
        let units: Vec<[usize; 2]> = match self.experience {
            Experience::Trajectories(_) => (0..images.len()).map(|image| [image; 2]).collect(),
            _ => self.pairs(&prompts, &rewards),
        };
        let mut items = Vec::new();
        for pass in 0..self.buffer.passes {
            let mut of_pass = Vec::new();
            for (unit, sides) in units.iter().enumerate() {
                let visit = Visit((pass * units.len() + unit) as u64);
                let round = PairId(self.state.round);
                let mut stream = self.streams.pair(Purpose::BufferOrder, round, visit);
                of_pass.extend(self.items_of_unit(sides.map(|image| &images[image]), rule, &mut stream));
            }
            self.shuffle(pass, &mut of_pass);
            items.extend(of_pass);
        }
        Made {
            pool,
            items,
            rewards,
            value_loss: None,
        }
    }

    /// What images are worth to objectives on single steps, before a value network's estimate is taken off.
    fn advantages(&mut self, prompts: &[usize], rewards: &[f64]) -> Vec<f64> {
        match self.experience {
            Experience::Trajectories(Baseline::Rewards) => {
                advantage::advantages(self.buffer, &mut self.state.history, prompts, rewards)
            }
            Experience::Trajectories(Baseline::Value) if self.buffer.standardize => {
                advantage::standardized(&mut self.state.first_rewards, rewards)
            }
            _ => rewards.to_vec(),
        }
    }

    /// Puts the latents of an image that are learnt from into the pool.
    fn kept(&self, image: Rated, advantage: f64, pool: &mut Pool) -> Kept {
        let Trajectory {
            key,
            mut latents,
            errors,
        } = image.trajectory;
        if !self.experience.is_steps() {
            latents.drain(..latents.len() - 1);
        }
        Kept {
            prompt: key.prompt,
            places: latents.into_iter().map(|latents| pool.add(latents)).collect(),
            errors,
            advantage,
        }
    }

    /// The items of one image, or of one pair of images: some of their steps, or draws of them as a whole.
    fn items_of_unit(&self, sides: [&Kept; 2], rule: &TimestepRule, stream: &mut Stream) -> Vec<Item> {
        let item = |step: usize, from: [u32; 2], to: [u32; 2]| Item {
            prompt: sides[0].prompt,
            step,
            from,
            to,
            old_error: sides[0].errors.get(step).map_or(0.0, |error| f64::from(*error)),
            advantage: sides[0].advantage,
        };
        if !self.experience.is_steps() {
            let draws = self.buffer.steps_per_image.unwrap_or(self.steps.len());
            let whole = sides.map(|image| image.places[0]);
            return (0..draws).map(|draw| item(draw, whole, whole)).collect();
        }
        let n = self.buffer.steps_per_image;
        choose_steps(&self.steps, &self.random_steps(), n, rule, stream)
            .into_iter()
            .map(|k| {
                let [from, to] = [k, k + 1].map(|at| sides.map(|image| image.places[at]));
                item(k, from, to)
            })
            .collect()
    }

    /// The stream of a choice that is made for a whole round.
    fn stream(&self, what: &str) -> Stream {
        self.streams.named(
            Purpose::BufferOrder,
            &format!("round {} {what}", self.state.round),
        )
    }

    /// Puts the items of a pass in their order.
    fn shuffle(&self, pass: usize, items: &mut [Item]) {
        self.stream(&format!("pass {pass}")).shuffle(items);
    }

    /// Positions of the steps that have a density.
    fn random_steps(&self) -> Vec<usize> {
        (0..self.steps.len())
            .filter(|k| self.steps[*k].is_random())
            .collect()
    }

    /// Pairs of a round's images, as positions; images of one prompt lie beside each other.
    fn pairs(&self, prompts: &[usize], rewards: &[f64]) -> Vec<[usize; 2]> {
        let mut pairs = Vec::new();
        let mut first = 0;
        for group in prompts.chunk_by(|a, b| a == b) {
            let own = &rewards[first..first + group.len()];
            let of_group = pairs_of(own, self.buffer.pairs).into_iter();
            pairs.extend(of_group.map(|(w, l)| [first + w, first + l]));
            first += group.len();
        }
        pairs
    }

    /// Takes what the value network expects off the rewards that items have as advantages, and fits it to them.
    fn expect_values(&mut self, made: &mut Made, text: usize) -> Result<()> {
        let mut states = States::default();
        for item in &made.items {
            states.inputs.extend_from_slice(made.pool.get(item.from[0]));
            let embedding = &self.embeddings[&item.prompt];
            let mean = embedding.hidden.mean_axis(ndarray::Axis(0));
            let mean = mean.expect("a prompt has tokens, if only the end");
            debug_assert_eq!(mean.len(), text);
            states.inputs.extend(mean.iter());
            states.steps.push(item.step as i64);
            states.rewards.push(item.advantage as f32);
        }
        let Some(value) = &mut self.value else {
            return Ok(());
        };
        let round = self.state.round;
        made.value_loss = Some(value.fit(&states, round, &self.streams)?);
        for (item, expected) in made.items.iter_mut().zip(value.expect(&states)?) {
            item.advantage -= expected;
        }
        Ok(())
    }

    /// Images whose steps are tried several ways.
    fn try_steps(
        &mut self,
        engine: &mut Engine,
        weights: &ParamSet,
        rule: &TimestepRule,
        keys: &[ImageKey],
    ) -> Result<Made> {
        let Experience::Candidates(candidates) = self.experience else {
            unreachable!("only such objectives try steps");
        };
        let mut eligible = self.random_steps();
        eligible.retain(|step| *step >= candidates.skip);
        let n = self.buffer.steps_per_image;
        let at = choose_steps(&self.steps, &eligible, n, rule, &mut self.stream("steps"));
        // Moved out for the time, so that it and the chain can be borrowed side by side.
        let Some(mut rater) = self.rater.take() else {
            unreachable!("labels are refused with this objective");
        };
        let made = self.tried(engine, weights, keys, (candidates, &at), &mut rater);
        self.rater = Some(rater);
        let mut made = made?;
        let tried = made.items;
        made.items = Vec::with_capacity(tried.len() * self.buffer.passes);
        for pass in 0..self.buffer.passes {
            let mut of_pass = tried.clone();
            self.shuffle(pass, &mut of_pass);
            made.items.extend(of_pass);
        }
        Ok(made)
    }

    /// Images whose steps `at` are tried several ways, part by part.
    fn tried(
        &self,
        engine: &mut Engine,
        weights: &ParamSet,
        keys: &[ImageKey],
        (candidates, at): (Candidates, &[usize]),
        rater: &mut Rater,
    ) -> Result<Made> {
        let mut progress = self.progress("rollouts", keys.len());
        let mut made = Made::default();
        let chain = self.chain(&self.embeddings);
        let trial = Trial {
            chain: &chain,
            candidates,
            at,
            text: &|prompt| self.prompts.text(prompt),
        };
        for part in keys.chunks(trial.at_once(engine)) {
            let tables = (&mut made.pool, &mut made.items);
            made.rewards
                .extend(trial.run(engine, weights, part, rater, tables)?);
            progress(made.rewards.len())?;
        }
        Ok(made)
    }
}
