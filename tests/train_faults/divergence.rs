//! Runs that diverge.

use std::fs;
use std::path::Path;

use super::common::train::{Workspace, json, metrics, paragraph};
use super::{refused_at_once, says};

/// Checkpoints of a run, in order.
fn checkpoints(run: &Path) -> Vec<u64> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    let mut steps: Vec<u64> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| name.strip_prefix("step-").unwrap().parse().unwrap())
        .collect();
    steps.sort_unstable();
    steps
}

fn adapter(run: &Path) -> Vec<u8> {
    fs::read(run.join("pytorch_lora_weights.safetensors")).unwrap()
}

/// The numbers of a list such as `(pairs 3, 9; timesteps 17, 801)`.
fn numbers(text: &str, from: &str, to: &str) -> Vec<u64> {
    let (_, rest) = text.split_once(from).unwrap();
    let (list, _) = rest.split_once(to).unwrap();
    list.split(", ").map(|number| number.parse().unwrap()).collect()
}

/// The first step has learning rate 0, the second one throws the weights out of all proportion.
const THROWN: [&str; 3] = [
    "train={steps: 6, checkpoint_every: 1}",
    "optimizer.schedule.warmup=1",
    "optimizer.lr=1e30",
];

#[test]
fn a_loss_that_is_not_finite_names_step_pairs_and_timesteps() {
    let workspace = Workspace::new();
    let text = paragraph(&workspace.train("run", &THROWN).output().unwrap(), 1);
    says(
        &text,
        &[
            "error: training stopped: the loss is not finite at step 3 (pairs ",
            "Checkpoint run/checkpoints/step-1 is whole. Start a new run with a lower optimizer.lr.",
        ],
    );
    // Rows 2 and 12 are ties, row 7 is not labelled, and the others from 10 on are held out.
    let pairs = numbers(&text, "(pairs ", "; timesteps");
    assert!(
        pairs.len() == 2 && pairs.iter().all(|pair| [0, 1, 3, 4, 5, 6, 8, 9].contains(pair)),
        "{text}"
    );
    let timesteps = numbers(&text, "timesteps ", ")");
    assert!(
        timesteps.len() == 2 && timesteps.iter().all(|t| *t < 1000),
        "{text}"
    );
    let run = workspace.path("run");
    assert_eq!((checkpoints(&run), metrics(&run).len()), (vec![1, 2], 2));
    assert!(!run.join("summary.json").exists());
}

#[test]
fn weights_that_are_not_finite_make_no_checkpoint() {
    let workspace = Workspace::new();
    let beyond_f32 = [&THROWN[..2], &["optimizer.lr=1e45"]].concat();
    let text = paragraph(&workspace.train("run", &beyond_f32).output().unwrap(), 1);
    says(
        &text,
        &["lora_A.weight` is not finite after step 2. Checkpoint run/checkpoints/step-1 is whole."],
    );
    assert_eq!(checkpoints(&workspace.path("run")), [1]);
}

/// Puts `value` in the place of the last one of an adapter's first factor B.
fn poison(path: &Path, value: f32) {
    let mut bytes = fs::read(path).unwrap();
    let header_end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..header_end]).unwrap();
    let (_, tensor) = header
        .as_object()
        .unwrap()
        .iter()
        .find(|(name, _)| name.ends_with("lora_B.weight"))
        .unwrap();
    let end = header_end + tensor["data_offsets"][1].as_u64().unwrap() as usize;
    bytes[end - 4..end].copy_from_slice(&value.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_poisoned_adapter_to_start_from() {
    let workspace = Workspace::new();
    let trained = workspace.trained("trained", &["train.steps=3"]);
    let file = workspace.path("start.safetensors");
    fs::copy(trained.join("pytorch_lora_weights.safetensors"), &file).unwrap();
    let from_file = ["adapter.init=start.safetensors", "train.steps=3"];
    // Sound, it is taken.
    workspace.trained("further", &from_file);

    poison(&file, f32::NAN);
    let text = refused_at_once(&workspace, &from_file);
    says(&text, &["start.safetensors: holds NaN in `", "lora_B.weight`."]);

    // Finite itself, but not what the model makes of it.
    poison(&file, f32::MAX);
    let text = paragraph(&workspace.train("run", &from_file).output().unwrap(), 1);
    says(
        &text,
        &[
            "is not finite at step 1 (pairs ",
            "There is no checkpoint yet. Start a new run",
        ],
    );
    // The folder tells of a run; another one does not go there by mistake.
    assert_eq!(metrics(&workspace.path("run")).len(), 0);
    let text = paragraph(&workspace.train("run", &from_file).output().unwrap(), 2);
    says(
        &text,
        &["run: holds a run already. It ended before its first checkpoint"],
    );
}

/// The first step has learning rate 0, so that the checkpoint after it holds the initial policy; the later ones
/// have a rate that spoils it at once, unless the guard lowers that.
const SPOILED: [&str; 4] = [
    "train={steps: 12, pairs_per_step: 8, checkpoint_every: 1, keep: 12}",
    "optimizer.schedule.warmup=1",
    "reference={update: ema, alpha: 0.1}",
    "optimizer.lr=1",
];
const STOP: &str = "guard={warmup: 1, loss_spike: 5, lr_factor: 1.0e-3}";
const ROLL_BACK: &str = "guard={warmup: 1, loss_spike: 5, lr_factor: 1.0e-3, action: rollback}";

/// The run that never diverged because it had the guard's lower rate from the start.
fn unspoiled(workspace: &Workspace) -> Vec<u8> {
    adapter(&workspace.trained(
        "unspoiled",
        &[&SPOILED[..], &[STOP, "optimizer.lr=1.0e-3"]].concat(),
    ))
}

#[test]
fn the_guard_stops_a_run_that_can_be_taken_up_again() {
    let workspace = Workspace::new();
    let stop = [&SPOILED[..], &[STOP]].concat();
    let text = paragraph(&workspace.train("run", &stop).output().unwrap(), 1);
    says(
        &text,
        &[
            "error: training stopped: the loss has been around ",
            "more than 5 times the 0.693 that the run started with (guard.loss_spike). Checkpoint run/checkpoints/step-5 is \
             whole. Resume with --set guard.action=rollback",
        ],
    );
    let run = workspace.path("run");
    assert_eq!(checkpoints(&run), [1, 2, 3, 4, 5]);
    // The step that tripped it is in the log.
    assert_eq!(metrics(&run).last().unwrap()["step"], 6);
    // The advice is good.
    workspace.resumed("run", &[&SPOILED[..], &[ROLL_BACK]].concat());
    assert!(
        adapter(&run) == unspoiled(&workspace),
        "the weights are not those of the lower rate"
    );
}

#[test]
fn the_guard_goes_back_and_lowers_the_learning_rate() {
    let workspace = Workspace::new();
    let run = workspace.trained("run", &[&SPOILED[..], &[ROLL_BACK]].concat());
    assert!(
        adapter(&run) == unspoiled(&workspace),
        "the weights are not those of the lower rate"
    );
    // What was done before counts no more.
    let log: Vec<(u64, f64)> = metrics(&run)
        .iter()
        .map(|line| (line["step"].as_u64().unwrap(), line["lr"].as_f64().unwrap()))
        .collect();
    let expected: Vec<(u64, f64)> = (1..=12)
        .map(|step| (step, if step == 1 { 0.0 } else { 1.0e-3 }))
        .collect();
    assert_eq!(log, expected);
    assert_eq!(checkpoints(&run), (1..=12).collect::<Vec<_>>());
    assert_eq!(
        json(&run.join("checkpoints/step-12/state.json"))["guard"]["rollbacks"],
        1
    );
}

#[test]
fn the_guard_gives_up_when_there_is_nothing_to_go_back_to() {
    let workspace = Workspace::new();
    let set = [&SPOILED[..], &[ROLL_BACK, "train.checkpoint_every=0"]].concat();
    let text = paragraph(&workspace.train("run", &set).output().unwrap(), 1);
    says(
        &text,
        &["(guard.loss_spike). There is no checkpoint yet. Start a new run with a lower optimizer.lr."],
    );
    // As often as it may, and no more often: at the same rate the same happens again.
    let stubborn = "guard={warmup: 1, loss_spike: 5, lr_factor: 1.0, action: rollback, max_rollbacks: 2}";
    let set = [&SPOILED[..], &[stubborn]].concat();
    let text = paragraph(&workspace.train("again", &set).output().unwrap(), 1);
    says(
        &text,
        &["(guard.loss_spike); it went back 2 times already. Checkpoint again/checkpoints/step-5 is whole."],
    );
}
