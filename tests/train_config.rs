//! `ortdpo train` and its configuration: what is printed, and what bad files are told.

mod common;

use std::process::Output;

use common::{ortdpo, stderr, stdout};

/// `ortdpo train` in a folder that holds `run.yaml` with these lines after the ones that every run needs.
fn train(rest: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let needed = "model: m\ndata: {path: p, resolution: 64}\n";
    std::fs::write(folder.path().join("run.yaml"), format!("{needed}{rest}")).unwrap();
    let mut command = ortdpo(folder.path());
    command.arg("train").args(arguments).output().unwrap()
}

#[test]
fn the_printed_configuration_prints_as_itself() {
    let first = train(
        "preset: stable-ema\n",
        &[
            "--config",
            "run.yaml",
            "--set",
            "optimizer.lr=3e-4",
            "--print-config",
        ],
    );
    let text = stdout(&first);
    assert!(first.status.success(), "{}", stderr(&first));
    assert!(
        text.contains("lr: 0.0003") && text.contains("kind: variance") && text.contains("kind: kl"),
        "{text}"
    );

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("printed.yaml"), &text).unwrap();
    let mut again = ortdpo(folder.path());
    again.args(["train", "--config", "printed.yaml", "--print-config"]);
    assert_eq!(stdout(&again.output().unwrap()), text);
}

#[test]
fn every_example_and_recipe_resolves() {
    let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = 0;
    for folder in ["examples", "recipes"] {
        for entry in std::fs::read_dir(repository.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if !text.contains("/config.schema.json") {
                continue;
            }
            found += 1;
            let mut command = ortdpo(repository);
            let output = command
                .args(["train", "--print-config", "--config"])
                .arg(&path)
                .output();
            let output = output.unwrap();
            assert!(output.status.success(), "{}: {}", path.display(), stderr(&output));
        }
    }
    assert!(found >= 11, "{found}");
}

#[test]
fn the_printed_schema_is_the_committed_one() {
    let committed =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/config.schema.json")).unwrap();
    assert_eq!(stdout(&train("", &["--print-schema"])), committed);
}

#[test]
fn bad_configurations_end_with_code_2_and_one_line() {
    for (rest, arguments, expected) in [
        (
            "objective: {kind: dpo, bta: 1}\n",
            &[][..],
            "error: run.yaml:3: objective.bta: is not a known key. Did you mean beta?",
        ),
        (
            "train: {steps: x}\n",
            &[],
            "error: run.yaml:3: train.steps: is \"x\", which is not a whole number",
        ),
        (
            "",
            &["--set", "reference.anchor={kind: kl}"],
            "error: command line: reference.anchor: is set while",
        ),
        (
            "",
            &["--preset", "stable"],
            "error: command line: preset: is \"stable\", which is not a known name. Did you mean",
        ),
    ] {
        let output = train(
            rest,
            &[&["--config", "run.yaml", "--print-config"], arguments].concat(),
        );
        let text = stderr(&output);
        assert_eq!(
            (output.status.code(), stdout(&output).as_str()),
            (Some(2), ""),
            "{text}"
        );
        assert!(
            text.starts_with(expected) && text.trim_end().lines().count() == 1,
            "{text}"
        );
    }
}

/// Diffusion-DPO's launchers and paper, and what Rethinking DPO adds to them; numbers that no source gives are not looked at.
#[test]
fn recipes_hold_the_published_numbers() {
    let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let resolved = |name: &str| -> serde_yaml::Value {
        let mut command = ortdpo(repository);
        command.args(["train", "--print-config", "--config"]);
        let output = command.arg(format!("recipes/{name}.yaml")).output().unwrap();
        serde_yaml::from_str(&stdout(&output)).unwrap()
    };
    for (family, delta) in [("sd15", 5.0e-3), ("sdxl", 2.0e-3)] {
        let is_xl = family == "sdxl";
        for method in ["diffusion-dpo", "rethinking-dpo"] {
            let config = resolved(&format!("{family}-{method}"));
            let at = |path: &str| path.split('.').fold(&config, |value, key| &value[key]);
            let text = |path: &str, expected: &str| {
                assert_eq!(at(path).as_str(), Some(expected), "{family}-{method}: {path}");
            };
            let number = |path: &str, expected: f64| {
                assert_eq!(at(path).as_f64(), Some(expected), "{family}-{method}: {path}");
            };
            text("adapter.kind", "full");
            text("objective.kind", "dpo");
            text("data.ties", "drop");
            text("optimizer.kind", if is_xl { "adafactor" } else { "adamw" });
            text("optimizer.schedule.kind", "constant");
            // 1e-8, multiplied by the batch.
            for (path, expected) in [
                ("optimizer.lr", 1.0e-8 * 2048.0),
                ("optimizer.weight_decay", 0.01),
                ("optimizer.clip_norm", 1.0),
                ("optimizer.schedule.warmup", if is_xl { 200.0 } else { 500.0 }),
                ("objective.beta", 5000.0),
                ("train.pairs_per_step", 2048.0),
                ("train.steps", 2000.0),
                ("data.prompt_dropout", 0.2),
                ("data.resolution", if is_xl { 1024.0 } else { 512.0 }),
            ] {
                number(path, expected);
            }
            if is_xl {
                text("data.micro_conditioning", "target");
            }
            if method == "diffusion-dpo" {
                text("reference.update", "frozen");
                continue;
            }
            text("reference.update", "copy");
            text("reference.anchor.kind", "gate");
            text("timestep.sampling.kind", "geometric");
            text("timestep.reward_scale", "inverse_sqrt_snr");
            number("reference.every", 32.0);
            number("reference.anchor.delta", delta);
            number("timestep.sampling.gamma", 0.9);
        }
    }
}
