//! Runs that cannot be resumed. None of them is changed by the attempt.

use std::fs;
use std::path::Path;

use super::common::fixtures;
use super::common::train::{Workspace, copy, files, refused};
use super::says;

/// A finished run of four steps with checkpoints after two and four.
const RUN: [&str; 2] = ["train.steps=4", "train.checkpoint_every=2"];

/// What is said when the run is resumed with other keys; it stays as it is.
fn refuses(workspace: &Workspace, set: &[&str]) -> String {
    let run = workspace.path("run");
    let before = files(&run);
    let set = [&RUN[..], set].concat();
    let text = refused(&workspace.train("run", &set).arg("--resume").output().unwrap());
    assert!(files(&run) == before, "the run was changed: {text}");
    text
}

#[test]
fn under_another_configuration() {
    let workspace = Workspace::new();
    workspace.trained("run", &RUN);
    says(
        &refuses(&workspace, &["objective.beta=500", "optimizer.schedule.warmup=3"]),
        &[
            "checkpoints/step-4: belongs to another configuration: ",
            "objective.beta (2000.0 there, 500.0 here), optimizer.schedule.warmup (2 there, 3 here)",
            "Resume with the config.yaml of that run",
        ],
    );
    says(
        &refuses(&workspace, &["train.steps=3"]),
        &[
            "train.steps: is 3, but ",
            "the checkpoint after step 4. Give at least 4",
        ],
    );
}

#[test]
fn with_another_model() {
    let workspace = Workspace::new();
    workspace.trained("run", &RUN);
    let model = format!("model={}", workspace.path("model").display());
    let change = |file: &str, from: &str, to: &str| {
        copy(&fixtures().join("optimum-sd"), &workspace.path("model"));
        let path = workspace.path("model").join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} holds no {from}");
        fs::write(&path, text.replace(from, to)).unwrap();
    };
    for (file, from, to, component) in [
        ("scheduler/scheduler_config.json", "0.012", "0.013", "scheduler"),
        ("vae_encoder/config.json", "0.18215", "0.2", "vae_encoder"),
        ("tokenizer/merges.txt", "b a\nd c", "d c\nb a", "tokenizer"),
        ("unet/config.json", "{", "{ ", "unet"),
    ] {
        change(file, from, to);
        says(
            &refuses(&workspace, &[&model]),
            &[
                "checkpoints/step-4: belongs to another model: ",
                &format!("the files of {component} differ. Give the model that the run began with"),
            ],
        );
    }
    // Where the model lies is of no account.
    copy(&fixtures().join("optimum-sd"), &workspace.path("model"));
    workspace.resumed("run", &[&RUN[..], &[&model]].concat());
}

#[test]
fn with_other_data() {
    let workspace = Workspace::new();
    workspace.trained("run", &RUN);
    let other = format!("data.path={}", fixtures().join("pairs/broken").display());
    says(
        &refuses(&workspace, &[&other, "data.max_skipped_share=0.1"]),
        &[
            "checkpoints/step-4: belongs to other data: ",
            "Give the pairs that the run began with",
        ],
    );
}

#[test]
fn where_there_is_no_checkpoint() {
    let workspace = Workspace::new();
    let resume = || refused(&workspace.train("run", &RUN).arg("--resume").output().unwrap());
    let expected = [
        "run: holds no checkpoint, so there is nothing to resume.",
        "without --resume",
    ];
    says(&resume(), &expected);
    assert!(!workspace.path("run").exists());
    fs::create_dir_all(workspace.path("run/checkpoints/.unfinished-2")).unwrap();
    says(&resume(), &expected);
}

#[test]
fn from_a_damaged_checkpoint() {
    let workspace = Workspace::new();
    let run = workspace.trained("run", &RUN);
    let straight = fs::read(run.join("pytorch_lora_weights.safetensors")).unwrap();
    let newest = run.join("checkpoints/step-4");
    for (name, place) in [
        ("policy.safetensors", usize::MAX),
        ("state.json", 100),
        ("checksums.json", 40),
    ] {
        let path = newest.join(name);
        let whole = fs::read(&path).unwrap();
        flip_a_bit(&path, place.min(whole.len() - 1));
        let text = refuses(&workspace, &[]);
        let remedy = format!(
            "Delete {} to resume from step 2.",
            Path::new("run/checkpoints/step-4").display()
        );
        says(&text, &["run/checkpoints/step-4/", &remedy]);
        fs::write(path, whole).unwrap();
    }
    fs::remove_file(newest.join("initial.safetensors")).unwrap();
    says(
        &refuses(&workspace, &[]),
        &[
            "run/checkpoints/step-4/initial.safetensors",
            "Delete run/checkpoints/step-4",
        ],
    );
    // The advice is good.
    fs::remove_dir_all(&newest).unwrap();
    workspace.resumed("run", &RUN);
    assert!(fs::read(run.join("pytorch_lora_weights.safetensors")).unwrap() == straight);
}

fn flip_a_bit(path: &Path, place: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[place] ^= 1;
    fs::write(path, bytes).unwrap();
}
