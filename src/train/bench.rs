//! Timing of training steps on random inputs: what a model costs before any data is prepared.

use std::time::Instant;

use serde::Serialize;

use super::engine::{Engine, EngineOptions, PairInputs, Samples, StepValues};
use super::memory;
use crate::autodiff::Recompute;
use crate::config::optimizer::OptimizerConfig;
use crate::config::runtime::{MixedPrecision, WeightCopies};
use crate::diffusion::Timestep;
use crate::objective::Dpo;
use crate::onnx::Model;
use crate::optim::{AdamW, Gradient, Term, clip_factor};
use crate::params::ParamSet;
use crate::reference::Blend;
use crate::rng::{Purpose, Streams};
use crate::runtime::SessionOptions;
use crate::traingraph::{Reference, Trainables};
use crate::{Result, optim};

use crate::pipeline::denoiser::Geometry;

/// What to time.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Sizes; `samples` is twice `pairs`.
    pub geometry: Geometry,
    /// Pairs of a step.
    pub pairs: usize,
    /// LoRA rank.
    pub rank: usize,
    /// Layers with an adapter.
    pub targets: Vec<String>,
    /// Steps that are run, the first ones included.
    pub steps: usize,
    /// Where the reference's errors come from.
    pub reference: Reference,
    /// Whether sessions keep second copies of the weights.
    pub copies: WeightCopies,
    /// What backward passes compute again.
    pub recompute: Recompute,
    /// What the denoiser is computed in.
    pub mixed_precision: MixedPrecision,
    /// How sessions are built.
    pub session: SessionOptions,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// Trainable values.
    pub trainable: usize,
    /// Seconds to derive the graphs and load the sessions.
    pub load_seconds: f64,
    /// Seconds of every step, the slow first ones included.
    pub step_seconds: Vec<f64>,
    /// Median of the steps after the first two.
    pub median_step_seconds: f64,
    /// Median seconds of the reference's forward pass in these steps, where it is a session of its own.
    pub median_forward_seconds: Option<f64>,
    /// Largest resident memory so far, MB; pages of mapped model files included.
    pub peak_rss_mb: Option<f64>,
    /// Resident memory that belongs to no file at the end, MB.
    pub anonymous_mb: Option<f64>,
    /// Loss of the last step; finite if the step really ran.
    pub last_loss: f32,
}

/// Runs whole steps: reference, policy, gradients, AdamW with clipping, EMA reference.
pub fn run(model: &Model, options: &BenchOptions) -> Result<BenchReport> {
    let started = Instant::now();
    let objective = Dpo::default();
    let engine_options = EngineOptions {
        mixed_precision: options.mixed_precision,
        gradients_on_device: false,
        model,
        geometry: options.geometry,
        other_sizes: &[],
        guidance: None,
        pairs: options.pairs,
        whole_batch: true,
        objective: &objective,
        reference: options.reference,
        anchor_samples: None,
        copies: options.copies,
        recompute: options.recompute,
        session: options.session.clone(),
    };
    let rank = options.rank;
    let mut engine = Engine::build(&engine_options, false, |g| {
        Trainables::lora(g, &options.targets, rank, rank as f64)
    })?;
    let load_seconds = started.elapsed().as_secs_f64();
    let (samples, pairs) = random_inputs(options);
    let streams = Streams::new(0);
    let mut policy = ParamSet::zeros(engine.layout());
    streams
        .named(Purpose::AdapterInit, "bench")
        .fill_normal(policy.values_mut());
    policy.values_mut().iter_mut().for_each(|v| *v *= 0.01);
    let initial = policy.clone();
    let mut reference = policy.clone();
    let config = OptimizerConfig::default();
    let mut adamw = AdamW::new(&config, engine.layout());
    let mut step_seconds = Vec::with_capacity(options.steps);
    let mut forward_seconds = Vec::with_capacity(options.steps);
    let mut last = StepValues::default();
    for _ in 0..options.steps {
        let started = Instant::now();
        let values = engine.reference(&reference, &samples)?;
        forward_seconds.push(started.elapsed().as_secs_f64());
        last = engine.step_beside(&policy, Some(&reference), values, &samples, &pairs)?;
        let term = Term::by_name(engine.layout(), 1.0, |name| engine.gradient(name))?;
        let gradient = Gradient::of(term);
        let clip = clip_factor(gradient.norms().total, Some(1.0));
        let follow = optim::Follow {
            reference: &mut reference,
            initial: &initial,
            blend: Blend::new(0.01, 0.0),
        };
        adamw.step(&mut policy, &gradient, clip, 1e-4, Some(follow));
        step_seconds.push(started.elapsed().as_secs_f64());
    }
    Ok(BenchReport {
        trainable: engine.trainables().parameter_count(),
        load_seconds,
        median_step_seconds: median(steady(&step_seconds)),
        median_forward_seconds: (options.reference == Reference::Input)
            .then(|| median(steady(&forward_seconds))),
        step_seconds,
        peak_rss_mb: memory::peak_rss_mb(),
        anonymous_mb: memory::anonymous_mb(),
        last_loss: last.loss,
    })
}

/// All but the first two, which are slower, where there are more.
fn steady(seconds: &[f64]) -> &[f64] {
    seconds.get(2..).filter(|s| !s.is_empty()).unwrap_or(seconds)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => 0.5 * (sorted[middle - 1] + sorted[middle]),
    }
}

fn random_inputs(options: &BenchOptions) -> (Samples, PairInputs) {
    let g = options.geometry;
    let streams = Streams::new(1);
    let normal = |name: &str, len: usize| {
        let mut values = vec![0.0; len];
        streams.named(Purpose::Noise, name).fill_normal(&mut values);
        values
    };
    let timesteps = (0..g.samples)
        .map(|i| Timestep(((i % options.pairs) * 997 % 1000) as u32))
        .collect();
    let samples = Samples {
        size: g.latent_size(),
        time_ids: vec![g.picture_ids().0; g.samples],
        noisy: normal("noisy", g.samples * g.latent_len()),
        target: normal("target", g.samples * g.latent_len()),
        text: normal("text", g.samples * g.text_len()),
        pooled: normal("pooled", g.samples * g.pooled_len()),
        timesteps,
    };
    let ones = vec![1.0; options.pairs];
    (
        samples,
        PairInputs {
            weight: ones.clone(),
            reward_scale: ones.clone(),
            label: ones,
            ..PairInputs::default()
        },
    )
}
