//! Forecasts of memory beside what runs take: `ortdpo plan`'s sum and `peak_rss_mb` of two or three real steps.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::Path;

use common::train::{copy, json, refused};
use common::{fixtures, foreign_provider, ortdpo, stderr, stdout};
use image::RgbImage;
use serde_json::Value;
use tempfile::TempDir;

/// How far a run may be from its forecast.
const TOLERANCE: f64 = 0.15;

/// A folder with the configuration of a short run.
struct Short {
    folder: TempDir,
}

impl Short {
    fn of(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("run.yaml"), config).unwrap();
        Self { folder }
    }

    /// All weights of tiny-sd, on a few pairs.
    fn tiny_sd() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self::of(&format!(
            "\
model: {}
data: {{path: {}, resolution: 64, cache: cache}}
train: {{steps: 2, pairs_per_step: 4, eval_every: 0, eval_draws: 1, checkpoint_every: 0}}
adapter: {{kind: full}}
reference: {{probe: 2}}
optimizer: {{lr: 1.0e-5, schedule: {{kind: constant, warmup: 0}}}}
runtime: {{recompute: block}}
",
            root.join("models/tiny-sd").display(),
            fixtures().join("pairs/whole").display(),
        ))
    }

    fn command(&self, command: &str, set: &[&str]) -> std::process::Output {
        let mut program = ortdpo(self.folder.path());
        match command {
            "plan" => program.args(["plan", "run.yaml", "--no-time", "--format", "json"]),
            _ => program.args(["train", "--config", "run.yaml", "--output", "run", "--quiet"]),
        };
        for value in set {
            program.args(["--set", value]);
        }
        program.output().unwrap()
    }

    /// The plan and the level that a run would take.
    fn plan(&self, set: &[&str]) -> (Value, Value) {
        let output = self.command("plan", set);
        assert!(output.status.success(), "{}", stderr(&output));
        let plan: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let levels = plan["levels"].as_array().unwrap();
        let chosen = levels.iter().find(|level| level["recompute"] == plan["chosen"]);
        let level = chosen.unwrap().clone();
        (plan, level)
    }

    /// Bytes that a run takes.
    fn taken(&self, set: &[&str]) -> f64 {
        let run = self.folder.path().join("run");
        if run.exists() {
            fs::remove_dir_all(&run).unwrap();
        }
        let output = self.command("train", set);
        assert!(output.status.success(), "{}", stderr(&output));
        json(&run.join("summary.json"))["peak_rss_mb"].as_f64().unwrap() * 1e6
    }

    fn agrees(&self, set: &[&str]) {
        let (_, level) = self.plan(set);
        let planned = total(&level) as f64;
        let taken = self.taken(set);
        println!("{set:?}: {:.0} planned, {:.0} taken", planned / 1e6, taken / 1e6);
        let off = taken / planned - 1.0;
        assert!(off.abs() < TOLERANCE, "{set:?}: {off:+.3} of {level}");
    }
}

fn total(level: &Value) -> u64 {
    let parts = level["memory"].as_object().unwrap().values();
    parts.map(|bytes| bytes.as_u64().unwrap()).sum()
}

#[test]
fn all_weights_take_what_was_predicted_whatever_optimizer_reference_and_average() {
    let short = Short::tiny_sd();
    for set in [
        &[][..],
        &[
            "optimizer.kind=adafactor",
            "reference.update=ema",
            "train.policy_ema=0.9",
        ],
        &[
            "reference={update: ema, probe: 2, anchor: {kind: kl}}",
            "train.accumulate=2",
        ],
        &["reference={update: ema, probe: 2, storage: bf16}"],
    ] {
        short.agrees(set);
    }
}

#[test]
fn weights_stored_in_half_precision_take_what_was_predicted() {
    let short = Short::of(&config_on(Path::new("half")));
    let model = short.folder.path().join("half");
    copy(&fixtures().join("optimum-sd"), &model);
    fs::copy(
        fixtures().join("half/legacy17.onnx"),
        model.join("unet/model.onnx"),
    )
    .unwrap();
    short.agrees(&["train.pairs_per_step=8"]);
    short.agrees(&["train.pairs_per_step=8", "adapter={kind: full}"]);
}

/// A configuration for pictures of some noise; `resolution` and buckets as the small pipelines take them.
fn config_on(model: &Path) -> String {
    format!(
        "\
model: {}
data: {{path: {}, resolution: 16, cache: cache}}
train: {{steps: 3, pairs_per_step: 2, eval_every: 0, eval_draws: 1, checkpoint_every: 0}}
adapter: {{kind: lora, rank: 2}}
optimizer: {{lr: 1.0e-3, schedule: {{kind: constant, warmup: 0}}}}
",
        model.display(),
        fixtures().join("pairs/whole").display(),
    )
}

/// Height and width of pictures of which sizes of images come.
const SIZES: [[u32; 2]; 9] = [
    [32, 32],
    [64, 16],
    [16, 64],
    [40, 24],
    [24, 40],
    [16, 48],
    [48, 16],
    [16, 56],
    [56, 16],
];

#[test]
fn every_size_of_images_has_sessions_that_are_counted() {
    let short = Short::of(&config_on(&fixtures().join("optimum-sd")));
    let pairs = short.folder.path().join("pairs");
    fs::create_dir(&pairs).unwrap();
    let mut lines = String::new();
    for (i, [height, width]) in SIZES.into_iter().enumerate() {
        let grey = RgbImage::from_fn(width, height, |x, y| [(x * 16 + y * 9) as u8; 3].into());
        let name = format!("{i}.png");
        grey.save(pairs.join(&name)).unwrap();
        for k in 0..2 {
            lines +=
                &format!("{{\"prompt\": \"{i} {k}\", \"chosen\": \"{name}\", \"rejected\": \"{name}\"}}\n");
        }
    }
    fs::write(pairs.join("train.jsonl"), lines).unwrap();
    let set = [
        "data.kind=jsonl",
        "data.path=pairs",
        "data.resolution=32",
        "data.buckets={step: 8}",
        "train.steps=9",
    ];
    let (plan, level) = short.plan(&set);
    assert_eq!(plan["other_sizes"].as_array().unwrap().len(), SIZES.len() - 1);
    short.agrees(&set);
    // Squares alone take much less, and a budget between is enough for them only.
    let square = total(&short.plan(&set[..3]).1);
    assert!(2 * square < total(&level), "{square} {}", total(&level));
    let budget = format!("runtime.memory_budget={}KB", (square + total(&level)) / 2000);
    fs::remove_dir_all(short.folder.path().join("run")).unwrap();
    let text = refused(&short.command("train", &[&set[..], &[&budget]].concat()));
    assert!(text.contains("at least with images of 9 sizes"), "{text}");
    let squares = [&set[..3], &["train.steps=1", &budget]].concat();
    let output = short.command("train", &squares);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn what_cannot_run_is_refused_before_anything_is_encoded() {
    let short = Short::of(&config_on(&fixtures().join("optimum-sd")));
    let ep = format!("runtime.ep={}", foreign_provider());
    let (file, device) = (
        "reference={update: ema, storage: bf16}",
        "runtime.optimizer=device",
    );
    for (set, expected) in [
        (
            &["runtime.memory_budget=50MiB"][..],
            "runtime.memory_budget: is 50MiB",
        ),
        (
            &["runtime.mixed_precision=fp16"],
            "runtime.mixed_precision: is fp16",
        ),
        (&[file, device], "runtime.optimizer: is device"),
        (&["adapter.targets=[no_such_layer]"], "no_such_layer"),
        (&[ep.as_str()], "cannot be used"),
    ] {
        let text = refused(&short.command("train", set));
        assert!(text.contains(expected), "{set:?}: {text}");
        let made: Vec<_> = ["cache", "run"]
            .into_iter()
            .filter(|name| short.folder.path().join(name).exists())
            .collect();
        assert!(made.is_empty(), "{set:?}: {made:?}");
    }
}

#[test]
fn sets_of_trained_numbers_are_listed_one_by_one() {
    let (_, level) = Short::tiny_sd().plan(&["reference.update=ema", "optimizer.kind=adafactor"]);
    let sets = level["trained_sets"].as_array().unwrap();
    let bytes = |name: &str| {
        let found = sets.iter().find(|set| set["set"] == name);
        found.map_or(0, |set| set["bytes"].as_u64().unwrap())
    };
    assert!(bytes("policy") > 20_000_000 && bytes("policy") == bytes("reference"));
    // Means of rows and of columns.
    assert!(bytes("first_moments") + bytes("second_moments") < bytes("policy"));
    let all: u64 = sets.iter().map(|set| set["bytes"].as_u64().unwrap()).sum();
    assert_eq!(level["memory"]["trained"], all);
    assert_eq!(level["basis"], "compared with runs");
}

/// CUDA cannot be used in tests, but what it would take can be said.
#[test]
fn a_device_has_a_part_of_its_own_that_nobody_measured() {
    let short = Short::tiny_sd();
    let (plan, level) = short.plan(&["runtime.ep=cuda"]);
    assert_eq!(level["basis"], "computed, not measured");
    assert_eq!(level["memory"]["activations"], 0);
    let device = |key: &str| level["device"][key].as_u64().unwrap();
    let set = level["trained_sets"][0]["bytes"].as_u64().unwrap();
    // θ, its gradient, two moments and the reference.
    assert_eq!(device("trained"), 5 * set);
    assert!(device("activations") > 0);
    let (_, host) = short.plan(&["runtime.ep=cuda", "runtime.optimizer=host"]);
    assert_eq!(host["device"]["trained"], 2 * set);
    let (_, cpu) = short.plan(&[]);
    assert!(cpu["device"].is_null());
    if plan["ep_unusable"].is_string() {
        let mut program = ortdpo(short.folder.path());
        let timed = program
            .args(["plan", "run.yaml", "--ep", "cuda"])
            .output()
            .unwrap();
        let text = refused(&timed);
        assert!(text.contains("execution provider `cuda`"), "{text}");
        let mut program = ortdpo(short.folder.path());
        let memory = program
            .args(["plan", "run.yaml", "--ep", "cuda", "--no-time"])
            .output();
        let text = stdout(&memory.unwrap());
        assert!(
            text.contains("cuda is not usable here") && text.contains("memory of the device"),
            "{text}"
        );
    }
}

/// A plan asks what fits: it must not itself take what would not.
#[test]
fn measuring_keeps_within_a_bound_however_large_the_batch() {
    let short = Short::tiny_sd();
    let mut program = ortdpo(short.folder.path());
    program.args(["plan", "run.yaml", "--calibrate", "0.2", "--format", "json"]);
    program.args([
        "--set",
        "train.pairs_per_step=4096",
        "--set",
        "runtime.recompute=none",
    ]);
    let mut child = program
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(kib.unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(child.wait().unwrap().success());
    assert!(
        peak < 3 << 20,
        "{peak} KiB, where operands of single operators take gigabytes"
    );
}
