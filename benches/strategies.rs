//! What moving the reference and weighing timesteps cost: steps of DPO on tiny-sd with and without, in turns, so that what
//! slows the machine down slows both. Printed are medians of the ratios of neighbouring steps, with their quartiles.

use std::path::Path;
use std::time::Instant;

use ortdpo::autodiff::Recompute;
use ortdpo::config::adapter::InitA;
use ortdpo::config::reference::StorageConfig;
use ortdpo::config::runtime::MixedPrecision;
use ortdpo::config::{Sources, TrainPlan};
use ortdpo::diffusion::Timestep;
use ortdpo::objective::Dpo;
use ortdpo::pipeline::TimeIds;
use ortdpo::pipeline::denoiser::Geometry;
use ortdpo::reference::{ReferenceRule, ReferenceWeights};
use ortdpo::rng::{PairId, Purpose, Stream, Streams};
use ortdpo::runtime::{self, Arena, SessionOptions};
use ortdpo::train::by_size::BySize;
use ortdpo::train::draw::{Content, DrawnPair};
use ortdpo::train::engine::{Engine, EngineOptions};
use ortdpo::train::initial;
use ortdpo::train::model::Model;
use ortdpo::train::probe::Probe;
use ortdpo::train::source::Text;
use ortdpo::train::state::State;
use ortdpo::train::step::Stepper;
use ortdpo::traingraph::Reference;

const PAIRS: usize = 16;
/// Draws of the drift probe, as by default.
const PROBE: usize = 64;
/// Steps of each kind; the first ones of a session are slower than the rest and not counted.
const STEPS: usize = 24;
const WARM_UP: usize = 3;

const PLAIN: &str = "reference={update: frozen}";
const EMA: &str = "reference={update: ema, alpha: 0.01}";
const VARIANCE: &str = "timestep={weighting: {kind: variance}}";

fn main() {
    runtime::init(&Default::default()).expect("scripts/setup puts ONNX Runtime into .ort/");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-sd");
    let model = Model::open(&root).expect("tiny-sd is part of the repository");
    println!(
        "DPO on tiny-sd, {PAIRS} pairs a step; time of a step over that of one with a frozen reference and no weights"
    );
    for adapter in ["lora", "full"] {
        let adapter = format!("adapter.kind={adapter}");
        for (name, rules) in [
            ("the same again", vec![PLAIN]),
            ("ema", vec![EMA]),
            ("ema, variance", vec![EMA, VARIANCE]),
            (
                "ema, pull, variance",
                vec![EMA, "reference.anchor={kind: pull}", VARIANCE],
            ),
            (
                "ema, kl on a quarter, variance",
                vec![EMA, "reference.anchor={kind: kl}", VARIANCE],
            ),
        ] {
            compare(&model, &adapter, name, &rules);
        }
    }
    compare(
        &model,
        "adapter.kind=full",
        "ema in a file",
        &[EMA, "reference.storage=bf16"],
    );
    probe(&model);
}

fn plan(model: &Model, set: &[&str]) -> TrainPlan {
    let fixed = [
        format!("model={}", model.folder.root().display()),
        "data={path: unused, resolution: 64}".to_owned(),
        format!("train={{pairs_per_step: {PAIRS}}}"),
    ];
    TrainPlan::resolve(&Sources {
        set: fixed
            .into_iter()
            .chain(set.iter().map(|s| (*s).to_owned()))
            .collect(),
        ..Sources::default()
    })
    .expect("the configurations above are valid")
}

/// A run's state with sessions of its own.
struct Side<'a> {
    engine: Engine,
    state: State,
    stepper: Stepper<'a>,
}

impl<'a> Side<'a> {
    fn new(model: &'a Model, plan: &'a TrainPlan) -> Self {
        let kl = ReferenceRule::new(&plan.reference)
            .expect("the plan was checked")
            .kl();
        let options = EngineOptions {
            mixed_precision: MixedPrecision::No,
            gradients_on_device: false,
            model: &model.denoiser,
            geometry: Geometry {
                samples: 2 * PAIRS,
                latent: [4, 16, 16],
                text: [16, 96],
                added: None,
            },
            other_sizes: &[],
            guidance: None,
            pairs: PAIRS,
            whole_batch: true,
            objective: &Dpo::default(),
            reference: Reference::Input,
            anchor_samples: kl.map(|kl| 2 * kl.pairs(PAIRS)),
            copies: Default::default(),
            recompute: Recompute::None,
            session: SessionOptions {
                arena: Arena::Shared,
                ..SessionOptions::default()
            },
        };
        let mut engine = Engine::build(&options, false, |graph| initial::trainables(&plan.adapter, graph))
            .expect("tiny-sd trains");
        let initial = match engine.model_weights() {
            Some(weights) => weights.clone(),
            None => ortdpo::adapter::init_lora(engine.layout(), InitA::Kaiming, &Streams::new(0)),
        };
        let mut state = State::new(plan, model, initial).expect("the plan was checked");
        if plan.reference.storage == StorageConfig::Bf16 {
            let path = std::env::temp_dir().join("ortdpo-bench-reference.bf16");
            state.reference = ReferenceWeights::mapped(&path, &state.initial, Streams::new(0))
                .expect("the system's folder for temporary files can be written");
            engine.release_after_steps().expect("ONNX Runtime can");
        }
        Self {
            state,
            stepper: Stepper::new(plan, &model.schedule, &engine, &Dpo::default(), None)
                .expect("the host has room"),
            engine,
        }
    }

    fn step(&mut self, pairs: &[DrawnPair]) -> f64 {
        let began = Instant::now();
        self.stepper
            .step(&mut self.state, &mut self.engine, pairs, None)
            .expect("tiny-sd trains");
        began.elapsed().as_secs_f64()
    }
}

fn normal(stream: &mut Stream, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    stream.fill_normal(&mut values);
    values
}

fn pairs(step: usize) -> Vec<DrawnPair> {
    let mut stream = Streams::new(1).named(Purpose::Noise, &format!("step {step}"));
    (0..PAIRS)
        .map(|index| DrawnPair {
            id: PairId(index as u64),
            timestep: Timestep(stream.below(1000) as u32),
            weight: 1.0,
            label: 1.0,
            score_gap: None,
            content: Content::Images {
                latents: [normal(&mut stream, 1024), normal(&mut stream, 1024)],
                noise: normal(&mut stream, 1024),
                size: [16, 16],
                time_ids: [TimeIds::whole([64, 64]); 2],
            },
            text: Text {
                hidden: normal(&mut stream, 16 * 96),
                pooled: Vec::new(),
            },
        })
        .collect()
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

fn compare(model: &Model, adapter: &str, name: &str, rules: &[&str]) {
    let plain = plan(model, &[adapter, PLAIN]);
    let ruled = plan(model, &[&[adapter], rules].concat());
    let (mut one, mut other) = (Side::new(model, &plain), Side::new(model, &ruled));
    let (mut ratios, mut seconds) = (Vec::new(), Vec::new());
    for step in 0..WARM_UP + STEPS {
        let pairs = pairs(step);
        // Who goes first changes from step to step.
        let (first, second) = match step % 2 {
            0 => {
                let first = one.step(&pairs);
                (first, other.step(&pairs))
            }
            _ => {
                let second = other.step(&pairs);
                (one.step(&pairs), second)
            }
        };
        if step >= WARM_UP {
            ratios.push(second / first);
            seconds.push(first);
        }
    }
    ratios.sort_by(f64::total_cmp);
    seconds.sort_by(f64::total_cmp);
    println!(
        "{:<5} {name:<32} {:.3} [{:.3}, {:.3}]   (frozen: {:.3} s)",
        adapter.trim_start_matches("adapter.kind="),
        quantile(&ratios, 0.5),
        quantile(&ratios, 0.25),
        quantile(&ratios, 0.75),
        quantile(&seconds, 0.5),
    );
}

/// Drift is measured now and then, and at every update behind a gate.
fn probe(model: &Model) {
    let plan = plan(model, &["adapter.kind=lora", EMA]);
    let mut side = Side::new(model, &plan);
    let mut by_size = BySize::new(side.engine.geometry());
    let mut batches = Vec::new();
    for pair in (0..PROBE / PAIRS).flat_map(pairs) {
        let Content::Images {
            latents,
            noise,
            size,
            time_ids,
        } = pair.content
        else {
            continue;
        };
        let condition = (&pair.text, time_ids[0]);
        batches.extend(by_size.push(size, |batch| {
            batch.push(&model.schedule, pair.timestep, &latents[0], &noise, condition);
        }));
    }
    batches.extend(by_size.rest());
    let initial = side.state.initial.clone();
    let probe = Probe::of_batches(batches, &mut side.engine, &initial).expect("tiny-sd predicts");
    let pairs = pairs(0);
    let mut ratios: Vec<f64> = (0..WARM_UP + STEPS)
        .map(|_| {
            let step = side.step(&pairs);
            let began = Instant::now();
            probe
                .drift(&mut side.engine, &side.state.reference())
                .expect("tiny-sd predicts");
            began.elapsed().as_secs_f64() / step
        })
        .skip(WARM_UP)
        .collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "measuring drift on {PROBE} draws takes {:.2} steps",
        quantile(&ratios, 0.5)
    );
}
