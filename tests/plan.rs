//! `ortdpo plan`: what it predicts for tiny-sd, and what a memory budget makes of a run.

mod common;

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use common::train::{json, refused, succeeded};
use common::{ortdpo, stderr, stdout};
use ortdpo::config::{Sources, TrainPlan};
use ortdpo::forecast::{Batch, Calibration, forecast};
use ortdpo::pipeline::geometry;
use ortdpo::runtime::{self, RuntimeOptions};
use ortdpo::train::model::Model;
use ortdpo::train::prepare;
use serde_json::Value;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// The program on a configuration of the repository that trains tiny-sd.
fn run(command: &str, arguments: &[&str]) -> Output {
    let mut program = ortdpo(Path::new(REPOSITORY));
    program.arg(command).args(arguments).output().unwrap()
}

fn planned(arguments: &[&str]) -> Value {
    let given = [&["examples/diffusion-dpo.yaml", "--format", "json"], arguments].concat();
    let output = run("plan", &given);
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

/// Predicted bytes of every level.
fn totals(plan: &Value) -> Vec<u64> {
    let total = |level: &Value| {
        let parts = level["memory"].as_object().unwrap().values();
        parts.map(|bytes| bytes.as_u64().unwrap()).sum()
    };
    plan["levels"].as_array().unwrap().iter().map(total).collect()
}

#[test]
fn memory_and_time_of_every_level_are_predicted() {
    let plan = planned(&["--calibrate", "0.5"]);
    let levels: Vec<&str> = plan["levels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["recompute"].as_str().unwrap())
        .collect();
    assert_eq!(levels, ["none", "norm-attention", "block"]);
    let totals = totals(&plan);
    assert!(totals.is_sorted_by(|a, b| a > b), "{totals:?}");
    for level in plan["levels"].as_array().unwrap() {
        let time = &level["time"];
        let [step, forward] = ["seconds", "forward_seconds"].map(|key| time[key].as_f64().unwrap());
        assert!(step > 2.0 * forward && forward > 0.0, "{time}");
    }
    assert_eq!(plan["chosen"], "none");
}

/// With one calibration for all, so that every kind of node is measured once.
#[test]
fn the_parts_of_a_batch_add_up_and_the_kl_anchor_takes_its_share_of_them() {
    runtime::init(&RuntimeOptions::default()).unwrap();
    let model = Model::open(&Path::new(REPOSITORY).join("models/tiny-sd")).unwrap();
    let set = |set: &[&str]| {
        let fixed = ["model=models/tiny-sd", "data={path: unused, resolution: 64}"];
        let set = fixed.iter().chain(set).map(|s| (*s).to_owned()).collect();
        let sources = Sources {
            set,
            ..Sources::default()
        };
        TrainPlan::resolve(&sources).unwrap()
    };
    let plan = set(&[
        "train={pairs_per_step: 8, accumulate: 8}",
        "reference={update: ema, anchor: {kind: kl, fraction: 0.25}}",
    ]);
    let sample = geometry::declared(&model.folder, 1, Some([16; 2])).unwrap();
    let options = prepare::engine_options(&plan, &model, sample, plan.objective.objective()).unwrap();
    let mut calibration = Calibration::new(Duration::from_secs(60));
    let mut seconds = |batch: Batch| {
        let level = forecast(&plan, &options, Some((&mut calibration, batch)));
        level.unwrap().time.unwrap().seconds
    };
    // What is measured for the anchor is known of the step from then on.
    seconds(Batch {
        parts: 1,
        anchored: 1,
    });
    let batch = prepare::batch(&plan).unwrap();
    assert_eq!((batch.parts, batch.anchored), (8, 2));
    let [step, without, one] =
        [(8, 2), (8, 0), (1, 1)].map(|(parts, anchored)| seconds(Batch { parts, anchored }));
    let anchor = one - without / 8.0;
    assert!(anchor > 0.0 && without > 0.0);
    assert!(
        (step - without - 2.0 * anchor).abs() < 1e-9 * step,
        "{step} {without} {one}"
    );
}

#[test]
fn people_get_tables() {
    let output = run("plan", &["examples/diffusion-dpo.yaml", "--no-time"]);
    succeeded(&output);
    let text = stdout(&output);
    for expected in [
        "steps of 32 samples with latents of 16×16",
        "norm-attention",
        "`train` would use recompute: none",
        "activations at the peak",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn a_budget_chooses_the_fastest_level_that_fits() {
    let all = totals(&planned(&["--no-time"]));
    let [largest, smallest] = [all[0], all[2]].map(with_margin);
    for (bytes, chosen) in [
        (largest + 1_000_000, Value::from("none")),
        (largest - 1_000_000, Value::from("norm-attention")),
        (smallest + 1_000_000, Value::from("block")),
        (smallest - 1_000_000, Value::Null),
    ] {
        let budget = format!("runtime.memory_budget={}KB", bytes / 1000);
        assert_eq!(
            planned(&["--no-time", "--set", &budget])["chosen"],
            chosen,
            "{budget}"
        );
    }
    let budget = format!("runtime.memory_budget={}KB", largest / 1000 + 1000);
    let level = "runtime.recompute=block";
    let plan = planned(&["--no-time", "--set", &budget, "--set", level]);
    assert_eq!(
        plan["chosen"], "block",
        "a level that is asked for is kept where it fits"
    );
}

/// What a budget has to be for a forecast.
fn with_margin(bytes: u64) -> u64 {
    bytes + bytes / 20 + (16 << 20)
}

/// `train` on tiny-sd for two steps; the memory it took at most, in bytes, and what it said.
fn trained(cache: &Path, set: &[&str]) -> (u64, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("run");
    let cache = format!("data.cache={}", cache.display());
    let mut arguments = vec![
        "--config",
        "examples/diffusion-dpo.yaml",
        "--output",
        output.to_str().unwrap(),
    ];
    let fast = [
        "train.steps=2",
        "train.eval_every=2",
        "train.eval_pairs=2",
        "train.eval_draws=1",
        &cache,
    ];
    for value in fast.iter().chain(set) {
        arguments.extend(["--set", value]);
    }
    let done = run("train", &arguments);
    assert!(done.status.success(), "{}", stderr(&done));
    let peak = json(&output.join("summary.json"))["peak_rss_mb"]
        .as_f64()
        .unwrap();
    ((peak * 1e6) as u64, stderr(&done))
}

#[test]
#[cfg(target_os = "linux")]
fn a_run_takes_what_was_predicted_and_keeps_within_its_budget() {
    let cache = tempfile::tempdir().unwrap();
    let all = totals(&planned(&["--no-time"]));
    let most = with_margin(all[2]) + 1_000_000;
    let budget = format!("runtime.memory_budget={}KB", most / 1000);
    let (peak, said) = trained(cache.path(), &["runtime.recompute=none"]);
    assert!(!said.contains("memory budget"), "{said}");
    let off = |predicted: u64, peak: u64| peak as f64 / predicted as f64 - 1.0;
    assert!(off(all[0], peak).abs() < 0.15, "{peak} of {}", all[0]);
    let (peak, said) = trained(cache.path(), &[&budget]);
    assert!(said.contains("recompute: block, for the memory budget"), "{said}");
    assert!(off(all[2], peak).abs() < 0.15, "{peak} of {}", all[2]);
    assert!(peak <= most, "{peak} of {most}");
    println!("{all:?} {peak}");
}

#[test]
fn pictures_of_another_size_than_an_export_takes_are_refused_with_the_keys_name() {
    let text = refused(&run(
        "plan",
        &[
            "examples/diffusion-dpo.yaml",
            "--quiet",
            "--set",
            "data.resolution=128",
        ],
    ));
    assert!(
        text.contains("unet/model.onnx: was exported for latents of 16×16 alone, and 32×32 are asked for")
            && text.contains("data.resolution"),
        "{text}"
    );
}

#[test]
fn sizes_that_an_export_does_not_take_are_refused_before_anything_is_encoded() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("run").display().to_string();
    let cache = format!("data.cache={}", folder.path().join("cache").display());
    let set = [
        "--set",
        "data.buckets={}",
        "--set",
        &cache,
        "--quiet",
        "--output",
        &output,
    ];
    let text = refused(&run(
        "train",
        &[&["--config", "examples/diffusion-dpo.yaml"], &set[..]].concat(),
    ));
    assert!(
        text.contains("data.buckets: asks for images of several sizes")
            && text.contains("latents of 16×16 alone"),
        "{text}"
    );
    assert!(!folder.path().join("cache").exists(), "nothing was encoded");
}

#[test]
fn a_budget_that_cannot_be_met_is_refused_with_the_nearest_that_can() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("run");
    let done = run(
        "train",
        &[
            "--config",
            "examples/diffusion-dpo.yaml",
            "--set",
            "runtime.memory_budget=100MiB",
            "--quiet",
            "--output",
            output.to_str().unwrap(),
        ],
    );
    let text = refused(&done);
    let enough = "runtime.memory_budget: is 100MiB, but the run takes ";
    assert!(
        text.contains(enough) && text.contains(" at least (recompute: block)"),
        "{text}"
    );
    assert!(!output.exists(), "nothing is left behind");
    // The budget that is named is one that is enough, and given as an option it wins over the file.
    let (_, named) = text.split_once("--memory-budget ").unwrap();
    let named = named.split(')').next().unwrap();
    let plan = planned(&[
        "--no-time",
        "--memory-budget",
        named,
        "--set",
        "runtime.memory_budget=1MB",
    ]);
    assert_eq!(plan["chosen"], "block", "{named}");
    let done = run(
        "plan",
        &[
            "examples/diffusion-dpo.yaml",
            "--no-time",
            "--memory-budget",
            "100MiB",
        ],
    );
    let refusal = format!("no level keeps within 100MiB; {named} is enough, with recompute: block");
    assert!(stdout(&done).contains(&refusal), "{}", stdout(&done));
    let done = run(
        "plan",
        &[
            "examples/diffusion-dpo.yaml",
            "--set",
            "runtime.memory_budget=lots",
        ],
    );
    assert!(refused(&done).contains("such as 12GiB"), "{}", stderr(&done));
}

#[test]
fn options_that_are_no_amount_or_no_provider_are_refused() {
    for command in [
        &["plan", "examples/diffusion-dpo.yaml"][..],
        &[
            "train",
            "--config",
            "examples/diffusion-dpo.yaml",
            "--output",
            "none",
        ],
    ] {
        for (option, value, expected) in [
            (
                "--memory-budget",
                "lots",
                "write a number with its unit, such as 12GiB",
            ),
            ("--ep", "gpu", "gpu"),
        ] {
            let done = run(command[0], &[&command[1..], &[option, value]].concat());
            assert_eq!(done.status.code(), Some(2));
            assert!(stderr(&done).contains(expected), "{}", stderr(&done));
        }
    }
    let done = run(
        "train",
        &[
            "--config",
            "examples/diffusion-dpo.yaml",
            "--ep",
            "cuda",
            "--memory-budget",
            "2GiB",
            "--print-config",
        ],
    );
    let text = stdout(&done);
    assert!(
        text.contains("ep: cuda") && text.contains("memory_budget: 2GiB"),
        "{text}"
    );
}
