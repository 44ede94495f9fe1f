//! Twenty whole training steps on tiny-sd against a transcription of the loop in PyTorch that had the same random numbers:
//! every reference rule and anchor, variance weighting, clipping, learning rate schedules.
//! `scripts/fixtures/twenty_steps.py` recorded it in f64.

mod common;

use std::path::Path;

use common::fixtures;
use common::recorded::Recorded;
use ortdpo::autodiff::Recompute;
use ortdpo::config::reference::UpdateConfig;
use ortdpo::config::runtime::MixedPrecision;
use ortdpo::config::{Sources, TrainPlan};
use ortdpo::diffusion::Timestep;
use ortdpo::objective::Dpo;
use ortdpo::params::ParamSet;
use ortdpo::pipeline::denoiser::Geometry;
use ortdpo::reference::ReferenceRule;
use ortdpo::rng::PairId;
use ortdpo::runtime::{self, SessionOptions};
use ortdpo::train::by_size::BySize;
use ortdpo::train::draw::{Content, DrawnPair};
use ortdpo::train::engine::{Engine, EngineOptions};
use ortdpo::train::initial;
use ortdpo::train::model::Model;
use ortdpo::train::probe::Probe;
use ortdpo::train::source::Text;
use ortdpo::train::state::State;
use ortdpo::train::step::{StepStats, Stepper};
use ortdpo::traingraph::Reference;

const PROBE: usize = 6;
const BETA: f64 = 2000.0;

/// Row `index` of a recorded tensor.
fn text(inputs: &Recorded, index: usize) -> Text {
    Text {
        hidden: row(inputs, "embeddings", index),
        pooled: Vec::new(),
    }
}

fn row(recorded: &Recorded, name: &str, index: usize) -> Vec<f32> {
    let len: usize = recorded.shape(name)[1..].iter().product();
    recorded.values(name)[index * len..(index + 1) * len]
        .iter()
        .map(|v| *v as f32)
        .collect()
}

fn adapter(engine: &Engine, recorded: &Recorded, prefix: &str) -> ParamSet {
    let mut set = ParamSet::zeros(engine.layout());
    for (i, name) in engine.layout().names().iter().enumerate() {
        set.tensor_mut(i)
            .copy_from_slice(&recorded.f32(&format!("{prefix}{name}")));
    }
    set
}

/// ‖found − recorded‖ as a share of how far the recorded weights moved from where they started.
fn share_of_path(found: &ParamSet, recorded: &ParamSet, initial: &ParamSet) -> f64 {
    let distance = |a: &ParamSet, b: &ParamSet| -> f64 {
        let squares = a
            .values()
            .iter()
            .zip(b.values())
            .map(|(a, b)| f64::from(a - b).powi(2));
        squares.sum::<f64>().sqrt()
    };
    match distance(recorded, initial) {
        0.0 => distance(found, initial),
        path => distance(found, recorded) / path,
    }
}

fn objective() -> Dpo {
    Dpo {
        beta: BETA,
        ..Dpo::default()
    }
}

/// The recorded inputs, and a model to feed with them.
struct Bench {
    inputs: Recorded,
    model: Model,
}

impl Bench {
    fn new() -> Self {
        runtime::init(&Default::default()).unwrap();
        Self {
            inputs: Recorded::read(&fixtures().join("twenty_steps/inputs.safetensors")),
            model: Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-sd")).unwrap(),
        }
    }

    fn geometry(&self, samples: usize) -> Geometry {
        let latent = self.inputs.shape("latents_w");
        let text = self.inputs.shape("embeddings");
        Geometry {
            samples,
            latent: [latent[1], latent[2], latent[3]],
            text: [text[1], text[2]],
            added: None,
        }
    }

    fn engine(&self, plan: &TrainPlan) -> Engine {
        let pairs = plan.train.pairs_per_step;
        let objective = objective();
        let kl = ReferenceRule::new(&plan.reference).unwrap().kl();
        let options = EngineOptions {
            mixed_precision: MixedPrecision::No,
            gradients_on_device: false,
            model: &self.model.denoiser,
            geometry: self.geometry(2 * pairs),
            other_sizes: &[],
            guidance: None,
            pairs,
            whole_batch: true,
            objective: &objective,
            reference: Reference::Input,
            copies: Default::default(),
            recompute: Recompute::None,
            anchor_samples: kl.map(|kl| 2 * kl.pairs(pairs)),
            session: SessionOptions::default(),
        };
        Engine::build(&options, false, |graph| initial::trainables(&plan.adapter, graph)).unwrap()
    }

    /// The pairs of one step with the recorded timesteps and noise.
    fn pairs(&self, step: usize, count: usize) -> Vec<DrawnPair> {
        let draw = |name: &str| self.inputs.values(name)[step * count..(step + 1) * count].to_vec();
        let (chosen, timesteps) = (draw("pair"), draw("timesteps"));
        let noise = row(&self.inputs, "noise", step);
        let noise = noise.chunks_exact(noise.len() / count);
        let pair = |((pair, timestep), noise): ((&f64, &f64), &[f32])| {
            let index = *pair as usize;
            DrawnPair {
                id: PairId(index as u64),
                timestep: Timestep(*timestep as u32),
                weight: 1.0,
                label: 1.0,
                score_gap: None,
                content: Content::Images {
                    latents: ["latents_w", "latents_l"].map(|name| row(&self.inputs, name, index)),
                    noise: noise.to_vec(),
                    size: self.geometry(2).latent_size(),
                    time_ids: [self.geometry(2).picture_ids(); 2],
                },
                text: text(&self.inputs, index),
            }
        };
        chosen.iter().zip(&timesteps).zip(noise).map(pair).collect()
    }

    fn probe(&self, engine: &mut Engine, initial: &ParamSet) -> Probe {
        let geometry = engine.geometry();
        let mut by_size = BySize::new(geometry);
        let mut batches = Vec::new();
        for i in 0..PROBE {
            let pair = self.inputs.values("probe.pair")[i] as usize;
            batches.extend(by_size.push(geometry.latent_size(), |batch| {
                batch.push(
                    &self.model.schedule,
                    Timestep(self.inputs.values("probe.timesteps")[i] as u32),
                    &row(&self.inputs, "latents_w", pair),
                    &row(&self.inputs, "probe.noise", i),
                    (&text(&self.inputs, pair), geometry.picture_ids()),
                );
            }));
        }
        batches.extend(by_size.rest());
        Probe::of_batches(batches, engine, initial).unwrap()
    }
}

/// Twenty steps under the configuration `name`, each compared with the recording; then where they led.
fn check(name: &str) {
    let bench = Bench::new();
    let folder = fixtures().join("twenty_steps");
    let recorded = Recorded::read(&folder.join(format!("{name}.safetensors")));
    let plan = TrainPlan::resolve(&Sources {
        file: Some(folder.join(format!("{name}.yaml"))),
        preset: None,
        set: vec!["data={path: unused, resolution: 64}".to_owned()],
    })
    .unwrap();
    let mut engine = bench.engine(&plan);
    let initial = adapter(&engine, &bench.inputs, "initial.");
    let mut state = State::new(&plan, &bench.model, initial.clone()).unwrap();
    let probe = bench.probe(&mut engine, &initial);
    let mut stepper = Stepper::new(&plan, &bench.model.schedule, &engine, &objective(), None).unwrap();
    let mut worst = 0.0f64;
    for step in 0..plan.train.steps as usize {
        let pairs = bench.pairs(step, plan.train.pairs_per_step);
        let stats = stepper
            .step(&mut state, &mut engine, &pairs, Some(&probe))
            .unwrap();
        worst = worst.max(compare_step(name, step, &stats, &recorded, pairs.len()));
    }
    let end = |found: &ParamSet, prefix: &str| {
        let error = share_of_path(found, &adapter(&engine, &recorded, prefix), &initial);
        assert!(error < 1e-4, "{name}: {prefix}* is {error:e} off after 20 steps");
        error
    };
    let policy = end(&state.policy, "policy.");
    let reference = match plan.reference.update {
        UpdateConfig::Frozen => 0.0,
        UpdateConfig::Ema | UpdateConfig::Copy => end(&state.reference(), "reference."),
    };
    let gate = &state.reference_rule.state().gate;
    if recorded.0.contains_key("gate.step") {
        let taken: Vec<f64> = gate.iter().map(|g| f64::from(u8::from(g.accepted))).collect();
        assert_eq!(taken, recorded.values("gate.accepted"), "{name}");
        for (found, drift) in gate.iter().zip(recorded.values("gate.drift")) {
            assert!(
                (found.drift - drift).abs() < 1e-4 * drift.abs().max(0.01),
                "{name}: {} {drift}",
                found.drift
            );
        }
    }
    println!("{name}: statistics {worst:.1e}, policy {policy:.1e}, reference {reference:.1e}");
}

/// Largest relative difference of a step's numbers.
fn compare_step(name: &str, step: usize, stats: &StepStats, recorded: &Recorded, pairs: usize) -> f64 {
    let mean = |key: &str| {
        let values = &recorded.values(key)[step * pairs..(step + 1) * pairs];
        values.iter().sum::<f64>() / pairs as f64
    };
    let mut compared = vec![
        ("loss", stats.loss, recorded.values("loss")[step]),
        ("grad_norm", stats.grad_norm, recorded.values("grad_norm")[step]),
        ("lr", stats.lr, recorded.values("lr")[step]),
        ("weight", stats.weight_mean, mean("weight")),
        ("e_w", stats.e_w, mean("e_w")),
        ("e_l", stats.e_l, mean("e_l")),
        ("ref_e_w", stats.ref_e_w, mean("ref_e_w")),
        ("ref_e_l", stats.ref_e_l, mean("ref_e_l")),
    ];
    if let Some(anchor) = stats.anchor_loss {
        compared.push(("kl", anchor, recorded.values("kl")[step]));
    }
    let mut worst = 0.0f64;
    for (what, found, wanted) in compared {
        // Some of these numbers pass through zero: what counts is the size they have during the run.
        let size = recorded.values(what);
        let size = size.iter().fold(0.0f64, |size, v| size.max(v.abs()));
        let error = (found - wanted).abs() / size;
        assert!(
            error < 1e-4,
            "{name}: {what} at step {}: {found} against {wanted}",
            step + 1
        );
        worst = worst.max(error);
    }
    worst
}

#[test]
fn a_frozen_reference() {
    check("frozen");
}

#[test]
fn a_moving_average() {
    check("ema");
}

#[test]
fn a_moving_average_with_the_kl_anchor_and_variance_weighting() {
    check("ema_kl_variance");
}

#[test]
fn a_moving_average_that_is_pulled_back() {
    check("ema_pull_variance");
}

#[test]
fn a_copied_reference_with_the_kl_anchor() {
    check("copy_kl");
}

#[test]
fn a_copied_reference_behind_a_gate() {
    check("copy_gate");
}

#[test]
fn a_gate_that_goes_back_to_the_start() {
    check("copy_gate_reinit");
}
