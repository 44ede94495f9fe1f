//! Online objectives from end to end: the images they learn from are those that `ortdpo generate` makes, and ratings of people
//! stand in for a reward model.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::train::{Workspace, json, metrics, refused, succeeded};
use common::{fixtures, ortdpo};
use serde_json::Value;

const PROMPTS: [&str; 3] = ["a cat", "two dogs, one of them asleep", "a rocket"];

fn reward() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-rewards/clip")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The keys of a run with one round: all prompts, two images of each.
fn one_round(objective: &str, source: &str) -> Vec<String> {
    vec![
        format!("objective={{kind: {objective}}}"),
        format!("rollout={{prompts: prompts.txt, steps: 4, guidance: 2, images_per_prompt: 2, {source}}}"),
        "buffer={prompts: 3, steps_per_image: 4}".to_owned(),
        "train={steps: 6, pairs_per_step: 2, eval_every: 0, eval_pairs: 1, checkpoint_every: 0}".to_owned(),
        "seed=5".to_owned(),
    ]
}

fn as_str(set: &[String]) -> Vec<&str> {
    set.iter().map(String::as_str).collect()
}

fn workspace() -> Workspace {
    let workspace = Workspace::new();
    fs::write(workspace.path("prompts.txt"), PROMPTS.join("\n")).unwrap();
    workspace
}

/// Images of the same prompts and noise, made and rated by the program's other commands, with the ratings by file.
fn rated_images(workspace: &Workspace) -> Vec<(Value, f64)> {
    let run = |args: &[&str]| -> Output { ortdpo(workspace.path("").as_path()).args(args).output().unwrap() };
    let model = fixtures().join("optimum-sd").display().to_string();
    let made = run(&[
        "generate",
        "--model",
        &model,
        "--prompts",
        "prompts.txt",
        "--output",
        "images",
        "--steps",
        "4",
        "--guidance",
        "2",
        "--sampler",
        "ddim",
        "--eta",
        "1",
        "--seed",
        "5",
        "--images-per-prompt",
        "2",
        "--batch",
        "3",
        "--quiet",
    ]);
    succeeded(&made);
    let reward = reward().display().to_string();
    let scored = run(&[
        "score",
        "--reward",
        &reward,
        "--images",
        "images",
        "--format",
        "json",
        "--output",
        "scores.json",
        "--quiet",
    ]);
    succeeded(&scored);
    let scores = json(&workspace.path("scores.json"));
    let rows = scores["rows"]
        .as_array()
        .unwrap_or_else(|| scores.as_array().unwrap());
    let score = |file: &str| {
        let name = Path::new(file).file_name().unwrap();
        let of_file = |row: &&Value| Path::new(row["file"].as_str().unwrap()).file_name().unwrap() == name;
        rows.iter().find(of_file).unwrap()["clip"].as_f64().unwrap()
    };
    lines(&workspace.path("images/images.jsonl"))
        .into_iter()
        .map(|record| {
            let score = score(record["file"].as_str().unwrap());
            (record, score)
        })
        .collect()
}

#[test]
fn a_round_is_made_of_the_images_that_generate_makes() {
    let workspace = workspace();
    let images = rated_images(&workspace);
    assert_eq!(images.len(), 6);
    let mean = images.iter().map(|(_, score)| score).sum::<f64>() / 6.0;
    let deviation = (images
        .iter()
        .map(|(_, score)| (score - mean).powi(2))
        .sum::<f64>()
        / 6.0)
        .sqrt();
    let set = one_round("ddpo", &format!("reward: {}", reward().display()));
    let run = workspace.trained("run", &as_str(&set));
    let first = &metrics(&run)[0];
    assert_eq!(first["rollout_round"], 1);
    let [found_mean, found_deviation] =
        ["rollout_reward", "rollout_reward_sd"].map(|key| first[key].as_f64().unwrap());
    // Pixels differ by rounding, scores by what comes of it.
    assert!(
        (found_mean - mean).abs() < 0.1 * deviation,
        "{found_mean} instead of {mean}"
    );
    assert!(
        (found_deviation - deviation).abs() < 0.1 * deviation,
        "{found_deviation} instead of {deviation}"
    );
    // The policy is the one that took the steps, so all ratios are 1 and the loss is minus the mean advantage.
    let state = json(&run.join("checkpoints/step-6/state.json"));
    let items = state["rollouts"]["items"].as_array().unwrap();
    let advantage: f64 = items[..2]
        .iter()
        .map(|item| item["advantage"].as_f64().unwrap())
        .sum::<f64>()
        / 2.0;
    let loss = first["loss"].as_f64().unwrap();
    assert!(
        (loss + advantage).abs() < 1e-4,
        "loss {loss}, mean advantage {advantage}"
    );
}

#[test]
fn labels_stand_in_for_a_reward_model() {
    let workspace = workspace();
    let labelled: Vec<String> = rated_images(&workspace)
        .into_iter()
        .map(|(mut record, score)| {
            record["label"] = score.into();
            record.to_string()
        })
        .collect();
    fs::write(workspace.path("labels.jsonl"), labelled.join("\n")).unwrap();
    let by_reward = one_round("d3po", &format!("reward: {}", reward().display()));
    let by_labels = one_round("d3po", "labels: labels.jsonl");
    let runs = [("by-reward", by_reward), ("by-labels", by_labels)];
    let logs = runs.map(|(name, set)| metrics(&workspace.trained(name, &as_str(&set))));
    let numbers = |log: &[Value]| -> Vec<[f64; 4]> {
        let of = |line: &Value| ["loss", "e_w", "e_l", "grad_norm"].map(|key| line[key].as_f64().unwrap());
        log.iter().map(of).collect()
    };
    let [first, second] = [numbers(&logs[0]), numbers(&logs[1])];
    // Three pairs with three steps that have a density are four optimizer steps; the next round is of the trained policy in the
    // one run, and of the initial one in the other.
    assert_eq!(first.len(), 6);
    assert_ne!(first[4], second[4]);
    assert!((first[0][0] - 2f64.ln()).abs() < 1e-6, "{first:?}");
    for (a, b) in first.iter().zip(&second).take(4) {
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= 1e-9 * a.abs(), "{first:?} {second:?}");
        }
    }
}

#[test]
fn labels_of_images_made_otherwise_are_refused() {
    let workspace = workspace();
    let images = rated_images(&workspace).into_iter();
    let labelled: Vec<String> = images
        .map(|(mut record, score)| {
            record["label"] = score.into();
            record.to_string()
        })
        .collect();
    fs::write(workspace.path("images/labels.jsonl"), labelled.join("\n")).unwrap();
    let labels = "labels: images/labels.jsonl";
    workspace.trained("run", &as_str(&one_round("d3po", labels)));
    for (other, wanted) in [
        (
            "eta: 0.5",
            "generate.json: the labelled images were made with eta 1.0, and rollouts would be with 0.5",
        ),
        ("negative: blurry", "negative prompt None"),
    ] {
        let set = one_round("d3po", &format!("{labels}, {other}"));
        let text = refused(&workspace.train("other", &as_str(&set)).output().unwrap());
        assert!(text.contains(wanted), "{text}");
        assert!(!workspace.path("other").exists());
    }
}

/// Without preference pairs: the same images, the same steps; drift is measured on images of the initial policy, and a run goes
/// on as it would have.
#[test]
fn prompts_are_enough() {
    let workspace = workspace();
    let mut set = one_round("d3po", &format!("reward: {}", reward().display()));
    set.push("reference={update: ema, alpha: 0.1, measure_every: 3, probe: 5}".to_owned());
    set.push("train.checkpoint_every=3".to_owned());
    let with_pairs = metrics(&workspace.trained("with-pairs", &as_str(&set)));
    set.push("data.path=''".to_owned());
    let run = workspace.trained("without", &as_str(&set));
    let without = metrics(&run);
    assert_eq!(without.len(), 6);
    for (a, b) in with_pairs.iter().zip(&without) {
        for key in ["loss", "e_w", "grad_norm"] {
            assert_eq!(a[key], b[key], "{key}");
        }
    }
    assert!(with_pairs[5]["acc_init"].is_number() && without[5]["acc_init"].is_null());
    let drift = |log: &[Value]| log[5]["kl_ref_init"].as_f64().unwrap();
    assert!(drift(&without) > 0.0);
    assert_ne!(drift(&without), drift(&with_pairs));
    let weights = || fs::read(run.join("pytorch_lora_weights.safetensors")).unwrap();
    let whole = weights();
    fs::remove_dir_all(run.join("checkpoints/step-6")).unwrap();
    fs::remove_file(run.join("pytorch_lora_weights.safetensors")).unwrap();
    workspace.resumed("without", &as_str(&set));
    assert_eq!(weights(), whole);
    assert_eq!(drift(&metrics(&run)), drift(&without));
}

#[test]
fn what_cannot_be_learnt_from_is_refused() {
    let workspace = workspace();
    let reward = format!("rollout.reward={}", reward().display());
    for (set, wanted) in [
        (
            vec!["objective.kind=ddpo", "rollout.eta=0"],
            "rollout.eta: is 0, but objective ddpo needs steps that have a density",
        ),
        (
            vec!["objective.kind=d3po", "rollout.images_per_prompt=1"],
            "compares images of a prompt",
        ),
        (
            vec!["objective={kind: spo, skip: 20}"],
            "objective.skip: is 20, and a trajectory has 20 steps",
        ),
        (vec!["objective.kind=ddpo", "rollout.reward=klip"], "reward klip"),
        (
            vec!["objective.kind=ddpo", "reference.update=ema"],
            "objective ddpo has no reference",
        ),
        (
            vec!["objective.kind=dpok", "rollout.prompts=absent.txt"],
            "absent.txt",
        ),
        (
            vec!["objective.kind=d3po", "rollout.labels=absent.jsonl"],
            "absent.jsonl",
        ),
        (
            vec!["objective.kind=online_dpo", "buffer.prompts=0"],
            "buffer.prompts: is 0",
        ),
        (
            vec!["objective.kind=ddpo", "data.path=''"],
            "data.path: is not set. Give the folder with the preference pairs, or prompts for rollouts: rollout.prompts.",
        ),
        (
            vec![
                "objective.kind=dpo",
                "data.path=''",
                "rollout.prompts=prompts.txt",
            ],
            "data.path: is not set",
        ),
    ] {
        let mut set = set;
        if !set.iter().any(|key| key.starts_with("rollout.reward")) {
            set.push(&reward);
        }
        let text = refused(&workspace.train("run", &set).output().unwrap());
        assert!(text.contains(wanted), "{text}");
        assert!(!workspace.path("run").exists(), "{set:?}");
    }
}
