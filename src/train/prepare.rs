//! Everything a run needs before its first step: model, encoded pairs, sessions.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use super::encoders::WithinBudget;
use super::engine::{Engine, EngineOptions};
use super::model::Model;
use super::source::{ReadyPair, Source, Text};
use super::{initial, on_device};
use crate::config::adapter::AdapterConfig;
use crate::config::data::DataKind;
use crate::config::objective::ObjectiveConfig;
use crate::config::{Config, TrainPlan};
use crate::data::image::{Size, View};
use crate::data::{self, Buckets, Dataset, EncodeOptions, OnnxEncoders, PairRow, Part, Stage};
use crate::objective::Objective;
use crate::onnx::SHAPE_ONLY;
use crate::params::ParamSet;
use crate::pipeline::denoiser::{Added, Geometry};
use crate::pipeline::{VaePrecision, geometry};
use crate::progress::Console;
use crate::reference::ReferenceRule;
use crate::rng::{PairId, Purpose, Streams, Visit};
use crate::runtime::{Arena, ExecutionProvider, SessionOptions};
use crate::traingraph::Reference;
use crate::{Error, Result, adapter, forecast};

/// The objective that a configuration names, completed by what the training pairs say.
///
/// # Errors
/// The objective needs scores that the data set does not have.
pub fn objective(
    config: &ObjectiveConfig,
    data: DataKind,
    train: Option<&Dataset>,
) -> Result<Box<dyn Objective>> {
    let pairs = train.map_or(&[][..], Dataset::pairs);
    let needs = config.objective().needs();
    if needs.scores
        && let Some(pair) = pairs.iter().find(|pair| pair.scores.is_none())
    {
        return Err(Error::bad(
            format!("objective.kind: {}", config.kind()),
            format!(
                "needs the scores of both images, and pair {} of the training split has none",
                pair.id.0
            ),
            "Give the data set the columns score_0 and score_1, or choose another objective.",
        ));
    }
    let mut config = of_kind(config, data);
    if let ObjectiveConfig::Smpo(smpo) = &mut config {
        smpo.score_range = Some(match smpo.score_range {
            Some(range) => range,
            None => score_range(pairs)?,
        });
    }
    Ok(config.into_objective())
}

/// The objective that a configuration names, as far as it is known before the data are read: enough for shapes.
pub fn objective_without_data(config: &ObjectiveConfig, data: DataKind) -> Box<dyn Objective> {
    let mut config = of_kind(config, data);
    if let ObjectiveConfig::Smpo(smpo) = &mut config {
        // Whatever it is, graphs have the same shapes.
        smpo.score_range.get_or_insert(1.0);
    }
    config.into_objective()
}

fn of_kind(config: &ObjectiveConfig, data: DataKind) -> ObjectiveConfig {
    let mut config = config.clone();
    if let ObjectiveConfig::Kto(kto) = &mut config {
        kto.unpaired = data == DataKind::Rated;
    }
    config
}

/// Largest minus smallest score of the training pairs.
fn score_range(pairs: &[PairRow]) -> Result<f64> {
    let scores = pairs.iter().filter_map(|pair| pair.scores).flatten();
    let (low, high) = scores.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), score| {
        (low.min(score), high.max(score))
    });
    let range = f64::from(high) - f64::from(low);
    match range.is_finite() && range > 0.0 {
        true => Ok(range),
        false => Err(Error::bad(
            "objective.score_range",
            format!("cannot be measured: the scores of the training pairs reach from {low} to {high}"),
            "Mend the columns score_0 and score_1, or write down the range.",
        )),
    }
}

/// The only operators of a step that may stay on the CPU, where that is asked for. Providers other than CUDA leave parts of any
/// graph there, as a matter of course.
pub fn only_on_cpu(ep: ExecutionProvider, cpu_fallback: bool) -> Option<&'static str> {
    (ep == ExecutionProvider::Cuda && !cpu_fallback).then_some(SHAPE_ONLY)
}

/// How all sessions of a run are built. Those of the training graphs run in turn and share one pool of memory.
pub fn session_options(config: &Config) -> SessionOptions {
    SessionOptions {
        ep: config.runtime.ep,
        threads: config.runtime.threads.unwrap_or(0),
        arena: Arena::Shared,
        ..SessionOptions::default()
    }
}

/// The encoded pairs of a run.
pub struct Data {
    /// What is trained on; `None` where images are made for prompts alone.
    pub train: Option<Dataset>,
    /// What is evaluated on, if the data set has such a split.
    pub heldout: Option<Dataset>,
}

impl Data {
    /// Encodes what the cache does not hold yet.
    ///
    /// # Errors
    /// As [`Dataset::prepare`].
    pub fn prepare(config: &Config, model: &Model, console: Console, stop: &AtomicBool) -> Result<Self> {
        let part = |part| match config.data.is_given() {
            true => dataset(config, model, part, console, stop),
            false => Ok(None),
        };
        Ok(Self {
            train: part(Part::Train)?,
            heldout: part(Part::Heldout)?,
        })
    }

    /// Hash over captions, labels and images of both parts, in hexadecimal digits.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [&self.train, &self.heldout] {
            hasher.update(part.as_ref().map_or("", Dataset::hash).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Encodes a part of the data, or takes it from the cache. `None` if there are no held-out pairs.
fn dataset(
    config: &Config,
    model: &Model,
    part: Part,
    console: Console,
    stop: &AtomicBool,
) -> Result<Option<Dataset>> {
    let Some(source) = data::open(&config.data, part)? else {
        return Ok(None);
    };
    if let Some(note) = data::note_on_files(source.as_ref()) {
        console.say(&note);
    }
    let encoders = WithinBudget {
        encoders: OnnxEncoders {
            model: &model.folder,
            options: SessionOptions {
                ep: config.runtime.ep,
                threads: config.runtime.threads.unwrap_or(0),
                ..SessionOptions::default()
            },
            vae: VaePrecision::of(config.runtime.vae_fp32),
        },
        // Elsewhere encoders work in the device's memory, which the budget is not about.
        budget: match config.runtime.ep {
            ExecutionProvider::Cpu => config.runtime.memory_budget,
            _ => None,
        },
        batch: config.data.encode_batch,
    };
    let name = match part {
        Part::Train => "encoding train",
        Part::Heldout => "encoding held-out",
    };
    let mut job = None;
    let mut progress = |p: data::Progress| {
        let job = job.get_or_insert_with(|| console.job(name, p.total));
        let what = match p.stage {
            Stage::Images => "pairs",
            _ => "captions",
        };
        job.advance(p.done, what);
        match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let options = EncodeOptions::new(&config.data, part);
    Dataset::prepare(
        source.as_ref(),
        &encoders,
        &config.data.cache,
        options,
        &mut progress,
    )
    .map(Some)
}

/// Shapes of one sample of a data set.
pub fn geometry_of(train: &Dataset) -> Geometry {
    Geometry {
        samples: 1,
        latent: train.latent_shape(),
        text: train.text_shape(),
        added: added(train),
    }
}

/// How the batches of a run are divided.
///
/// # Errors
/// The reference rule's settings do not fit together.
pub fn batch(plan: &TrainPlan) -> Result<forecast::Batch> {
    let parts = plan.train.accumulate;
    let kl = ReferenceRule::new(&plan.reference)?.kl();
    Ok(forecast::Batch {
        parts,
        anchored: kl.map_or(0, |kl| kl.parts(plan.train.pairs_per_part(), parts)),
    })
}

/// What the sessions of a run are made for; `sample` has the shapes of one sample.
///
/// # Errors
/// The reference rule's settings do not fit together.
pub fn engine_options<'a>(
    plan: &TrainPlan,
    model: &'a Model,
    sample: Geometry,
    objective: &'a dyn Objective,
) -> Result<EngineOptions<'a>> {
    let pairs = plan.train.pairs_per_part();
    let needs = objective.needs();
    let samples = needs.samples(pairs);
    let guidance = plan.guidance_inside();
    let rule = ReferenceRule::new(&plan.reference)?;
    let anchor = rule.kl().filter(|_| needs.reference);
    Ok(EngineOptions {
        model: &model.denoiser,
        geometry: Geometry {
            samples: if guidance.is_some() { 2 * samples } else { samples },
            ..sample
        },
        other_sizes: &[],
        guidance,
        pairs,
        whole_batch: plan.train.accumulate == 1,
        objective,
        reference: Reference::Input,
        anchor_samples: anchor.map(|kl| needs.samples(kl.pairs(pairs))),
        copies: plan.runtime.weight_copies,
        recompute: plan.runtime.recompute,
        mixed_precision: plan.runtime.mixed_precision,
        gradients_on_device: false,
        session: SessionOptions {
            only_on_cpu: only_on_cpu(plan.runtime.ep, plan.runtime.cpu_fallback),
            ..session_options(plan)
        },
    })
}

/// Heights and widths of latents that the data may have beside those of squares; `data` has those that it has.
pub fn other_sizes(plan: &TrainPlan, model: &Model) -> Vec<[usize; 2]> {
    if !plan.data.is_given() || plan.objective.objective().needs().experience.is_online() {
        return Vec::new();
    }
    let square = plan.data.resolution;
    let pixels = geometry::pixels_per_latent(&model.folder);
    let buckets = Buckets::new(square, plan.data.buckets.as_ref());
    let others = buckets
        .sizes()
        .iter()
        .filter(|size| **size != Size::square(square));
    others
        .map(|size| size.sides().map(|side| side / pixels))
        .collect()
}

/// Sessions for samples shaped as `sample`, and for latents of other heights and widths, and θ0. Recomputation goes as far as the configuration's memory budget asks.
///
/// # Errors
/// The run would take more memory than it may; the model is no denoiser, or ONNX Runtime refuses it.
pub fn engine(
    plan: &TrainPlan,
    model: &Model,
    (sample, other_sizes): (Geometry, &[[usize; 2]]),
    objective: &dyn Objective,
    streams: &Streams,
) -> Result<(Engine, ParamSet)> {
    let mut options = EngineOptions {
        other_sizes,
        gradients_on_device: on_device::wanted(plan, 1 + other_sizes.len())?,
        ..engine_options(plan, model, sample, objective)?
    };
    let full = plan.trains_all_weights();
    if let Some(budget) = plan.runtime.memory_budget {
        options.recompute = forecast::fitting(plan, &options, budget)?;
    }
    let engine = Engine::build(&options, full, |graph| initial::trainables(&plan.adapter, graph))?;
    let initial = match &plan.adapter {
        AdapterConfig::Full(_) => engine
            .model_weights()
            .expect("full fine-tuning starts from the model")
            .clone(),
        AdapterConfig::Lora(lora) => match &lora.init {
            None => adapter::init_lora(engine.layout(), lora.init_a, streams),
            Some(file) => {
                let scale = adapter::LoraScale {
                    rank: lora.rank,
                    alpha: lora.alpha(),
                };
                adapter::load_lora(file, model.prefix(), engine.layout(), scale)?
            }
        },
    };
    Ok((engine, initial))
}

/// SDXL's conditions beside the text, for square pictures.
fn added(dataset: &Dataset) -> Option<Added> {
    let side = dataset.options().resolution as usize;
    let pooled = dataset.pooled_len();
    (pooled > 0).then_some(Added {
        pooled,
        size: [side, side],
    })
}

/// A data set as measurements see it: centred views, latents of the first visit.
pub struct Measurable<'a>(pub &'a Dataset);

impl Source for Measurable<'_> {
    fn len(&self) -> usize {
        self.0.pairs().len()
    }

    fn id(&self, index: usize) -> PairId {
        self.0.pairs()[index].id
    }

    fn pair(&self, index: usize, streams: &Streams) -> Result<ReadyPair> {
        let id = self.id(index);
        let mut stream = streams.pair(Purpose::Latent, id, Visit(0));
        let latents = self.0.moments(index, View::CENTER)?.map(|moments| {
            moments
                .sample(self.0.scaling(), &mut stream)
                .into_raw_vec_and_offset()
                .0
        });
        let embedding = self.0.embedding(self.0.caption(index))?;
        Ok(ReadyPair {
            id,
            latents,
            size: self.0.latent_size(index),
            time_ids: self.0.time_ids(index, View::CENTER),
            text: Text::from(&embedding),
        })
    }
}
