//! What a run leaves when all goes well.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;

use super::common::train::{Workspace, files, json, metrics};
use super::common::{fixtures, stderr, stdout};
use super::says;

const RULES: [&str; 2] = [
    "reference={update: ema, alpha: 0.1, anchor: {kind: kl}}",
    "timestep.weighting.kind=variance",
];

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn set<'a>(names: &[&'a str]) -> BTreeSet<&'a str> {
    names.iter().copied().collect()
}

#[test]
fn the_folder_holds_all_that_belongs_there() {
    let workspace = Workspace::new();
    let run = workspace.trained("run", &RULES);
    let events = |name: &String| name.starts_with("events.out.tfevents.");
    let names: Vec<String> = files(&run).into_keys().collect();
    assert_eq!(names.iter().filter(|name| events(name)).count(), 1);
    let checkpoint = [
        "checksums.json",
        "first_moment.safetensors",
        "initial.safetensors",
        "policy.safetensors",
        "reference.safetensors",
        "second_moment.safetensors",
        "state.json",
    ]
    .map(|name| format!("checkpoints/step-20/{name}"));
    let results = [
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "pytorch_lora_weights.safetensors",
        "summary.json",
    ];
    let expected: BTreeSet<String> = checkpoint.into_iter().chain(results.map(str::to_owned)).collect();
    assert_eq!(
        names
            .into_iter()
            .filter(|name| !events(name))
            .collect::<BTreeSet<_>>(),
        expected
    );
}

#[test]
fn the_configuration_is_the_resolved_one() {
    let workspace = Workspace::new();
    let run = workspace.trained("run", &["train.steps=1"]);
    let printed = workspace
        .train("run", &["train.steps=1"])
        .arg("--print-config")
        .output()
        .unwrap();
    assert_eq!(
        fs::read_to_string(run.join("config.yaml")).unwrap(),
        stdout(&printed)
    );
    // It can be resumed with, as `--help` says.
    workspace.resumed("run", &["train.steps=2"]);
    assert!(
        fs::read_to_string(run.join("config.yaml"))
            .unwrap()
            .contains("steps: 2\n")
    );
}

#[test]
fn every_step_has_its_line() {
    let workspace = Workspace::new();
    let log = metrics(&workspace.trained("run", &RULES));
    let always = set(&[
        "step",
        "loss",
        "lr",
        "acc",
        "margin",
        "e_w",
        "e_l",
        "ref_e_w",
        "ref_e_l",
        "grad_norm",
        "grad_factor",
        "weight_mean",
        "seconds",
        "beta",
        "beta_effective",
        "anchor_loss",
        "anchor_grad_ratio",
    ]);
    let drift = set(&["kl_ref_init", "d_ref_init"]);
    let scores = set(&["acc_init", "margin_init", "acc_ref", "margin_ref", "bins"]);
    assert_eq!(log.len(), 20);
    for (line, step) in log.iter().zip(1..) {
        let mut expected = always.clone();
        if step % 7 == 0 {
            expected.extend(&drift);
        }
        if step % 10 == 0 {
            expected.extend(&scores);
            let bins = line["bins"].as_array().unwrap();
            assert_eq!(bins.len(), 10);
            assert!(
                bins.iter()
                    .all(|bin| keys(bin) == set(&["p", "w", "v", "margin", "acc"]))
            );
        }
        assert_eq!((keys(line), &line["step"]), (expected, &step.into()));
    }
    // Supervised fine-tuning has neither pairs nor a reference; the keys stay.
    let log = metrics(&workspace.trained("sft", &["objective.kind=sft", "train.steps=1"]));
    for key in ["acc", "margin", "e_l", "ref_e_w", "ref_e_l", "grad_factor"] {
        assert!(log[0].get(key).is_some_and(Value::is_null), "{key}");
    }
}

#[test]
fn the_summary_compares_before_and_after() {
    let workspace = Workspace::new();
    let summary = json(&workspace.trained("run", &RULES).join("summary.json"));
    let scores = set(&["acc_init", "margin_init", "acc_ref", "margin_ref"]);
    assert_eq!(
        (keys(&summary["initial"]), keys(&summary["final"])),
        (scores.clone(), scores)
    );
    let expected = [
        "initial",
        "final",
        "ceiling_acc",
        "steps",
        "seconds",
        "peak_rss_mb",
        "versions",
        "config_hash",
        "data",
    ];
    assert!(set(&expected).is_subset(&keys(&summary)), "{summary}");
    assert!(
        set(&["hash", "pairs", "ties", "skipped"]).is_subset(&keys(&summary["data"])),
        "{summary}"
    );
    assert_eq!(summary["initial"]["acc_init"], 0.5);
    assert_eq!(summary["steps"], 20);
    // Two held-out pairs are no ties: the scores of one say what its label says, those of the other are equal.
    assert_eq!(
        (&summary["data"]["heldout_pairs"], &summary["ceiling_acc"]),
        (&2.into(), &0.75.into())
    );
}

/// Data of the records of an event file; lengths and places of the checksums are checked, the checksums themselves
/// where they are written.
fn records(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let (mut rest, mut found) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        found.push(rest[12..12 + length].to_vec());
        rest = &rest[12 + length + 4..];
    }
    found
}

#[test]
fn tensorboard_gets_a_record_a_step() {
    let workspace = Workspace::new();
    let run = workspace.trained("run", &RULES);
    let events = files(&run)
        .into_keys()
        .find(|name| name.starts_with("events.out.tfevents."))
        .unwrap();
    let records = records(&run.join(events));
    // The version, the scores before the first step, the steps.
    assert_eq!(records.len(), 1 + 1 + 20);
    let holds = |record: usize, tag: &str| {
        records[record]
            .windows(tag.len())
            .any(|part| part == tag.as_bytes())
    };
    assert!(holds(0, "brain.Event:2") && holds(1, "heldout/acc_init") && !holds(1, "train/loss"));
    assert!(holds(2, "train/loss") && !holds(2, "heldout/acc_init"));
    assert!(holds(11, "heldout/acc_init") && holds(11, "bin_09/w") && holds(8, "reference/d_ref_init"));
}

#[test]
fn the_adapter_holds_its_scale() {
    let workspace = Workspace::new();
    let run = workspace.trained("run", &["adapter={rank: 2, alpha: 5}", "train.steps=2"]);
    let bytes = fs::read(run.join("pytorch_lora_weights.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let config: Value = serde_json::from_str(&metadata["lora_adapter_metadata"]).unwrap();
    assert_eq!(
        (&config["unet.lora_alpha"], &config["unet.r"]),
        (&5.0.into(), &2.into())
    );
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let adapted = |name: &String| {
        ["to_q", "to_k", "to_v", "to_out.0"]
            .iter()
            .any(|target| name.ends_with(&format!(".{target}.weight")))
    };
    let factors = |name: String| {
        let module = name.strip_suffix(".weight").unwrap().to_owned();
        ["lora_A", "lora_B"].map(|factor| format!("unet.{module}.{factor}.weight"))
    };
    let modules = parameters().into_iter().map(|(name, _)| name).filter(adapted);
    let expected: BTreeSet<String> = modules.flat_map(factors).collect();
    assert_eq!(
        tensors
            .names()
            .into_iter()
            .map(str::to_owned)
            .collect::<BTreeSet<_>>(),
        expected
    );
    assert!(
        expected
            .iter()
            .all(|name| tensors.tensor(name).unwrap().shape()[usize::from(name.contains("lora_B"))] == 2)
    );
}

/// Names and shapes in a safetensors file, of those with this prefix, which is taken off.
fn shapes(path: &Path, prefix: &str) -> BTreeSet<(String, Vec<usize>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let of = |(name, view): (String, safetensors::tensor::TensorView)| {
        Some((name.strip_prefix(prefix)?.to_owned(), view.shape().to_vec()))
    };
    file.tensors().into_iter().filter_map(of).collect()
}

/// Names and shapes of the UNet's parameters in PyTorch, as recorded beside the model with their gradients.
fn parameters() -> BTreeSet<(String, Vec<usize>)> {
    shapes(&fixtures().join("optimum-sd/unet/gradients.safetensors"), "grad.")
}

#[test]
fn full_fine_tuning_leaves_all_weights_under_pytorchs_names() {
    let workspace = Workspace::new();
    let run = workspace.trained("run", &["adapter.kind=full", "train.steps=2"]);
    assert!(!run.join("pytorch_lora_weights.safetensors").exists());
    assert_eq!(
        shapes(&run.join("diffusion_pytorch_model.safetensors"), ""),
        parameters()
    );
}

/// Optimum's UNet takes one timestep for the whole batch. If that were all it got, a step's pairs would be noised for
/// other timesteps than the UNet is told, unless they are computed one by one.
#[test]
fn every_pair_of_a_batch_has_its_own_timestep() {
    let workspace = Workspace::new();
    let errors = |output: &str, train: &str| -> Vec<f64> {
        let still = ["optimizer.lr=0", "data.prompt_dropout=0", train];
        let log = metrics(&workspace.trained(output, &still));
        log.iter()
            .flat_map(|line| ["e_w", "e_l"].map(|key| line[key].as_f64().unwrap()))
            .collect()
    };
    let together = errors("together", "train={steps: 3, pairs_per_step: 4}");
    let one_by_one = errors("one-by-one", "train={steps: 3, pairs_per_step: 4, accumulate: 4}");
    for (together, alone) in together.iter().zip(&one_by_one) {
        assert!(
            (together - alone).abs() < 1e-5 * alone,
            "{together} instead of {alone}"
        );
    }
    // Errors do depend on the timestep that the UNet is told: this model's are far from alike.
    let spread = together
        .iter()
        .fold(0.0, |most: f64, e| most.max((e - together[0]).abs()));
    assert!(spread > 1e-2, "{together:?}");
}

/// The first pair of four, whether they are computed together or one by one.
#[test]
fn the_kl_anchor_takes_the_same_share_of_a_batch_in_parts() {
    let workspace = Workspace::new();
    let anchors = |output: &str, train: &str, fraction: &str| -> Vec<f64> {
        let kl = format!("reference={{update: ema, alpha: 0.3, anchor: {{kind: kl, fraction: {fraction}}}}}");
        let log = metrics(&workspace.trained(output, &["data.prompt_dropout=0", train, &kl]));
        log.iter()
            .map(|line| line["anchor_loss"].as_f64().unwrap())
            .collect()
    };
    let together = anchors("together", "train={steps: 3, pairs_per_step: 4}", "0.25");
    let parts = "train={steps: 3, pairs_per_step: 4, accumulate: 4}";
    let one_by_one = anchors("one-by-one", parts, "0.25");
    let all = anchors("all", parts, "1");
    // Before the first update the reference is the initial policy.
    for k in 1..3 {
        assert!(
            (together[k] - one_by_one[k]).abs() < 1e-3 * together[k],
            "{one_by_one:?} instead of {together:?}"
        );
        assert!((all[k] - together[k]).abs() > 1e-2 * together[k], "{all:?}");
    }
}

#[test]
fn a_user_who_looks_on_sees_what_happens() {
    let workspace = Workspace::new();
    let output = workspace.talking("run", &["train.steps=3"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    says(
        &stderr(&output),
        &[
            "2 pairs a step, effective learning rate 1.00e-3",
            "1 of 3 captions are longer than 16 tokens and are cut",
            "step 0: held out, against the initial model: acc 0.500",
            "train 3/3  loss ",
            "checkpoint run/checkpoints/step-3",
        ],
    );
    says(
        &stdout(&output),
        &[
            "acc_init",
            "before",
            "after",
            "ceiling",
            "run: results, metrics and checkpoints",
        ],
    );
    let output = workspace
        .talking("run", &["train.steps=4"])
        .arg("--resume")
        .output()
        .unwrap();
    says(&stderr(&output), &["resumed after step 3", "train 4/4  loss "]);
}
