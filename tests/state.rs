//! The state that moves in training, against what PyTorch and diffusers compute. The recordings are made by
//! `scripts/fixtures/optim.py` and `scripts/fixtures/schedule.py`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ortdpo::config::optimizer::{LrScheduleConfig, LrScheduleKind, OptimizerConfig};
use ortdpo::diffusion::{NoiseSchedule, PredictionType, Timestep};
use ortdpo::optim::{AdamW, Follow, Gradient, GradientSum, LrSchedule, Term, clip_factor};
use ortdpo::params::{Layout, ParamSet};
use ortdpo::reference::Blend;
use serde::Deserialize;
use serde::de::DeserializeOwned;

type Tensors = BTreeMap<String, Vec<f32>>;

#[derive(Deserialize)]
struct OptimFixture {
    shapes: BTreeMap<String, Vec<usize>>,
    runs: Vec<Run>,
    schedules: Vec<Schedule>,
}

#[derive(Deserialize)]
struct Run {
    config: RunConfig,
    initial: Tensors,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct RunConfig {
    lr: f64,
    weight_decay: f64,
    betas: [f64; 2],
    eps: f64,
    clip_norm: Option<f64>,
    schedule: LrScheduleKind,
    warmup: u64,
    alpha: f64,
}

#[derive(Deserialize)]
struct Step {
    gradients: Vec<Tensors>,
    norm: f64,
    lr: f64,
    policy: Tensors,
    reference: Tensors,
}

#[derive(Deserialize)]
struct Schedule {
    kind: LrScheduleKind,
    warmup: u64,
    steps: u64,
    lr: f64,
    rates: Vec<f64>,
}

#[derive(Deserialize)]
struct NoiseFixture {
    config: serde_json::Value,
    timesteps: Vec<u32>,
    alphas_cumprod: Vec<f64>,
    x0: Vec<Vec<f32>>,
    noise: Vec<Vec<f32>>,
    x_t: Vec<Vec<f32>>,
    velocity: Vec<Vec<f32>>,
}

fn fixture<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn set(layout: &Arc<Layout>, tensors: &Tensors) -> ParamSet {
    let mut set = ParamSet::zeros(layout);
    for (name, values) in tensors {
        set.tensor_mut(layout.index_of(name).unwrap())
            .copy_from_slice(values);
    }
    set
}

#[track_caller]
fn assert_close(ours: &[f32], theirs: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!(
            (a - b).abs() <= tolerance * b.abs().max(1.0),
            "{a} instead of {b}"
        );
    }
}

impl RunConfig {
    fn optimizer(&self) -> OptimizerConfig {
        OptimizerConfig {
            lr: self.lr,
            betas: self.betas,
            eps: self.eps,
            weight_decay: self.weight_decay,
            clip_norm: self.clip_norm,
            schedule: LrScheduleConfig {
                kind: self.schedule,
                warmup: self.warmup,
            },
            ..OptimizerConfig::default()
        }
    }
}

#[test]
fn adamw_clipping_accumulation_and_average_follow_pytorch() {
    let OptimFixture { shapes, runs, .. } = fixture("optim.json");
    let layout = Layout::new(shapes).unwrap();
    for run in runs {
        let config = run.config.optimizer();
        let rates = LrSchedule::new(&config, 1, run.steps.len() as u64);
        let initial = set(&layout, &run.initial);
        let (mut policy, mut reference) = (initial.clone(), initial.clone());
        let mut adamw = AdamW::new(&config, &layout);
        let mut sum = GradientSum::new(&layout);
        for (step, recorded) in (1..).zip(&run.steps) {
            sum.clear();
            for gradients in &recorded.gradients {
                let share = 1.0 / recorded.gradients.len() as f32;
                sum.add(&Term::from_set(&set(&layout, gradients), share));
            }
            let gradient = Gradient::of(sum.term(1.0));
            let norm = gradient.norms().total;
            assert!((norm / recorded.norm - 1.0).abs() < 1e-6, "step {step}: {norm}");
            assert!((rates.at(step) - recorded.lr).abs() < 1e-15, "step {step}");
            let follow = Follow {
                reference: &mut reference,
                initial: &initial,
                blend: Blend::new(run.config.alpha, 0.0),
            };
            let clip = clip_factor(norm, config.clip_norm);
            adamw.step(&mut policy, &gradient, clip, rates.at(step), Some(follow));
            assert_close(policy.values(), set(&layout, &recorded.policy).values(), 1e-6);
            assert_close(
                reference.values(),
                set(&layout, &recorded.reference).values(),
                1e-6,
            );
        }
    }
}

#[test]
fn learning_rates_follow_diffusers() {
    for schedule in fixture::<OptimFixture>("optim.json").schedules {
        let config = OptimizerConfig {
            lr: schedule.lr,
            schedule: LrScheduleConfig {
                kind: schedule.kind,
                warmup: schedule.warmup,
            },
            ..OptimizerConfig::default()
        };
        let ours = LrSchedule::new(&config, 1, schedule.steps);
        for (step, rate) in (1..).zip(&schedule.rates) {
            let (kind, warmup) = (schedule.kind, schedule.warmup);
            assert!(
                (ours.at(step) - rate).abs() < 1e-15,
                "{kind:?}, warm-up {warmup}, step {step}"
            );
        }
    }
}

#[test]
fn noise_schedules_follow_diffusers() {
    for recorded in fixture::<Vec<NoiseFixture>>("schedule.json") {
        let schedule = NoiseSchedule::from_json(&recorded.config.to_string(), "fixture").unwrap();
        for (index, t) in recorded.timesteps.iter().copied().map(Timestep).enumerate() {
            let (ours, theirs) = (schedule.alpha_cumprod(t), recorded.alphas_cumprod[index]);
            // diffusers multiplies a thousand factors in single precision.
            assert!(
                (ours - theirs).abs() <= 2e-5 * theirs + 1e-7,
                "{t:?}: {ours} instead of {theirs}"
            );

            let (x0, noise) = (&recorded.x0[index], &recorded.noise[index]);
            let mut ours = vec![0.0; x0.len()];
            schedule.add_noise(t, x0, noise, &mut ours);
            assert_close(&ours, &recorded.x_t[index], 2e-4);
            schedule.target(t, x0, noise, &mut ours);
            match schedule.prediction_type() {
                PredictionType::Epsilon => assert_eq!(&ours, noise),
                PredictionType::VPrediction => assert_close(&ours, &recorded.velocity[index], 2e-4),
            }
        }
    }
}
