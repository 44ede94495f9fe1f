//! `ortdpo eval` killed without warning, again and again: the same command goes on, and what comes out in the end is what an
//! evaluation in one go gives.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::train::{files, succeeded};
use common::{fixtures, ortdpo};

fn eval(folder: &Path, output: &str) -> Command {
    let prompts: String = (0..6).map(|i| format!("ab {i} cd\n")).collect();
    std::fs::write(folder.join("prompts.txt"), prompts).unwrap();
    let mut command = ortdpo(folder);
    command.args([
        "eval",
        "--quiet",
        "--prompts",
        "prompts.txt",
        "--steps",
        "2",
        "--batch",
        "2",
    ]);
    command.args([
        "--images-per-prompt",
        "2",
        "--seed",
        "0,1",
        "--threads",
        "1",
        "--output",
        output,
    ]);
    for name in ["a", "b"] {
        let model = format!("{name}={}", fixtures().join("optimum-sd").display());
        command.args(["--model", &model]);
    }
    command.arg("--reward").arg(fixtures().join("rewards/clip-l14"));
    command
}

/// All but the cache of features.
fn results(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = files(folder);
    found.retain(|name, _| !name.starts_with(".features"));
    found
}

#[test]
fn what_a_killed_evaluation_left_is_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    succeeded(&eval(folder.path(), "straight").output().unwrap());
    let straight = results(&folder.path().join("straight"));

    let mut kills = 0;
    // Later and later, until one is left to end by itself.
    for attempt in 1..200 {
        let mut child = eval(folder.path(), "killed")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(attempt * 60));
        if child.try_wait().unwrap().is_some() {
            succeeded(&child.wait_with_output().unwrap());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(kills > 2, "it was too fast to be killed");
    let killed = results(&folder.path().join("killed"));
    assert_eq!(
        straight.keys().collect::<Vec<_>>(),
        killed.keys().collect::<Vec<_>>(),
        "after {kills} kills"
    );
    for (name, content) in &straight {
        assert!(killed[name] == *content, "{name} differs after {kills} kills");
    }
}
