//! Online experience: images that the policy makes as it learns, rated, and turned into what a step is trained on.
//!
//! ```text
//! prompts ─► chain (images with all their steps) ─► rater ─► items (steps or images, in pairs or alone) ─► batches
//!    ▲                                                                                                        │
//!    └──────────────────────────── next round, when all items were taken ◄────────────────────────────────────┘
//! ```
//!
//! A round's latents are kept until the next one is made, and are part of checkpoints; rounds themselves depend on the
//! policy, the seed and their number alone. So a run that is interrupted anywhere goes on bit for bit.

mod advantage;
mod candidates;
mod chain;
mod items;
mod prompts;
mod rater;
mod state;
mod value;

pub use state::RolloutState;

use std::sync::atomic::{AtomicBool, Ordering};

use self::candidates::Trial;
use self::chain::{Chain, Embeddings, ImageKey};
use self::items::{Item, Pool, Rated, choose_steps, pairs_of};
use self::prompts::Prompts;
use self::rater::Rater;
use self::value::{States, ValueNetwork};
use super::draw::{Content, DrawnPair, StepSample};
use super::engine::Engine;
use super::model::Model;
use super::prepare;
use super::report::RoundReport;
use super::source::Text;
use super::state::State;
use crate::config::Config;
use crate::config::rollout::{BufferConfig, RolloutConfig};
use crate::diffusion::sampler::{GaussianStep, SamplerConfig, gaussian_steps};
use crate::diffusion::{NoiseSchedule, SamplerKind, Timestep};
use crate::objective::{Baseline, Experience, Needs};
use crate::params::ParamSet;
use crate::pipeline::{Adapters, Embedding, Guidance, PromptTokens, TextEncoders, encode_negative};
use crate::progress::Console;
use crate::rng::{PairId, Purpose, Stream, Streams, Visit};
use crate::timestep::TimestepRule;
use crate::{Error, Result};

/// Rounds in a row that may give nothing to learn from, all their rewards being alike.
const EMPTY_ROUNDS: u64 = 5;

/// Prompts that are encoded at once.
const PROMPTS_AT_ONCE: usize = 8;

/// Makes rounds and hands out what is learnt from them.
pub struct Rollouts<'a> {
    config: &'a RolloutConfig,
    buffer: &'a BufferConfig,
    experience: Experience,
    schedule: &'a NoiseSchedule,
    steps: Vec<GaussianStep>,
    prompts: Prompts,
    encoders: TextEncoders,
    negative: Embedding,
    rater: Option<Rater>,
    value: Option<ValueNetwork>,
    /// Of what a run draws.
    streams: Streams,
    /// Of the images' noise.
    image_streams: Streams,
    /// Of the present round's prompts.
    embeddings: Embeddings,
    pool: Pool,
    state: RolloutState,
    /// Of the round that was just made, until it is reported.
    report: Option<RoundReport>,
    console: Console,
    stop: &'a AtomicBool,
}

/// What a step sees of the run.
pub struct Policies<'a> {
    /// The sessions.
    pub engine: &'a mut Engine,
    /// The weights and rules.
    pub state: &'a State,
}

impl<'a> Rollouts<'a> {
    /// Reads the prompts and loads what rates the images. `captions` are those of the training pairs.
    ///
    /// # Errors
    /// A file of prompts or labels, the reward model, or a part of the pipeline cannot be used; a round could not fill a step.
    pub fn prepare(
        config: &'a Config,
        model: &'a Model,
        needs: Needs,
        captions: impl FnOnce() -> Vec<String>,
        (console, stop): (Console, &'a AtomicBool),
    ) -> Result<Self> {
        let (rollout, buffer) = (&config.rollout, &config.buffer);
        let session = prepare::session_options(config);
        let prompts = Prompts::read(rollout, captions)?;
        let sampler = SamplerConfig::from_file(&model.folder.scheduler_config()?)?
            .with_kind(SamplerKind::Ddim)
            .with_eta(rollout.eta);
        let steps = gaussian_steps(&sampler, &model.schedule, rollout.steps)?;
        let mut encoders = TextEncoders::load(&model.folder, &session, 0, &Adapters::default())?;
        let negative = encode_negative(&mut encoders, &model.folder, rollout.negative.as_deref())?;
        let rater = match prompts.are_labelled() {
            true => None,
            false => Some(Rater::load(&model.folder, &rollout.reward, &session)?),
        };
        let streams = Streams::new(config.seed);
        Ok(Self {
            config: rollout,
            buffer,
            experience: needs.experience,
            schedule: &model.schedule,
            steps,
            image_streams: prompts.seed().map_or(streams, Streams::new),
            prompts,
            encoders,
            negative,
            rater,
            value: None,
            streams,
            embeddings: Embeddings::new(),
            pool: Pool::default(),
            state: RolloutState::default(),
            report: None,
            console,
            stop,
        })
    }

    /// Adds the value network, where the objective uses one.
    ///
    /// # Errors
    /// ONNX Runtime does not load it.
    pub fn with_value(mut self, config: &Config, engine: &Engine) -> Result<Self> {
        if self.experience == Experience::Trajectories(Baseline::Value) {
            let (latent, text) = (engine.geometry().latent_len(), engine.geometry().text[1]);
            let session = prepare::session_options(config);
            self.value = Some(ValueNetwork::new(
                latent,
                text,
                self.steps.len(),
                &self.streams,
                &session,
            )?);
        }
        Ok(self)
    }

    /// Conditioning of what guidance leads away from.
    pub fn negative(&self) -> Text {
        Text::from(&self.negative)
    }

    /// Hash of everything that determines rounds besides configuration and model, in hexadecimal digits.
    ///
    /// # Errors
    /// A file of the reward model cannot be read.
    pub fn hash(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        self.prompts.hash(&mut hasher);
        if let Some(rater) = &self.rater {
            hasher.update(rater.hash()?.as_bytes());
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// The report of a round that was made since the last call.
    pub fn take_report(&mut self) -> Option<RoundReport> {
        self.report.take()
    }

    /// The next `pairs` pairs or single samples; makes a round where none are left.
    ///
    /// # Errors
    /// A network fails; rewards are all alike round after round; [`Error::Interrupted`] in the middle of a round.
    pub fn next_batch(&mut self, run: Policies<'_>, pairs: usize) -> Result<Vec<DrawnPair>> {
        self.fill(run.engine, run.state, pairs)?;
        let batch = self.drawn(&run.state.timestep_rule, pairs);
        self.state.taken += pairs;
        Ok(batch)
    }

    /// What [`Rollouts::next_batch`] will give.
    ///
    /// # Errors
    /// As [`Rollouts::next_batch`].
    pub fn peek(&mut self, run: Policies<'_>, pairs: usize) -> Result<Vec<DrawnPair>> {
        self.fill(run.engine, run.state, pairs)?;
        Ok(self.drawn(&run.state.timestep_rule, pairs))
    }

    /// Makes rounds until there are items to take.
    fn fill(&mut self, engine: &mut Engine, state: &State, pairs: usize) -> Result<()> {
        let first = self.state.round;
        while self.state.taken + pairs > self.state.items.len() {
            if self.state.round == first + EMPTY_ROUNDS {
                return Err(Error::bad(
                    format!("reward {}", self.config.reward),
                    format!("gave the images of each prompt equal rewards, {EMPTY_ROUNDS} rounds in a row"),
                    "Use a reward that tells images apart, more images per prompt, or other prompts.",
                ));
            }
            self.make_round(engine, state, pairs)?;
        }
        Ok(())
    }

    fn chain(&self) -> Chain<'_> {
        Chain {
            steps: &self.steps,
            guidance: Guidance::new(self.config.guidance),
            negative: &self.negative,
            embeddings: &self.embeddings,
            streams: self.image_streams,
            schedule: self.schedule,
        }
    }

    /// One round: images, rewards, items. Nothing changes if it is interrupted.
    fn make_round(&mut self, engine: &mut Engine, state: &State, pairs: usize) -> Result<()> {
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

    /// Encodes the prompts of a round; forgets those of the one before.
    fn encode(&mut self, prompts: impl Iterator<Item = usize>) -> Result<()> {
        let mut wanted: Vec<usize> = prompts.collect();
        wanted.sort_unstable();
        wanted.dedup();
        self.embeddings.clear();
        for part in wanted.chunks(PROMPTS_AT_ONCE) {
            let tokens: Vec<PromptTokens> = part
                .iter()
                .map(|prompt| self.encoders.tokenize(self.prompts.text(*prompt)))
                .collect::<Result<_>>()?;
            let found = self.encoders.encode(&tokens.iter().collect::<Vec<_>>())?;
            self.embeddings.extend(part.iter().copied().zip(found));
        }
        Ok(())
    }

    /// Tells how far a round is, and stops in its middle when asked to.
    fn progress(&self, images: usize) -> impl FnMut(usize) -> Result<()> + use<'a> {
        let mut job = self.console.job("rollouts", images as u64);
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
        let mut progress = self.progress(keys.len());
        let mut rated = Vec::with_capacity(keys.len());
        let at_once = self.chain().at_once(engine);
        for part in keys.chunks(at_once) {
            let made = self.chain().sample(engine, weights, part)?;
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
        let keys: Vec<ImageKey> = rated.iter().map(|image| image.trajectory.key).collect();
        let rewards: Vec<f64> = rated.iter().map(|image| image.reward).collect();
        let prompts: Vec<usize> = keys.iter().map(|key| key.prompt).collect();
        let advantages = match self.experience {
            Experience::Trajectories(Baseline::Rewards) => {
                advantage::advantages(self.buffer, &mut self.state.history, &prompts, &rewards)
            }
            // What the value network expects is taken off later.
            Experience::Trajectories(Baseline::Value) if self.buffer.standardize => {
                advantage::standardized(&mut self.state.first_rewards, &rewards)
            }
            _ => rewards.clone(),
        };
        let mut pool = Pool::default();
        let keeps_steps = self.experience.is_steps();
        let errors: Vec<Vec<f32>> = rated
            .iter()
            .map(|image| image.trajectory.errors.clone())
            .collect();
        let places: Vec<Vec<u32>> = rated
            .into_iter()
            .map(|image| {
                let mut latents = image.trajectory.latents;
                let kept = if keeps_steps { 0 } else { latents.len() - 1 };
                latents.drain(kept..).map(|latents| pool.add(latents)).collect()
            })
            .collect();
        let units: Vec<(usize, usize)> = match self.experience {
            Experience::Trajectories(_) => (0..keys.len()).map(|image| (image, image)).collect(),
            _ => self.pairs(&prompts, &rewards),
        };
        let mut items = Vec::new();
        for pass in 0..self.buffer.passes {
            let mut of_pass = Vec::new();
            for (unit, (a, b)) in units.iter().enumerate() {
                let visit = Visit((pass * units.len() + unit) as u64);
                let mut stream = self
                    .streams
                    .pair(Purpose::BufferOrder, PairId(self.state.round), visit);
                let place = |image: usize, k: usize| places[image][k];
                let item = |step: usize, from: [u32; 2], to: [u32; 2]| Item {
                    prompt: prompts[*a],
                    step,
                    from,
                    to,
                    old_error: errors[*a].get(step).map_or(0.0, |error| f64::from(*error)),
                    advantage: advantages[*a],
                };
                if keeps_steps {
                    let n = self.buffer.steps_per_image;
                    let chosen = choose_steps(&self.steps, &self.random_steps(), n, rule, &mut stream);
                    of_pass.extend(chosen.into_iter().map(|k| {
                        item(
                            k,
                            [place(*a, k), place(*b, k)],
                            [place(*a, k + 1), place(*b, k + 1)],
                        )
                    }));
                } else {
                    let draws = self.buffer.steps_per_image.unwrap_or(self.steps.len());
                    let both = [place(*a, 0), place(*b, 0)];
                    of_pass.extend((0..draws).map(|draw| item(draw, both, both)));
                }
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
    fn pairs(&self, prompts: &[usize], rewards: &[f64]) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        let mut first = 0;
        for group in prompts.chunk_by(|a, b| a == b) {
            let own = &rewards[first..first + group.len()];
            let of_group = pairs_of(own, self.buffer.pairs).into_iter();
            pairs.extend(of_group.map(|(w, l)| (first + w, first + l)));
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
        let mut progress = self.progress(keys.len());
        let mut made = Made::default();
        // Moved out for the time, so that it and the chain can be borrowed side by side.
        let Some(mut rater) = self.rater.take() else {
            unreachable!("labels are refused with this objective");
        };
        let chain = self.chain();
        let trial = Trial {
            chain: &chain,
            candidates,
            at: &at,
            text: &|prompt| self.prompts.text(prompt),
        };
        let mut result = Ok(());
        for part in keys.chunks(trial.at_once(engine)) {
            let tables = (&mut made.pool, &mut made.items);
            match trial.run(engine, weights, part, &mut rater, tables) {
                Ok(rewards) => made.rewards.extend(rewards),
                Err(error) => result = Err(error),
            }
            result = result.and_then(|()| progress(made.rewards.len()));
            if result.is_err() {
                break;
            }
        }
        self.rater = Some(rater);
        result?;
        let tried = made.items;
        made.items = Vec::with_capacity(tried.len() * self.buffer.passes);
        for pass in 0..self.buffer.passes {
            let mut of_pass = tried.clone();
            self.shuffle(pass, &mut of_pass);
            made.items.extend(of_pass);
        }
        Ok(made)
    }

    /// The next items as a step takes them.
    fn drawn(&self, rule: &TimestepRule, pairs: usize) -> Vec<DrawnPair> {
        let taken = self.state.taken;
        let items = &self.state.items[taken..taken + pairs];
        items
            .iter()
            .enumerate()
            .map(|(i, item)| {
                let id = PairId(self.state.first_id + (taken + i) as u64);
                match self.experience.is_steps() {
                    true => self.step_pair(id, item),
                    false => self.image_pair(id, item, rule),
                }
            })
            .collect()
    }

    fn step_pair(&self, id: PairId, item: &Item) -> DrawnPair {
        let step = &self.steps[item.step];
        let single = matches!(self.experience, Experience::Trajectories(_));
        let sides = if single { 1 } else { 2 };
        let sides = (0..sides).map(|side| {
            let (noisy, next) = (self.pool.get(item.from[side]), self.pool.get(item.to[side]));
            let mut target = vec![0.0; noisy.len()];
            step.target(noisy, next, &mut target);
            StepSample {
                noisy: noisy.to_vec(),
                target,
            }
        });
        let content = Content::Steps {
            sides: sides.collect(),
            precision: step.precision() as f32,
            old_error: item.old_error as f32,
            advantage: item.advantage as f32,
        };
        self.pair(id, item, step.timestep, content)
    }

    fn image_pair(&self, id: PairId, item: &Item, rule: &TimestepRule) -> DrawnPair {
        let stream = |purpose| self.streams.pair(purpose, id, Visit(0));
        let latents = item.from.map(|place| self.pool.get(place).to_vec());
        let mut noise = vec![0.0; latents[0].len()];
        stream(Purpose::Noise).fill_normal(&mut noise);
        let timestep = rule.sample(&mut stream(Purpose::Timestep));
        self.pair(id, item, timestep, Content::Images { latents, noise })
    }

    /// A pair with a winner.
    fn pair(&self, id: PairId, item: &Item, timestep: Timestep, content: Content) -> DrawnPair {
        DrawnPair {
            id,
            timestep,
            weight: 1.0,
            label: 1.0,
            score_gap: None,
            content,
            text: Text::from(&self.embeddings[&item.prompt]),
        }
    }

    /// Everything that moves, for a checkpoint.
    ///
    /// # Errors
    /// Two tensors have one name, which they have not.
    pub fn save(&self, engine: &Engine) -> Result<(RolloutState, ParamSet)> {
        let value = self.value.as_ref().map(ValueNetwork::state);
        state::pack(&self.state, &self.pool, engine.geometry().latent, value)
    }

    /// Goes on from a checkpoint.
    ///
    /// # Errors
    /// It is of another run, or a prompt cannot be encoded.
    pub fn restore(&mut self, saved: RolloutState, tensors: &ParamSet) -> Result<()> {
        let unpacked = state::unpack(saved, tensors, self.value.as_ref().map(ValueNetwork::layout))?;
        if let (Some(network), Some(value)) = (&mut self.value, unpacked.value) {
            network.restore(value)?;
        }
        self.pool = unpacked.pool;
        self.state = unpacked.state;
        self.report = None;
        let prompts: Vec<usize> = self.state.items.iter().map(|item| item.prompt).collect();
        self.encode(prompts.into_iter())
    }
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
