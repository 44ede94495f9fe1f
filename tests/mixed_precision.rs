//! `runtime.mixed_precision` in whole runs: steps that overflow, resuming, and what is refused.

mod common;

use std::fs;
use std::path::PathBuf;

use common::train::{Workspace, copy, files, json, metrics, paragraph, refused};
use common::{fixtures, ortdpo, stderr, stdout};

/// A pipeline whose denoiser is stored in half precision, and how a run names it.
fn half_pipeline(workspace: &Workspace) -> String {
    let folder: PathBuf = workspace.path("half");
    copy(&fixtures().join("optimum-sd"), &folder);
    fs::copy(
        fixtures().join("half/legacy17.onnx"),
        folder.join("unet/model.onnx"),
    )
    .unwrap();
    format!("model={}", folder.display())
}

const FP16: &str = "runtime.mixed_precision=fp16";

#[test]
fn steps_that_overflow_are_skipped_until_the_scale_fits() {
    let workspace = Workspace::new();
    let model = half_pipeline(&workspace);
    let set = [&*model, FP16, "train.eval_every=0", "train.steps=12"];
    let run = workspace.trained("run", &set);
    let steps = metrics(&run);
    let is_skipped = |step: &serde_json::Value| step["skipped"] == true;
    let first_good = steps.iter().position(|step| !is_skipped(step)).unwrap();
    assert!(first_good > 0, "no step overflowed: the test is too easy");
    for (k, step) in steps.iter().take(first_good + 1).enumerate() {
        assert_eq!(step["loss_scale"], 65536.0 / f64::powi(2.0, k as i32));
    }
    assert!(steps.iter().filter(|step| !is_skipped(step)).count() >= 4);
    assert!(steps.iter().all(|step| step["step"].is_u64()));
}

#[test]
fn bfloat16_needs_no_scale() {
    let workspace = Workspace::new();
    let model = half_pipeline(&workspace);
    let set = [
        &*model,
        "runtime.mixed_precision=bf16",
        "train.steps=3",
        "train.eval_every=3",
    ];
    let run = workspace.trained("run", &set);
    let steps = metrics(&run);
    assert_eq!(steps.len(), 3);
    for step in steps {
        assert!(
            step["loss"].is_f64() && step["grad_norm"].as_f64() > Some(0.0),
            "{step}"
        );
        assert!(step["loss_scale"].is_null() && step["skipped"] != true, "{step}");
    }
    // Its operators can be measured, too.
    let config = run.join("config.yaml").display().to_string();
    let plan = ortdpo(&workspace.path(""))
        .args(["plan", &config, "--calibrate", "60", "--format", "json"])
        .output()
        .unwrap();
    assert!(plan.status.success(), "{}", stderr(&plan));
    let plan: serde_json::Value = serde_json::from_str(&stdout(&plan)).unwrap();
    assert!(
        plan["levels"][0]["time"]["seconds"].as_f64() > Some(0.0),
        "{plan}"
    );
}

#[test]
fn bfloat16_is_refused_where_no_provider_computes_in_it() {
    let workspace = Workspace::new();
    let set = ["runtime.mixed_precision=bf16", "runtime.ep=coreml"];
    let text = refused(&workspace.train("run", &set).output().unwrap());
    assert!(
        text.contains("is bf16, in which coreml computes nothing"),
        "{text}"
    );
    assert!(!workspace.path("run").exists());
}

#[test]
fn a_run_that_can_only_overflow_ends() {
    let workspace = Workspace::new();
    let model = half_pipeline(&workspace);
    // The first step that counts ruins the weights: from then on predictions are beyond f16.
    let ruin = [
        "optimizer.lr=1e5",
        "optimizer.schedule={kind: constant, warmup: 0}",
    ];
    let rest = [
        "guard={loss_spike: null, error_growth: null}",
        "train.eval_every=0",
        "train.steps=60",
    ];
    let set = [&[&*model, FP16], &ruin[..], &rest[..]].concat();
    let output = workspace.train("run", &set).output().unwrap();
    let text = paragraph(&output, 1);
    assert!(
        text.contains("20 steps in a row overflowed")
            && text.contains("not finite at step")
            && text.contains("lower optimizer.lr")
            && text.contains("mixed_precision: no"),
        "{text}"
    );
}

#[test]
fn an_interrupted_run_goes_on_with_its_scale() {
    let workspace = Workspace::new();
    let model = half_pipeline(&workspace);
    let set = |steps: &'static str| {
        [
            model.clone(),
            FP16.into(),
            "train.eval_every=0".into(),
            steps.to_owned(),
        ]
    };
    let given = |of: &[String; 4]| of.clone();
    let straight = given(&set("train.checkpoint_every=4"));
    let refs: Vec<&str> = straight
        .iter()
        .map(String::as_str)
        .chain(["train.steps=8"])
        .collect();
    let whole = workspace.trained("straight", &refs);
    let half: Vec<&str> = straight
        .iter()
        .map(String::as_str)
        .chain(["train.steps=4"])
        .collect();
    workspace.trained("parts", &half);
    let parts = workspace.resumed("parts", &refs);
    let checkpoint = |run: &PathBuf| run.join("checkpoints/step-8");
    let state = json(&checkpoint(&whole).join("state.json"));
    let scale = &state["loss_scale"];
    assert!(scale["good_steps"].as_u64() > Some(0) && scale["scale"].as_f64() < Some(65536.0));
    let (a, b) = (files(&checkpoint(&whole)), files(&checkpoint(&parts)));
    for (name, bytes) in a.iter().filter(|(name, _)| name.ends_with(".safetensors")) {
        assert!(b[name] == *bytes, "{name} differs");
    }
}

#[test]
fn a_reference_follows_on_its_step_also_if_that_is_skipped() {
    let workspace = Workspace::new();
    let model = half_pipeline(&workspace);
    let set = [
        &*model,
        FP16,
        "reference={update: copy, every: 12}",
        "train.eval_every=0",
    ];
    let begun = [&set[..], &["train.steps=11", "train.checkpoint_every=11"]].concat();
    let run = workspace.trained("run", &begun);
    let checkpoint = run.join("checkpoints/step-11");
    let mut state = json(&checkpoint.join("state.json"));
    state["loss_scale"]["scale"] = 16_777_216.0.into();
    fs::write(checkpoint.join("state.json"), state.to_string()).unwrap();
    let mut checksums = json(&checkpoint.join("checksums.json"));
    let checksum = blake3::hash(state.to_string().as_bytes()).to_hex();
    checksums["state.json"] = checksum.as_str().into();
    fs::write(checkpoint.join("checksums.json"), checksums.to_string()).unwrap();
    let rest = [&set[..], &["train.steps=12", "train.checkpoint_every=12"]].concat();
    workspace.resumed("run", &rest);
    assert_eq!(metrics(&run).last().unwrap()["skipped"], true);
    let read = |name: &str| fs::read(run.join("checkpoints/step-12").join(name)).unwrap();
    assert_ne!(read("policy.safetensors"), read("initial.safetensors"));
    assert_eq!(read("reference.safetensors"), read("policy.safetensors"));
}

#[test]
fn a_denoiser_in_single_precision_is_refused() {
    let workspace = Workspace::new();
    let text = refused(&workspace.train("run", &[FP16]).output().unwrap());
    assert!(
        text.contains("runtime.mixed_precision")
            && text.contains("computes in f32")
            && text.contains("--fp16"),
        "{text}"
    );
    assert!(!workspace.path("run").exists());
}
