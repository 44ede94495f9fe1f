//! Ablations end to end on a tiny random pipeline: what is run, what is kept, what tables say, what bad input is told.

#[path = "../common/mod.rs"]
mod common;
mod mistakes;
mod numbers;
mod workspace;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::train::paragraph;
use common::{ortdpo, stderr, stdout};
use numbers::{
    mean, numbers_are_those_of_the_rows, scores, tables_come_from_the_rows_alone,
    the_report_shows_the_numbers,
};
use serde_json::Value;
use workspace::{METHODS, STRATEGIES, Workspace, repository};

/// What a run is called, for comparing rows.
fn label(row: &Value) -> String {
    row["run"].to_string()
}

/// Waits until `is_there`, or the program has ended.
fn wait_until(child: &mut Child, is_there: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_there() && child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(120), "nothing happens");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn has_checkpoint(runs: &Path) -> bool {
    let entries = fs::read_dir(runs).into_iter().flatten().flatten();
    entries
        .into_iter()
        .any(|run| run.path().join("checkpoints/step-2").is_dir())
}

/// Stopped by Ctrl-C in a training, killed, and gone on with: the rows are those of an ablation that nobody stopped. Then a seed
/// is added, and only that runs.
#[cfg(unix)]
#[test]
fn whatever_stops_it_nothing_is_done_twice() {
    let one_seed = format!("{METHODS}{STRATEGIES}seeds: [0]\n");
    let whole = Workspace::new(&one_seed);
    whole.ran(&[]);

    let stopped = Workspace::new(&one_seed);
    let runs = stopped.path("out/runs");
    let spawn = || {
        let mut command = stopped.command(&["--quiet"]);
        command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let signal = |child: &Child, name: &str| {
        let id = child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    };
    let mut child = spawn();
    wait_until(&mut child, || has_checkpoint(&runs));
    signal(&child, "-INT");
    let text = paragraph(&child.wait_with_output().unwrap(), 130);
    assert!(text.contains("the same command goes on from there"), "{text}");
    assert_eq!(stopped.rows().len(), 1, "the initial model alone is done");
    let listed = stdout(&stopped.ran(&["--dry-run"]));
    assert!(
        listed.contains("dpo + plain, seed 0   stopped after step")
            || listed.contains("dpo + plain, seed 0   trained, to be judged"),
        "{listed}"
    );
    assert!(listed.contains("2 runs, 2 to do"), "{listed}");

    let mut child = spawn();
    wait_until(&mut child, || stopped.rows().len() == 2);
    signal(&child, "-KILL");
    child.wait().unwrap();
    // What was cut off in the middle of a line is no row.
    let cut = fs::read_to_string(stopped.path("out/rows.jsonl")).unwrap() + "{\"key\": \"";
    stopped.write("out/rows.jsonl", &cut);
    stopped.ran(&[]);

    let (rows, expected) = (stopped.rows(), whole.rows());
    assert_eq!(rows.len(), 3);
    for (row, expected) in rows.iter().zip(&expected) {
        assert_eq!((label(row), &row["key"]), (label(expected), &expected["key"]));
        assert_eq!(row["evaluation"], expected["evaluation"], "{}", label(row));
        assert_eq!(
            row["training"]["curves"],
            expected["training"]["curves"],
            "{}",
            label(row)
        );
    }
    assert_eq!(
        stopped.results()["arms"][1]["rewards"],
        whole.results()["arms"][1]["rewards"]
    );

    // Nothing is left to do: nothing is written but tables.
    let before = (whole.written(), fs::read(whole.path("out/rows.jsonl")).unwrap());
    whole.ran(&[]);
    assert_eq!(
        before,
        (whole.written(), fs::read(whole.path("out/rows.jsonl")).unwrap())
    );

    whole.configure(&format!("{METHODS}{STRATEGIES}seeds: [0, 1]\n"));
    let listed = stdout(&whole.ran(&["--dry-run"]));
    assert!(listed.contains("4 runs, 2 to do"), "{listed}");
    whole.ran(&[]);
    let rows = fs::read(whole.path("out/rows.jsonl")).unwrap();
    assert!(rows.starts_with(&before.1), "earlier rows are as they were");
    let new: Vec<Value> = whole.rows().split_off(3);
    assert_eq!(
        new.iter()
            .map(|row| row["run"]["seed"].as_u64())
            .collect::<Vec<_>>(),
        [Some(1); 2]
    );
    let now = whole.written();
    assert!(
        before.0.iter().all(|file| now.contains(file)),
        "earlier runs were touched"
    );
    numbers_are_those_of_the_rows(&whole);
    the_report_shows_the_numbers(&whole);
    tables_come_from_the_rows_alone(&whole);
}

/// Candidates are tried on prompts of their own, as many under each strategy; the best goes into the final table. What diverges is
/// recorded, said and not tried again.
#[test]
fn what_is_tuned_is_chosen_on_other_prompts_and_what_diverges_stops_nothing() {
    let tuned = "\
methods:
  - {name: dpo, tune: {optimizer.lr: [1.0e-3, 2.0e-2]}}
  - {name: wild, set: {objective: {kind: ipo}, optimizer: {lr: 1.0e+30}}}
runs: [{methods: [dpo]}, {methods: [wild], strategies: [plain]}]
tuning: {prompts: [others.txt], seeds: [7], images_per_prompt: 1, by: aesthetic}
";
    let workspace = Workspace::new(&format!("{tuned}{STRATEGIES}"));
    workspace.write("others.txt", "a tree\na boat\n");
    let output = workspace.run(&["--quiet"]);
    let error = paragraph(&output, 1);
    assert!(
        error.contains("1 of the runs diverged and are in no mean: wild + plain, seed 0"),
        "{error}"
    );
    let rows = workspace.rows();
    let tried: Vec<&Value> = rows
        .iter()
        .filter(|row| row["phase"] == "tuning" && row["run"].is_object())
        .collect();
    assert_eq!(tried.len(), 4, "two candidates under each of two strategies");
    assert!(
        tried
            .iter()
            .all(|row| scores(row, "aesthetic").len() == 4 && row["run"]["seed"] == 7)
    );
    for strategy in ["plain", "ema"] {
        let of_arm = tried.iter().filter(|row| row["run"]["strategy"] == strategy);
        let worth = |row: &&&Value| mean(&scores(row, "aesthetic"));
        let best = of_arm.max_by(|a, b| worth(a).total_cmp(&worth(b))).unwrap();
        let is_final = |row: &&Value| row["phase"] == "final" && row["run"]["strategy"] == strategy;
        let chosen = rows.iter().find(is_final).unwrap();
        assert_eq!(chosen["run"]["choice"], best["run"]["choice"], "{strategy}");
    }
    // As long as a candidate has no row, nothing is chosen and no final run is known.
    let some: Vec<&Value> = rows
        .iter()
        .filter(|row| row["run"]["choice"]["optimizer.lr"] != 0.02)
        .collect();
    let lines: Vec<String> = some.iter().map(|row| row.to_string() + "\n").collect();
    workspace.write("some.jsonl", &lines.concat());
    let partial = workspace.ran(&["--tables-only", "--rows", "some.jsonl", "--format", "json"]);
    let partial: Value = serde_json::from_str(&stdout(&partial)).unwrap();
    let tried_so_far = partial["tuning"]["candidates"].as_array().unwrap();
    assert!(
        tried_so_far.iter().all(|candidate| candidate["chosen"] == false),
        "{partial}"
    );
    assert_eq!(partial["missing"], 2, "{partial}");
    let failed = rows.iter().find(|row| row["status"] == "failed").unwrap();
    assert!(
        failed["run"]["method"] == "wild" && failed["reason"].as_str().unwrap().contains("not finite"),
        "{failed}"
    );
    let table = stdout(&output);
    assert!(
        table
            .lines()
            .any(|line| line.starts_with("model") && line.contains("failed")),
        "{table}"
    );
    let again = workspace.run(&["--quiet"]);
    assert_eq!(
        (again.status.code(), workspace.rows().len()),
        (Some(1), rows.len())
    );
    let listed = stdout(&workspace.ran(&["--dry-run"]));
    assert!(
        listed
            .lines()
            .any(|line| line.starts_with("wild + plain, seed 0") && line.ends_with("failed")),
        "{listed}"
    );
}

/// Editors read the committed file; the examples are whole.
#[test]
fn the_committed_schema_is_current_and_the_examples_can_be_read() {
    let printed = ortdpo(repository())
        .args(["ablate", "--print-schema"])
        .output()
        .unwrap();
    let committed = fs::read_to_string(repository().join("docs/ablation.schema.json")).unwrap();
    assert!(
        stdout(&printed) == committed,
        "write it anew: ortdpo ablate --print-schema > docs/ablation.schema.json"
    );
    for name in ["examples/ablate-tiny.yaml", "examples/ablation.yaml"] {
        let text = fs::read_to_string(repository().join(name)).unwrap();
        assert!(text.starts_with("# yaml-language-server: $schema=../docs/ablation.schema.json\n"));
        let folder = tempfile::tempdir().unwrap();
        let mut command = ortdpo(repository());
        command
            .args(["ablate", "--config", name, "--dry-run", "--output"])
            .arg(folder.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{name}: {}", stderr(&output));
    }
}
