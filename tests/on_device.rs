//! The optimizer on the device against the optimizer on the host: the same steps but for rounding. The device is the CPU here, on
//! which the same graphs run over the same kinds of buffers.

mod common;

use std::path::Path;

use common::train::{Workspace, metrics, refused};
use ortdpo::params::ParamSet;

const STEPS: usize = 12;

const SAVED: [&str; 5] = ["policy", "reference", "first_moment", "second_moment", "average"];

/// Largest difference between the sets of a name in two checkpoints, as a share of the set's largest value; `None` where neither
/// has it.
fn difference(one: &Path, other: &Path, name: &str) -> Option<f64> {
    let file = |run: &Path| run.join(format!("checkpoints/step-{STEPS}/{name}.safetensors"));
    assert_eq!(file(one).exists(), file(other).exists(), "{name}");
    if !file(one).exists() {
        return None;
    }
    let [one, other] = [one, other].map(|run| ParamSet::load_any(&file(run)).unwrap());
    let size = one.values().iter().fold(0.0f32, |max, v| max.max(v.abs()));
    assert!(size > 0.0, "{name} is nothing but zeros");
    let pairs = one.values().iter().zip(other.values());
    let furthest = pairs.fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
    Some(f64::from(furthest / size))
}

/// Trains on host and device, and compares what moves and what was measured. Returns the names of what was compared.
fn agree(set: &[&str]) -> Vec<&'static str> {
    let workspace = Workspace::new();
    let always = [
        "adapter.kind=full",
        // With a large ε, steps are as smooth as gradients: else values of no gradient to speak of follow its rounding.
        "optimizer={lr: 1.0e-2, eps: 1.0e-3, clip_norm: 0.002, weight_decay: 0.1}",
        "train.steps=12",
        "train.eval_every=4",
        "train.checkpoint_every=12",
    ];
    let run = |place: &str| {
        let place = format!("runtime.optimizer={place}");
        let set = [&always, set, &[place.as_str()]].concat();
        workspace.trained(&place[18..], &set)
    };
    let (host, device) = (run("host"), run("device"));
    let compared = SAVED
        .into_iter()
        .filter(|name| match difference(&host, &device, name) {
            Some(found) => {
                // β makes much of the rounding of errors, and gradients feel it.
                let allowed = if name.ends_with("moment") { 3e-3 } else { 2e-5 };
                assert!(
                    found < allowed,
                    "{name} differs by {found:e} of its size under {set:?}"
                );
                true
            }
            None => false,
        });
    let compared = compared.collect();
    let (host, device) = (metrics(&host), metrics(&device));
    assert_eq!(host.len(), STEPS);
    for (step, (one, other)) in host.iter().zip(&device).enumerate() {
        for key in ["loss", "grad_norm", "margin_init", "d_ref_init"] {
            // Differences of errors are known no better than the errors themselves.
            let rounding = match key {
                "margin_init" | "d_ref_init" => 1e-6 * one["e_w"].as_f64().unwrap(),
                _ => 1e-7,
            };
            let [one, other] = [one, other].map(|line| line.get(key).and_then(serde_json::Value::as_f64));
            let (Some(one), Some(other)) = (one, other) else {
                assert_eq!(one, other, "{key} after step {step}");
                continue;
            };
            let apart = (one - other).abs();
            assert!(
                apart <= 1e-3 * one.abs() + rounding,
                "{key} after step {step}: {one} and {other}"
            );
        }
    }
    compared
}

#[test]
fn with_a_reference_that_follows_and_is_pulled_back() {
    let compared = agree(&["reference={update: ema, alpha: 0.1, anchor: {kind: pull, strength: 0.3}}"]);
    assert_eq!(compared, SAVED[..4]);
}

#[test]
fn with_several_parts_an_average_and_a_copied_reference() {
    let compared = agree(&[
        "train.pairs_per_step=6",
        "train.accumulate=3",
        "train.policy_ema=0.9",
        "reference={update: copy, every: 5}",
    ]);
    assert_eq!(compared, SAVED);
}

#[test]
fn with_a_gate_that_decides_on_the_host() {
    agree(&[
        "reference={update: ema, alpha: 0.5, every: 3, anchor: {kind: gate, delta: 1.0e-6, on_trip: reinit}}",
    ]);
}

/// Which takes its step on the host.
#[test]
fn with_adafactor() {
    agree(&[
        "optimizer={kind: adafactor, lr: 1.0e-4}",
        "train.pairs_per_step=4",
        "train.accumulate=2",
        "reference={update: ema, alpha: 0.1}",
    ]);
}

#[test]
fn with_means_over_the_batch() {
    agree(&[
        "objective={kind: kto, beta: 50}",
        "train.pairs_per_step=4",
        "train.accumulate=2",
    ]);
}

#[test]
fn without_a_reference_and_with_factors() {
    agree(&["objective.kind=sft", "adapter={kind: lora, rank: 2}"]);
}

/// The norm that clipping needs is worked out on the host, where the device's squares overflow.
#[test]
fn the_norm_of_a_huge_gradient_is_found() {
    let workspace = Workspace::new();
    let norm = |place: &str| {
        let place = format!("runtime.optimizer={place}");
        let huge = "objective={kind: dpo, beta: 1.0e+38}";
        let set = [
            "adapter.kind=full",
            "train.steps=1",
            "train.eval_every=0",
            huge,
            &place,
        ];
        let run = workspace.trained(&place[18..], &set);
        metrics(&run)[0]["grad_norm"].as_f64().unwrap()
    };
    let (host, device) = (norm("host"), norm("device"));
    assert!(
        host > 1e30 && (host / device - 1.0).abs() < 1e-5,
        "{host:e} {device:e}"
    );
}

#[test]
fn what_stays_on_the_host_says_so() {
    let workspace = Workspace::new();
    for (set, why) in [
        (
            "reference={update: ema, alpha: 0.1, anchor: {kind: kl}}",
            "the kl anchor",
        ),
        (
            "reference={update: ema, alpha: 0.1, storage: bf16}",
            "reference.storage",
        ),
    ] {
        let set = ["adapter.kind=full", "runtime.optimizer=device", set];
        let said = refused(&workspace.train("run", &set).output().unwrap());
        assert!(
            said.starts_with("error: runtime.optimizer: is device, but ") && said.contains(why),
            "{said}"
        );
        assert!(!workspace.path("run").exists());
    }
}
