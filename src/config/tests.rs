//! Layers, messages and round trips of whole configurations.

use std::path::{Path, PathBuf};

use super::adapter::AdapterConfig;
use super::objective::ObjectiveConfig;
use super::reference::{AnchorConfig, UpdateConfig};
use super::timestep::{RewardScaleConfig, SamplingConfig, VarianceConfig, WeightingConfig};
use super::*;
use crate::objective::Dpo;

/// Every key that has no default.
const NEEDED: &str = "\
model: models/tiny-sd
data: {kind: pickapic, path: models/tiny-sd/pairs, resolution: 64}
";

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.yaml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn resolve(rest: &str, set: &[&str]) -> Result<TrainPlan> {
    let (_folder, path) = written(&format!("{NEEDED}{rest}"));
    TrainPlan::resolve(&Sources {
        file: Some(path),
        preset: None,
        set: set.iter().map(|text| (*text).to_owned()).collect(),
    })
}

fn plan(rest: &str, set: &[&str]) -> TrainPlan {
    resolve(rest, set).unwrap_or_else(|error| panic!("{error}"))
}

/// The error without the folder the file was in: it begins with `run.yaml` or what else is named.
fn complaint(rest: &str, set: &[&str]) -> String {
    let error = resolve(rest, set).expect_err(rest);
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    text.find("run.yaml")
        .map_or(text.clone(), |at| text[at..].to_owned())
}

#[test]
fn presets_set_what_their_names_promise() {
    let ema_and_variance = |preset: &str| {
        let plan = plan(&format!("preset: {preset}\n"), &[]);
        assert_eq!(plan.reference.update, UpdateConfig::Ema);
        assert_eq!((plan.reference.alpha, plan.reference.every), (0.01, Some(1)));
        assert_eq!(plan.timestep.sampling, SamplingConfig::Uniform {});
        assert_eq!(
            plan.timestep.weighting,
            WeightingConfig::Variance(VarianceConfig::default())
        );
        assert_eq!(plan.timestep.reward_scale, RewardScaleConfig::None);
        plan.reference.anchor.clone()
    };
    assert!(matches!(
        ema_and_variance("stable-ema"),
        AnchorConfig::Kl { fraction: 0.25, .. }
    ));
    assert!(matches!(
        ema_and_variance("stable-ema-pull"),
        AnchorConfig::Pull { .. }
    ));

    let plain = plan("preset: diffusion-dpo\n", &[]);
    assert_eq!(
        (plain.reference.update, &plain.reference.anchor),
        (UpdateConfig::Frozen, &AnchorConfig::None {})
    );
    assert_eq!(plain.timestep.sampling, SamplingConfig::Uniform {});
    assert_eq!(plain.timestep.weighting, WeightingConfig::None {});

    let hard = plan("preset: rethinking-dpo\n", &[]);
    assert_eq!(
        (hard.reference.update, hard.reference.every),
        (UpdateConfig::Copy, Some(32))
    );
    assert!(matches!(
        hard.reference.anchor,
        AnchorConfig::Gate { delta: 0.005, .. }
    ));
    assert_eq!(hard.timestep.sampling, SamplingConfig::Geometric { gamma: 0.9 });
    assert_eq!(hard.timestep.weighting, WeightingConfig::None {});
    assert_eq!(hard.timestep.reward_scale, RewardScaleConfig::InverseSqrtSnr);
}

#[test]
fn a_frozen_reference_drops_the_anchor_of_the_layers_below() {
    for rest in [
        "preset: stable-ema\n",
        "preset: rethinking-dpo\n",
        "reference: {update: ema, anchor: {kind: pull}}\n",
    ] {
        let plan = plan(rest, &["reference.update=frozen"]);
        assert_eq!(plan.reference.anchor, AnchorConfig::None {}, "{rest}");
        assert_eq!(plan.reference.update, UpdateConfig::Frozen, "{rest}");
    }
}

#[test]
fn every_preset_is_known_by_the_name_it_gives_itself() {
    for preset in Preset::ALL {
        let plan = plan("", &[&format!("preset={}", preset.name())]);
        assert_eq!(plan.preset, Some(preset));
    }
}

#[test]
fn the_command_line_wins_over_the_file_and_the_file_over_the_preset() {
    let file = "reference: {alpha: 0.02, anchor: {lambda: 3}}\npreset: stable-ema\n";
    let from_file = plan(file, &[]);
    assert_eq!(from_file.reference.alpha, 0.02);
    // The preset's kind holds, and the keys that the file does not name have the kind's defaults.
    let anchor = AnchorConfig::Kl {
        lambda: 3.0,
        fraction: 0.25,
    };
    assert_eq!(from_file.reference.anchor, anchor);
    let set = [
        "reference.alpha=0.5",
        "reference.anchor.lambda=4",
        "adapter.targets=[to_q, to_k]",
    ];
    let from_line = plan(file, &set);
    assert_eq!(from_line.reference.alpha, 0.5);
    assert_eq!(
        from_line.reference.anchor,
        AnchorConfig::Kl {
            lambda: 4.0,
            fraction: 0.25
        }
    );
    let AdapterConfig::Lora(lora) = &from_line.adapter else {
        panic!("{:?}", from_line.adapter)
    };
    assert_eq!(lora.targets, ["to_q", "to_k"]);
    assert_eq!(lora.alpha, Some(8.0));
}

#[test]
fn another_kind_starts_from_its_own_defaults() {
    let ours = Dpo {
        beta: 100.0,
        label_smoothing: 0.1,
        ..Dpo::default()
    };
    let file = "objective: {kind: dpo, beta: 100, label_smoothing: 0.1}\n";
    assert_eq!(
        plan(file, &["objective.kind=dpo"]).objective,
        ObjectiveConfig::Dpo(ours)
    );
    let plain = plan(file, &["objective.kind=sft"]);
    assert_eq!(plain.objective.kind(), "sft");

    let sft_file = "objective: {kind: sft}\n";
    let set = ["objective.kind=dpo", "objective.label_smoothing=0.2"];
    let both_orders = [set, [set[1], set[0]]].map(|set| plan(sft_file, &set).objective.clone());
    let expected = ObjectiveConfig::Dpo(Dpo {
        label_smoothing: 0.2,
        ..Dpo::default()
    });
    assert_eq!(both_orders, [expected.clone(), expected]);

    let gate = plan(
        "preset: stable-ema\nreference: {anchor: {kind: gate, delta: 0.1}}\n",
        &[],
    );
    assert!(matches!(
        gate.reference.anchor,
        AnchorConfig::Gate { delta: 0.1, .. }
    ));
}

#[test]
fn an_empty_section_changes_nothing() {
    let empty = plan("optimizer:\n  # lr: 1\nguard:\n", &[]);
    assert_eq!(empty, plan("", &[]));
}

#[test]
fn what_is_printed_reads_back_as_the_same_plan() {
    for preset in Preset::ALL {
        let first = plan(
            &format!("preset: {}\nseed: 7\n", preset.name()),
            &["optimizer.lr=3e-9"],
        );
        let (_folder, path) = written(&first.to_yaml());
        let again = TrainPlan::resolve(&Sources {
            file: Some(path),
            ..Sources::default()
        });
        assert_eq!(again.unwrap(), first);
    }
}

#[test]
fn unknown_keys_name_their_line_and_the_nearest_known_key() {
    for (file, expected) in [
        (
            "objective: {kind: dpo, bta: 5}\n",
            [
                "run.yaml:3: objective.bta: is not a known key",
                "Did you mean beta?",
            ],
        ),
        (
            "train:\n  steps: 5\n  pairs_perstep: 2\n",
            [
                "run.yaml:5: train.pairs_perstep: ",
                "Did you mean pairs_per_step?",
            ],
        ),
        (
            "refrence: {}\n",
            ["run.yaml:3: refrence: ", "Did you mean reference?"],
        ),
        ("lr: 1e-4\n", ["run.yaml:3: lr: ", "There is optimizer.lr."]),
        (
            "objective: {kind: sft, beta: 5}\n",
            [
                "run.yaml:3: objective.beta: ",
                "There is objective.beta with kind dpo, ipo, hinge, kto, mapo, dspo, dmpo, linear_dpo, smpo, online_dpo, d3po, spo.",
            ],
        ),
        (
            "objective: {kind: dpoo}\n",
            [
                "run.yaml:3: objective.kind: is \"dpoo\"",
                "Did you mean dpo? Known are dpo, sft, ipo, hinge, kto, mapo, dspo, dmpo, linear_dpo, smpo, online_dpo, ddpo, d3po, dpok, spo.",
            ],
        ),
        (
            "preset: stable-emma\n",
            [
                "run.yaml:3: preset: is \"stable-emma\"",
                "Did you mean stable-ema?",
            ],
        ),
        (
            "runtime: {ep: gpu}\n",
            ["run.yaml:3: runtime.ep: is \"gpu\"", "Known are cpu, cuda"],
        ),
        ("1: 2\n", ["the file: holds the key 1", "Give a name"]),
    ] {
        let text = complaint(file, &[]);
        assert!(expected.iter().all(|part| text.contains(part)), "{text}");
    }
}

#[test]
fn wrong_types_name_their_key_and_what_is_needed() {
    for (file, expected) in [
        (
            "train: {steps: many}\n",
            "run.yaml:3: train.steps: is \"many\", which is not a whole number, 0 or more.",
        ),
        ("train: {steps: 1.5}\n", "run.yaml:3: train.steps: is 1.5, "),
        ("train: {steps: -1}\n", "run.yaml:3: train.steps: is -1, "),
        ("train: 5\n", "run.yaml:3: train: is 5, which is not a mapping."),
        (
            "objective: dpo\n",
            "run.yaml:3: objective: is \"dpo\", which is not a mapping with a kind.",
        ),
        (
            "optimizer: {lr: fast}\n",
            "run.yaml:3: optimizer.lr: is \"fast\", which is not a number.",
        ),
        (
            "optimizer: {clip_norm: null, betas: [0.9]}\n",
            "run.yaml:3: optimizer.betas: is [0.9], which is not a list of 2 entries.",
        ),
        (
            "optimizer: {betas: [0.9, x]}\n",
            "run.yaml:3: optimizer.betas[1]: is \"x\", which is not a number.",
        ),
        (
            "timestep: {replace: 2}\n",
            "run.yaml:3: timestep.replace: is 2, which is not true or false.",
        ),
        (
            "guard: {max_rollbacks: 5000000000}\n",
            "run.yaml:3: guard.max_rollbacks: invalid value",
        ),
        (
            "adapter: {targets: to_q}\n",
            "run.yaml:3: adapter.targets: is \"to_q\", which is not a list.",
        ),
    ] {
        let text = complaint(file, &[]);
        assert!(text.starts_with(expected), "{text}");
    }
}

#[test]
fn combinations_that_do_not_fit_say_why() {
    for (file, set, expected) in [
        (
            "preset: stable-ema\n",
            &["reference.update=frozen", "reference.anchor.kind=kl"][..],
            "reference.anchor: is set while reference.update is frozen",
        ),
        (
            "preset: stable-ema\n",
            &["objective.kind=sft"],
            "preset stable-ema: reference.update: moves a reference, but objective sft has no reference",
        ),
        (
            "objective: {kind: sft}\ntimestep:\n  weighting:\n    kind: variance\n",
            &[],
            "run.yaml:5: timestep.weighting: is variance, which follows the rewards",
        ),
        (
            "train: {pairs_per_step: 6, accumulate: 4}\n",
            &[],
            "run.yaml:3: train.accumulate: is 4, which does not divide",
        ),
        ("", &["optimizer.lr=-1"], "command line: optimizer.lr: is -1"),
        ("", &["train.steps"], "--set train.steps: holds no ="),
        ("", &["train..steps=1"], "--set train..steps=1: has an empty key"),
        ("", &["train.steps=[1"], "--set train.steps=[1: has no YAML value"),
    ] {
        let text = complaint(file, set);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn files_that_are_no_configurations_are_refused() {
    let refuse = |text: &str| {
        let (_folder, path) = written(text);
        let sources = Sources {
            file: Some(path),
            ..Sources::default()
        };
        TrainPlan::resolve(&sources).unwrap_err().to_string()
    };
    assert!(
        refuse("a: [1\nb: 2\n").contains("run.yaml:2: is not YAML"),
        "{}",
        refuse("a: [1\nb: 2\n")
    );
    assert!(refuse("just text").contains("run.yaml: holds no keys"));
    assert!(refuse("seed: 1\nseed: 2\n").contains("duplicate entry with key \"seed\""));
    assert!(refuse("").contains("run.yaml: model: is not set and has no default"));
    let missing = Sources {
        file: Some("no-such.yaml".into()),
        ..Sources::default()
    };
    assert!(
        TrainPlan::resolve(&missing)
            .unwrap_err()
            .to_string()
            .starts_with("no-such.yaml: cannot read")
    );
}

#[test]
fn no_file_is_needed() {
    let set = [
        "model=m",
        "data.kind=pickapic",
        "data.path=p",
        "data.resolution=64",
    ]
    .map(str::to_owned);
    let sources = Sources {
        file: None,
        preset: Some("diffusion-dpo".into()),
        set: set.to_vec(),
    };
    let plan = TrainPlan::resolve(&sources).unwrap();
    assert_eq!(
        (plan.model.as_path(), plan.preset),
        (Path::new("m"), Some(Preset::DiffusionDpo))
    );
}

#[test]
fn runs_are_the_same_when_only_reports_and_machines_differ() {
    let base = plan("preset: stable-ema\n", &[]).identity();
    let reported = plan(
        "preset: stable-ema\n",
        &[
            "train.eval_every=1",
            "train.keep=9",
            "runtime.threads=1",
            "guard.action=rollback",
            "model=elsewhere",
        ],
    );
    assert_eq!(base.hash(), reported.identity().hash());
    assert!(base.differences(&reported.identity()).is_empty());
    // What is measured and drawn on the way, and how many steps there are of a constant rate, is part of a report.
    let report = |set: &[&str]| plan("preset: stable-ema\n", set).reported_identity().hash();
    for set in [
        "train.eval_every=1",
        "guard.action=rollback",
        "samples.prompts=[a]",
        "train.steps=7",
    ] {
        let constant = "optimizer.schedule.kind=constant";
        assert_ne!(report(&[constant]), report(&[constant, set]), "{set}");
    }
    assert_eq!(
        report(&[]),
        report(&["train.keep=9", "runtime.threads=1", "model=elsewhere"])
    );

    // A key that came later does not make other runs of old ones.
    let storage = |storage| {
        let set = format!("reference={{update: ema, storage: {storage}}}");
        plan("", &[&set]).identity()
    };
    assert_eq!(storage("f32"), plan("", &["reference={update: ema}"]).identity());
    assert_eq!(
        storage("f32").differences(&storage("bf16"))[0].key,
        "reference.storage"
    );
    assert!(!format!("{:?}", storage("f32")).contains("storage"));

    // Only an online objective makes images of its own.
    let indifferent = |kind| {
        let hash = |set: &[&str]| plan("", &[&[kind], set].concat()).identity().hash();
        hash(&[]) == hash(&["rollout.steps=7", "buffer.passes=2"])
    };
    assert!(indifferent("objective.kind=dpo"));
    assert!(!indifferent("objective.kind=online_dpo"));

    let other = plan(
        "preset: stable-ema\n",
        &[
            "optimizer.lr=1e-3",
            "reference.anchor={kind: pull, strength: 0.2}",
        ],
    );
    assert_ne!(base.hash(), other.identity().hash());
    let named: Vec<String> = base
        .differences(&other.identity())
        .iter()
        .map(Difference::to_string)
        .collect();
    assert_eq!(named[0], "reference.anchor.kind (\"kl\" there, \"pull\" here)");
    assert!(
        named.contains(&"reference.anchor.strength (not set there, 0.2 here)".to_owned()),
        "{named:?}"
    );
    assert!(
        named.contains(&"optimizer.lr (0.0001 there, 0.001 here)".to_owned()),
        "{named:?}"
    );
}

/// A cosine schedule stretches with the run, a constant one does not.
#[test]
fn a_longer_run_continues_a_shorter_one_only_at_a_constant_rate() {
    let hash = |set: &[&str]| plan("", set).identity().hash();
    assert_ne!(hash(&["train.steps=20"]), hash(&["train.steps=40"]));
    let constant = "optimizer.schedule={kind: constant, warmup: 2}";
    assert_eq!(
        hash(&["train.steps=20", constant]),
        hash(&["train.steps=40", constant])
    );
}

/// Editors read the committed file, which `ortdpo train --print-schema` writes.
#[test]
fn the_committed_schema_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/config.schema.json");
    let committed = std::fs::read_to_string(path).unwrap();
    let remedy = "write it anew: ortdpo train --print-schema > docs/config.schema.json";
    assert!(
        committed == json_schema(),
        "docs/config.schema.json is out of date; {remedy}"
    );
}

/// One file in `examples/` per preset, named after it, each with the line that gives editors the schema.
#[test]
fn every_preset_has_an_example() {
    for preset in Preset::ALL {
        let path = format!("{}/examples/{}.yaml", env!("CARGO_MANIFEST_DIR"), preset.name());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("# yaml-language-server: $schema=../docs/config.schema.json\n"),
            "{path}"
        );
        let sources = Sources {
            file: Some(path.into()),
            ..Sources::default()
        };
        assert_eq!(TrainPlan::resolve(&sources).unwrap().preset, Some(preset));
    }
}

/// The names that other code gives providers are those of the file.
#[test]
fn every_execution_provider_can_be_named() {
    for ep in crate::runtime::ExecutionProvider::ALL {
        assert_eq!(plan("", &[&format!("runtime.ep={ep}")]).runtime.ep, ep);
    }
}
