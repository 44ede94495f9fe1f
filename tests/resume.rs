//! A run that was cut in two leaves the same bytes as one that went through, for every rule by which something moves.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::train::{Workspace, files, json, metrics, paragraph, succeeded};
use serde_json::Value;

/// Trains 40 steps at once and 20 + 20 steps, and compares everything that the two runs leave. Returns the state in
/// the last checkpoint.
fn resumes_bit_exactly(set: &[&str]) -> Value {
    let workspace = Workspace::new();
    let with = |steps: &'static str| [set, &[steps]].concat();
    let straight = workspace.trained("straight", &with("train.steps=40"));
    workspace.trained("parts", &with("train.steps=20"));
    let parts = workspace.resumed("parts", &with("train.steps=40"));
    assert_same(&left(&straight), &left(&parts));
    // Held-out pairs were scored, and the drift measured, on both sides of the cut.
    let log = metrics(&parts);
    let with = |key: &str| -> Vec<u64> {
        let lines = log.iter().filter(|line| line.get(key).is_some());
        lines.map(|line| line["step"].as_u64().unwrap()).collect()
    };
    let moves = set.iter().any(|key| key.contains("update: "));
    assert_eq!(log.len(), 40);
    assert_eq!(with("acc_init"), [10, 20, 30, 40]);
    assert!(
        !moves
            || [7, 14, 21, 28, 35]
                .iter()
                .all(|step| with("d_ref_init").contains(step))
    );
    json(&parts.join("checkpoints/step-40/state.json"))
}

/// What a run left, without what depends on the clock.
fn left(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let timeless = |(name, content): (String, Vec<u8>)| {
        let without = |keys: &[&str]| {
            let text = String::from_utf8(content.clone()).unwrap();
            keys.iter()
                .fold(text, |text, key| without_key(&text, key))
                .into_bytes()
        };
        let content = match Path::new(&name).file_name().unwrap().to_str().unwrap() {
            "state.json" | "metrics.jsonl" => without(&["seconds"]),
            "summary.json" => without(&["seconds", "peak_rss_mb"]),
            "checksums.json" => without(&["state.json"]),
            _ => content,
        };
        (name, content)
    };
    let events = |name: &str| name.starts_with("events.out.tfevents.");
    files(run)
        .into_iter()
        .filter(|(name, _)| !events(name))
        .map(timeless)
        .collect()
}

/// JSON text without the values of `key`, which are no lists or objects.
fn without_key(text: &str, key: &str) -> String {
    let key = format!("\"{key}\":");
    let mut parts = text.split(key.as_str());
    let mut kept = parts.next().unwrap().to_owned();
    for part in parts {
        kept.push_str(&part[part.find([',', '}', '\n']).unwrap()..]);
    }
    kept
}

fn assert_same(one: &BTreeMap<String, Vec<u8>>, other: &BTreeMap<String, Vec<u8>>) {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(one), names(other));
    for (name, content) in one {
        let (a, b) = (
            String::from_utf8_lossy(content),
            String::from_utf8_lossy(&other[name]),
        );
        let line = a.lines().zip(b.lines()).find(|(a, b)| a != b);
        assert!(*content == other[name], "{name} differs: {line:?}");
    }
}

#[test]
fn with_a_frozen_reference() {
    resumes_bit_exactly(&[]);
}

#[test]
fn with_a_moving_average() {
    resumes_bit_exactly(&["reference={update: ema, alpha: 0.1}"]);
}

#[test]
fn with_a_moving_average_and_the_kl_anchor() {
    resumes_bit_exactly(&["reference={update: ema, alpha: 0.1, anchor: {kind: kl}}"]);
}

#[test]
fn with_a_moving_average_and_pull() {
    resumes_bit_exactly(&["reference={update: ema, alpha: 0.1, anchor: {kind: pull}}"]);
}

#[test]
fn with_a_moving_average_behind_a_gate() {
    let gate =
        "reference={update: ema, alpha: 0.5, every: 3, anchor: {kind: gate, delta: 1.0e-6, on_trip: reinit}}";
    decided_on_both_sides(&resumes_bit_exactly(&[gate]));
}

#[test]
fn with_a_copied_reference() {
    resumes_bit_exactly(&["reference={update: copy, every: 8}"]);
}

#[test]
fn with_a_copied_reference_and_the_kl_anchor() {
    resumes_bit_exactly(&["reference={update: copy, every: 8, anchor: {kind: kl, fraction: 0.5}}"]);
}

#[test]
fn with_a_copied_reference_and_pull() {
    resumes_bit_exactly(&["reference={update: copy, every: 8, anchor: {kind: pull, strength: 0.3}}"]);
}

#[test]
fn with_a_reference_in_a_file() {
    resumes_bit_exactly(&["reference={update: ema, alpha: 0.1, storage: bf16}"]);
    resumes_bit_exactly(&["reference={update: copy, every: 8, anchor: {kind: kl}, storage: bf16}"]);
    let gate = "reference={update: ema, alpha: 0.5, every: 3, storage: bf16, anchor: {kind: gate, delta: 1.0e-6, \
                on_trip: reinit}}";
    decided_on_both_sides(&resumes_bit_exactly(&[gate]));
}

/// At such learning rates the policy, and a reference copied from it, soon get worse than the initial model.
const SPOILED: &str = "guard={loss_spike: null, error_growth: null}";

#[test]
fn with_a_gate_that_freezes() {
    let gate = "reference={update: copy, every: 4, anchor: {kind: gate, delta: 1.0e-9, on_trip: freeze}}";
    for lr in ["optimizer.lr=3e-2", "optimizer.lr=1e-2"] {
        let state = resumes_bit_exactly(&[gate, SPOILED, lr]);
        assert_eq!(state["reference"]["frozen"], true, "{lr}: {}", state["reference"]);
    }
}

#[test]
fn with_a_gate_that_reinitialises() {
    let gate = "reference={update: copy, every: 4, anchor: {kind: gate, delta: 1.0e-9, on_trip: reinit}}";
    let state = resumes_bit_exactly(&[gate, SPOILED, "optimizer.lr=3e-2"]);
    decided_on_both_sides(&state);
    for accepted in [false, true] {
        let is = |record: &Value| record["accepted"] == accepted;
        assert!(
            state["reference"]["gate"].as_array().unwrap().iter().any(is),
            "{accepted}: {state}"
        );
    }
}

fn decided_on_both_sides(state: &Value) {
    let steps: Vec<u64> = state["reference"]["gate"]
        .as_array()
        .unwrap()
        .iter()
        .map(|record| record["step"].as_u64().unwrap())
        .collect();
    assert!(
        steps.iter().any(|step| *step <= 20) && steps.iter().any(|step| *step > 20),
        "{steps:?}"
    );
}

#[test]
fn with_variance_weights_that_freeze() {
    for (steps, frozen_by) in [(10, "before the cut"), (30, "after it")] {
        let weighting = format!("{{kind: variance, decay: 0.9, warmup: 4, freeze_after: {steps}}}");
        let state = resumes_bit_exactly(&[
            &format!("timestep={{bins: 2, weighting: {weighting}}}"),
            "reference={update: ema, alpha: 0.1}",
        ]);
        let variance = &state["timestep"]["variance"];
        assert_eq!(variance["frozen"], true, "{frozen_by}");
        assert_ne!(variance["weights"][0], 1.0, "{frozen_by}");
    }
}

#[test]
fn with_every_draw_that_a_pair_can_have() {
    resumes_bit_exactly(&[
        "train={pairs_per_step: 4, accumulate: 2}",
        "data={ties: half, flip: true, crops: 2, prompt_dropout: 0.5}",
        "timestep={sampling: {kind: geometric}, reward_scale: inverse_sqrt_snr}",
        "reference={update: ema, alpha: 0.1, anchor: {kind: kl}}",
    ]);
}

#[test]
fn with_all_weights_of_the_model() {
    resumes_bit_exactly(&[
        "adapter.kind=full",
        "optimizer.lr=1e-4",
        "reference={update: ema, alpha: 0.1}",
    ]);
}

/// Where one session computes the steps and another moves the weights, which are in neither's hands.
#[test]
fn with_the_optimizer_on_the_device() {
    let on_device = [
        "adapter.kind=full",
        "optimizer.lr=1e-4",
        "runtime.optimizer=device",
    ];
    let resumes = |more: &[&str]| resumes_bit_exactly(&[&on_device, more].concat());
    resumes(&["optimizer={kind: adafactor, lr: 1.0e-5, schedule: {kind: constant, warmup: 2}}"]);
    resumes(&[
        "train={pairs_per_step: 4, accumulate: 2, policy_ema: 0.99}",
        "reference={update: ema, alpha: 0.1}",
    ]);
    decided_on_both_sides(&resumes(&[
        "reference={update: ema, alpha: 0.5, every: 3, anchor: {kind: gate, delta: 1.0e-6, on_trip: reinit}}",
    ]));
}

/// Second moments by rows and columns, of matrices and of all else that full fine-tuning trains.
#[test]
fn with_adafactor() {
    let adafactor = "optimizer={kind: adafactor, lr: 1.0e-4, schedule: {kind: constant, warmup: 2}}";
    resumes_bit_exactly(&[adafactor, "reference={update: ema, alpha: 0.2}"]);
    let all = r#"adapter={kind: full, targets: ["*norm*", "*attn1*", "conv_in*"]}"#;
    resumes_bit_exactly(&[adafactor, all]);
}

#[test]
fn with_supervised_fine_tuning() {
    resumes_bit_exactly(&["objective.kind=sft"]);
}

/// Rounds of about six steps, so that the cut is in the middle of one.
fn with_rollouts(objective: &str) {
    let reward = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-rewards/clip");
    let state = resumes_bit_exactly(&[
        &format!("objective={objective}"),
        &format!(
            "rollout={{steps: 4, images_per_prompt: 3, guidance: 2, reward: {}}}",
            reward.display()
        ),
        "buffer={prompts: 2, steps_per_image: 2, history: 4, min_count: 2}",
        "reference={update: ema, alpha: 0.1}",
        "timestep={bins: 2, weighting: {kind: variance, warmup: 4}}",
        SPOILED,
    ]);
    // Images with equal rewards make no pairs, so that rounds of pairs may be longer or shorter.
    let round = state["rollouts"]["round"].as_u64().unwrap();
    assert!((5..=10).contains(&round), "{round}");
}

#[test]
fn with_pairs_of_generated_images() {
    with_rollouts("{kind: online_dpo}");
}

#[test]
fn with_pairs_of_denoising_steps() {
    with_rollouts("{kind: d3po}");
}

#[test]
fn with_pairs_of_steps_that_were_tried() {
    with_rollouts("{kind: spo, candidates: 3, skip: 1}");
}

#[test]
fn with_advantages_over_a_prompts_own_past() {
    with_rollouts("{kind: ddpo, kl: 0.1, clip: 0.1}");
}

#[test]
fn with_a_value_network() {
    with_rollouts("{kind: dpok, clip: 0.1}");
}

/// A schedule that depends on the length of the run, so that the cut cannot be the end of a shorter run.
const COSINE: [&str; 4] = [
    "train={steps: 60, eval_every: 25, keep: 9}",
    "optimizer.schedule={kind: cosine, warmup: 5}",
    "reference={update: ema, alpha: 0.1, anchor: {kind: kl}}",
    "timestep={bins: 2, weighting: {kind: variance, warmup: 4}}",
];

/// Starts a run and waits until it has taken `steps` steps.
fn under_way(workspace: &Workspace, output: &str, set: &[&str], steps: usize) -> Child {
    let mut child = workspace
        .train(output, set)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = workspace.path(output).join("metrics.jsonl");
    let done = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    while done() < steps && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

/// Interrupts a run after `after` steps, resumes it, and compares with one that went through.
#[cfg(unix)]
fn goes_on_after_ctrl_c(set: &[&str], after: usize) {
    let workspace = Workspace::new();
    let straight = workspace.trained("straight", set);
    let child = under_way(&workspace, "parts", set, after);
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let text = paragraph(&child.wait_with_output().unwrap(), 130);
    let parts = workspace.path("parts");
    let step = metrics(&parts).len();
    assert!(
        (after..60).contains(&step),
        "the run was over before it could be interrupted"
    );
    assert_eq!(
        text,
        format!("error: interrupted: stopped after step {step}; go on with the same command and --resume\n")
    );
    let interrupted = format!("checkpoints/step-{step}");
    assert_eq!(json(&parts.join(&interrupted).join("state.json"))["step"], step);
    assert!(!parts.join("summary.json").exists());
    workspace.resumed("parts", set);
    if !step.is_multiple_of(20) {
        fs::remove_dir_all(parts.join(interrupted)).unwrap();
    }
    assert_same(&left(&straight), &left(&parts));
}

#[cfg(unix)]
#[test]
fn after_ctrl_c() {
    goes_on_after_ctrl_c(&COSINE, 3);
}

/// Rounds take most of the time here, so that is where the run is interrupted: right behind the last step of one.
#[cfg(unix)]
#[test]
fn after_ctrl_c_while_images_were_made() {
    let reward = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-rewards/clip");
    let rollout = format!(
        "rollout={{steps: 30, images_per_prompt: 6, guidance: 2, reward: {}}}",
        reward.display()
    );
    let set = [
        "train={steps: 60, eval_every: 25, keep: 9}",
        "objective={kind: ddpo}",
        &rollout,
        "buffer={prompts: 2, steps_per_image: 2}",
    ];
    goes_on_after_ctrl_c(&set, 12);
}

/// The run is gone in an instant, as when the power fails: what came after the last checkpoint is done again.
#[test]
fn after_the_run_was_killed() {
    let workspace = Workspace::new();
    let straight = workspace.trained("straight", &COSINE);
    let mut child = under_way(&workspace, "parts", &COSINE, 23);
    child.kill().unwrap();
    assert!(
        !child.wait().unwrap().success(),
        "the run was over before it could be killed"
    );
    workspace.resumed("parts", &COSINE);
    assert_same(&left(&straight), &left(&workspace.path("parts")));
}

/// As when a run is killed between its last checkpoint and its results.
#[test]
fn when_only_the_results_are_missing() {
    let workspace = Workspace::new();
    let run = workspace.trained("run", &COSINE);
    let whole = left(&run);
    for name in ["summary.json", "pytorch_lora_weights.safetensors"] {
        fs::remove_file(run.join(name)).unwrap();
    }
    succeeded(&workspace.train("run", &COSINE).arg("--resume").output().unwrap());
    assert_same(&whole, &left(&run));
    assert!(json(&run.join("summary.json"))["final"]["acc_init"].is_f64());
}

#[test]
fn with_pictures_an_average_of_the_policy_and_the_best_kept() {
    let state = resumes_bit_exactly(&[
        "samples={prompts: [a cat, a dog on the left], images_per_prompt: 3, steps: 3, guidance: 2}",
        "train.policy_ema=0.8",
        "train.keep_best=margin_init",
        "train.keep=1",
    ]);
    assert!(state["best"]["value"].is_f64());
}
