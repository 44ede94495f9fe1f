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
mod labels;
mod own;
mod prompts;
mod rater;
mod round;
mod state;
mod value;

pub use state::RolloutState;

use std::sync::atomic::AtomicBool;

use self::chain::{Chain, Embeddings};
use self::items::{Item, Pool};
use self::labels::Labels;
use self::prompts::Prompts;
use self::rater::Rater;
use self::value::ValueNetwork;
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
use crate::pipeline::denoiser::Geometry;
use crate::pipeline::{
    Adapters, Embedding, Guidance, PromptTokens, Sizes, TextEncoders, VaePrecision, encode_negative,
};
use crate::progress::Console;
use crate::rng::{PairId, Purpose, Streams, Visit};
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
    /// A file of prompts or labels, the reward model, or a part of the pipeline cannot be used.
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
        Labels::check_settings(rollout, &model.folder)?;
        let sampler = SamplerConfig::from_file(&model.folder.scheduler_config()?)?
            .with_kind(SamplerKind::Ddim)
            .with_eta(rollout.eta);
        let steps = gaussian_steps(&sampler, &model.schedule, rollout.steps)?;
        let mut encoders = TextEncoders::load(&model.folder, &session, 0, &Adapters::default())?;
        let negative = encode_negative(&mut encoders, &model.folder, rollout.negative.as_deref())?;
        let rater = match prompts.are_labelled() {
            true => None,
            false => {
                let vae = VaePrecision::of(config.runtime.vae_fp32);
                Some(Rater::load(&model.folder, &rollout.reward, &session, vae)?)
            }
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

    /// Shapes of one sample of images that are `resolution` pixels high and wide.
    ///
    /// # Errors
    /// The model cannot make such images.
    pub fn geometry(&self, model: &Model, resolution: u32) -> Result<Geometry> {
        let sizes = Sizes::read(&model.folder, &model.denoiser)?;
        let wanted = [Some(resolution as usize); 2];
        let size = sizes.image(wanted, ["data.resolution"; 2])?;
        Ok(sizes.sample(size, &self.negative))
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
        let batch = self.drawn(&run.state.timestep_rule, run.engine.geometry(), pairs);
        self.state.taken += pairs;
        Ok(batch)
    }

    /// What [`Rollouts::next_batch`] will give.
    ///
    /// # Errors
    /// As [`Rollouts::next_batch`].
    pub fn peek(&mut self, run: Policies<'_>, pairs: usize) -> Result<Vec<DrawnPair>> {
        self.fill(run.engine, run.state, pairs)?;
        Ok(self.drawn(&run.state.timestep_rule, run.engine.geometry(), pairs))
    }

    /// Makes rounds until there are items to take.
    fn fill(&mut self, engine: &mut Engine, state: &State, pairs: usize) -> Result<()> {
        let first = self.state.round;
        while self.state.taken + pairs > self.state.items.len() {
            if self.state.round == first + EMPTY_ROUNDS {
                let source = match &self.config.labels {
                    Some(path) => path.display().to_string(),
                    None => format!("reward {}", self.config.reward),
                };
                return Err(Error::bad(
                    source,
                    format!("gave the images of each prompt equal rewards, {EMPTY_ROUNDS} rounds in a row"),
                    "Use ratings that tell images apart, more images per prompt, or other prompts.",
                ));
            }
            self.make_round(engine, state, pairs)?;
        }
        Ok(())
    }

    /// Makes images for the prompts of `embeddings`.
    fn chain<'s>(&'s self, embeddings: &'s Embeddings) -> Chain<'s> {
        Chain {
            steps: &self.steps,
            guidance: Guidance::new(self.config.guidance),
            negative: &self.negative,
            embeddings,
            streams: self.image_streams,
            schedule: self.schedule,
        }
    }

    /// Encodes the prompts of a round; forgets those of the one before.
    fn encode(&mut self, prompts: impl Iterator<Item = usize>) -> Result<()> {
        self.embeddings.clear();
        self.embeddings = self.encoded(prompts)?;
        Ok(())
    }

    /// What prompts condition the denoiser on.
    fn encoded(&mut self, prompts: impl Iterator<Item = usize>) -> Result<Embeddings> {
        let mut wanted: Vec<usize> = prompts.collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut embeddings = Embeddings::new();
        for part in wanted.chunks(PROMPTS_AT_ONCE) {
            let tokens: Vec<PromptTokens> = part
                .iter()
                .map(|prompt| self.encoders.tokenize(self.prompts.text(*prompt)))
                .collect::<Result<_>>()?;
            let found = self.encoders.encode(&tokens.iter().collect::<Vec<_>>())?;
            embeddings.extend(part.iter().copied().zip(found));
        }
        Ok(embeddings)
    }

    /// The next items as a step takes them.
    fn drawn(&self, rule: &TimestepRule, geometry: Geometry, pairs: usize) -> Vec<DrawnPair> {
        let taken = self.state.taken;
        let items = &self.state.items[taken..taken + pairs];
        items
            .iter()
            .enumerate()
            .map(|(i, item)| {
                let id = PairId(self.state.first_id + (taken + i) as u64);
                match self.experience.is_steps() {
                    true => self.step_pair(id, item),
                    false => self.image_pair(id, item, rule, geometry),
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

    fn image_pair(&self, id: PairId, item: &Item, rule: &TimestepRule, geometry: Geometry) -> DrawnPair {
        let stream = |purpose| self.streams.pair(purpose, id, Visit(0));
        let latents = item.from.map(|place| self.pool.get(place).to_vec());
        let mut noise = vec![0.0; latents[0].len()];
        stream(Purpose::Noise).fill_normal(&mut noise);
        let timestep = rule.sample(&mut stream(Purpose::Timestep));
        let content = Content::Images {
            latents,
            noise,
            size: geometry.latent_size(),
            time_ids: [geometry.picture_ids(); 2],
        };
        self.pair(id, item, timestep, content)
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
