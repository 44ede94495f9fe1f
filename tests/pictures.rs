//! Pictures that are drawn during training are those that `ortdpo generate` makes of the same weights, prompts and seed.

mod common;

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

use common::fixtures;
use common::train::{Workspace, json, refused};
use ortdpo::adapter::{self, LoraScale};
use ortdpo::autodiff::Recompute;
use ortdpo::config::runtime::MixedPrecision;
use ortdpo::config::samples::SamplesConfig;
use ortdpo::generate::{self, GenerateOptions, GeneratePlan};
use ortdpo::objective::Dpo;
use ortdpo::params::ParamSet;
use ortdpo::pipeline::denoiser::Geometry;
use ortdpo::pipeline::{Guidance, VaePrecision};
use ortdpo::progress::Console;
use ortdpo::prompts::Prompt;
use ortdpo::rng::{Purpose, Streams};
use ortdpo::runtime::SessionOptions;
use ortdpo::train::engine::{Engine, EngineOptions};
use ortdpo::train::model::Model;
use ortdpo::train::pictures::Pictures;
use ortdpo::traingraph::{Reference, Trainables};

const PROMPTS: [&str; 2] = ["a cat", "two dogs, one of them asleep"];
const IMAGES: usize = 3;
const RANK: usize = 2;

fn engine(model: &Model) -> Engine {
    let options = EngineOptions {
        mixed_precision: MixedPrecision::No,
        gradients_on_device: false,
        model: &model.denoiser,
        geometry: Geometry {
            samples: 4,
            latent: [4, 8, 8],
            text: [16, 6],
            added: None,
        },
        other_sizes: &[],
        guidance: None,
        pairs: 2,
        whole_batch: true,
        objective: &Dpo::default(),
        reference: Reference::Input,
        anchor_samples: None,
        copies: Default::default(),
        recompute: Recompute::None,
        session: SessionOptions::default(),
    };
    Engine::build(&options, false, |graph| {
        Trainables::lora(graph, &["to_q".to_owned(), "to_v".to_owned()], RANK, RANK as f64)
    })
    .unwrap()
}

#[test]
fn they_are_what_generate_makes() {
    let root = fixtures().join("optimum-sd");
    let model = Model::open(&root).unwrap();
    let mut engine = engine(&model);
    let mut weights = ParamSet::zeros(engine.layout());
    Streams::new(3)
        .named(Purpose::AdapterInit, "pictures")
        .fill_normal(weights.values_mut());

    let config = SamplesConfig {
        prompts: PROMPTS.map(str::to_owned).to_vec(),
        images_per_prompt: IMAGES,
        steps: 4,
        guidance: 3.0,
        seed: 11,
        ..SamplesConfig::default()
    };
    let pictures = Pictures::prepare(
        &config,
        &model,
        &SessionOptions::default(),
        VaePrecision::AsExported,
    )
    .unwrap()
    .unwrap();
    let mut on = |_| ControlFlow::Continue(());
    let drawn = pictures
        .draw(&mut engine, &weights, &model.schedule, &mut on)
        .unwrap()
        .images;

    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("adapter.safetensors");
    let scale = LoraScale {
        rank: RANK,
        alpha: RANK as f64,
    };
    let lora = adapter::trained("unet", &weights, scale, Default::default());
    adapter::diffusers::write(&file, &lora).unwrap();
    let prompt = |text: &str| Prompt {
        text: text.to_owned(),
        fields: Default::default(),
    };
    let mut plan = GeneratePlan::new(&root, PROMPTS.map(prompt).to_vec());
    plan.adapters = vec![file.to_str().unwrap().parse().unwrap()];
    (plan.steps, plan.guidance, plan.seed) = (4, Guidance::new(3.0), 11);
    (plan.images_per_prompt, plan.batch) = (IMAGES, 5);
    let stop = AtomicBool::new(false);
    let options = GenerateOptions {
        session: SessionOptions::default(),
        vae: VaePrecision::AsExported,
        console: Console::Quiet,
        stop: &stop,
    };
    let output = temp.path().join("images");
    let made = generate::run(&plan, &output, &options).unwrap();

    assert_eq!(drawn.len(), PROMPTS.len() * IMAGES);
    let mut all_alike = true;
    for (image, record) in drawn.iter().zip(&made.records) {
        let other = image::open(output.join(&record.file)).unwrap().to_rgb8();
        let pairs = image.as_raw().iter().zip(other.as_raw());
        let largest = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(largest <= 2, "{}: {largest}", record.file);
        all_alike &= image == &drawn[0];
    }
    assert!(!all_alike, "every picture is the same: nothing was shown");
}

#[test]
fn the_best_by_a_reward_is_kept_whatever_comes_after() {
    let workspace = Workspace::new();
    let reward = fixtures().join("../../models/tiny-rewards/clip");
    let samples = format!(
        "samples={{prompts: [a cat], images_per_prompt: 2, steps: 2, guidance: 1, rewards: [{0}], features: {0}}}",
        reward.display()
    );
    let set = [
        samples.as_str(),
        "train.keep_best=reward.clip",
        "train={steps: 12, eval_every: 3, checkpoint_every: 0, keep: 1, eval_pairs: 1, eval_draws: 1}",
    ];
    let run = workspace.trained("run", &set);
    let best = json(&run.join("best/best.json"));
    let rewards: Vec<(u64, f64)> = common::train::metrics(&run)
        .iter()
        .filter_map(|line| Some((line["step"].as_u64()?, line.get("reward.clip")?.as_f64()?)))
        .collect();
    assert_eq!(
        rewards.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
        [3, 6, 9, 12]
    );
    let diversity: Vec<f64> = common::train::metrics(&run)
        .iter()
        .filter_map(|line| line.get("diversity.clip")?.as_f64())
        .collect();
    assert!(
        diversity.len() == 4 && diversity.iter().all(|d| *d > 0.0),
        "{diversity:?}"
    );
    let before = &json(&run.join("summary.json"))["initial_pictures"];
    assert!(
        before["reward.clip"].is_f64() && before["diversity.clip"].is_f64(),
        "{before}"
    );
    let (step, value) = rewards
        .iter()
        .copied()
        .reduce(|best, new| if new.1 > best.1 { new } else { best })
        .unwrap();
    assert_eq!(
        (best["step"].as_u64().unwrap(), best["value"].as_f64().unwrap()),
        (step, value)
    );
    assert!(run.join(format!("checkpoints/step-{step}/state.json")).exists());
    assert!(run.join("checkpoints/step-12/state.json").exists());
    let kept = std::fs::read_dir(run.join("checkpoints")).unwrap().count();
    assert_eq!(kept, if step == 12 { 1 } else { 2 });
    assert!(run.join("best/pytorch_lora_weights.safetensors").exists());
    for step in [0, 3, 6, 9, 12] {
        assert!(run.join(format!("samples/step-{step:06}.png")).exists(), "{step}");
    }
}

#[test]
fn what_is_not_measured_cannot_be_judged_by() {
    let workspace = Workspace::new();
    for (set, expected) in [
        (
            "train.keep_best=fid",
            "train.keep_best: is \"fid\", which is not measured",
        ),
        ("train.keep_best=reward.clip", "Choose acc_init or margin_init"),
        ("train.policy_ema=1", "train.policy_ema: is 1"),
        ("samples.rewards=[clip]", "no pictures are drawn"),
        ("samples={prompts: [a], features: clip}", "and each has one"),
        ("samples={prompts: [a], rewards: [nothing]}", "nothing"),
        ("samples={file: nowhere.txt}", "nowhere.txt"),
    ] {
        let text = refused(&workspace.train("run", &[set]).output().unwrap());
        assert!(text.contains(expected), "{text}");
        assert!(!workspace.path("run").exists(), "{set} left a folder behind");
    }
}
