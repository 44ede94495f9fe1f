//! `ortdpo score` as a user runs it, with the rewards of tiny-sd.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::train::refused;
use common::{fixtures, ortdpo, stderr, stdout};
use image::{Rgb, RgbImage};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

const PROMPTS: [&str; 4] = [
    "a small apple on a red background",
    "a cat on a blue background",
    "a cat and a rocket on a green background",
    "a key on a gray background",
];

fn reward(name: &str) -> PathBuf {
    fixtures().join("../../models/tiny-rewards").join(name)
}

/// A folder with pictures and a list of them, as `ortdpo generate` leaves it.
fn pictures() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("out/images");
    fs::create_dir_all(&images).unwrap();
    let mut list = String::new();
    for (i, prompt) in PROMPTS.iter().enumerate() {
        let file = format!("images/{i:05}-0.png");
        let shade = 60 * i as u8;
        let picture = RgbImage::from_fn(64, 64, |x, y| match (x / 16 + y / 16) % 2 {
            0 => Rgb([shade, 255 - shade, 40]),
            _ => Rgb([20, shade, 200]),
        });
        picture.save(folder.path().join("out").join(&file)).unwrap();
        let style = ["plain", "odd"][i % 2];
        let record =
            json!({"file": file, "prompt": prompt, "prompt_index": i, "image_index": 0, "style": style});
        list.push_str(&format!("{record}\n"));
    }
    fs::write(folder.path().join("out/images.jsonl"), list).unwrap();
    folder
}

fn score(folder: &Path, rewards: &[&str], arguments: &[&str]) -> Command {
    let mut command = ortdpo(folder);
    let rewards: Vec<String> = rewards
        .iter()
        .map(|name| reward(name).display().to_string())
        .collect();
    command.args(["--quiet", "score", "--reward", &rewards.join(",")]);
    command.args(arguments);
    command
}

fn succeeded(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    stdout(output)
}

fn rows(text: &str) -> Vec<Value> {
    let whole: Value = serde_json::from_str(text).unwrap();
    whole["rows"].as_array().unwrap().clone()
}

#[test]
fn a_row_per_picture_and_a_summary_that_are_the_same_from_the_cache() {
    let folder = pictures();
    let arguments = ["--images", "out", "--format", "json"];
    let run = || {
        succeeded(
            &score(folder.path(), &["clip", "judge", "aesthetic"], &arguments)
                .output()
                .unwrap(),
        )
    };
    let first = run();
    let found = rows(&first);
    assert_eq!(found.len(), PROMPTS.len());
    for (row, prompt) in found.iter().zip(PROMPTS) {
        assert_eq!(row["prompt"], prompt);
        assert!(
            row["clip"].is_f64() && row["aesthetic"].is_f64() && row["problem"].is_null(),
            "{row}"
        );
        assert!((0.0..=1.0).contains(&row["judge"].as_f64().unwrap()));
    }
    let summary: Value = serde_json::from_str(&first).unwrap();
    let clip = &summary["summary"][0];
    let mean = found.iter().map(|row| row["clip"].as_f64().unwrap()).sum::<f64>() / 4.0;
    assert_eq!(
        (clip["reward"].as_str(), clip["n"].as_u64()),
        (Some("clip"), Some(4))
    );
    assert!((clip["mean"].as_f64().unwrap() - mean).abs() < 1e-9);
    assert!(folder.path().join(".cache/features").is_dir());
    // Other bytes under the same name are another picture.
    assert_eq!(run(), first);
    fs::copy(
        folder.path().join("out/images/00001-0.png"),
        folder.path().join("out/images/00000-0.png"),
    )
    .unwrap();
    assert_ne!(rows(&run())[0]["aesthetic"], found[0]["aesthetic"]);
}

#[test]
fn summaries_by_a_column() {
    let folder = pictures();
    let arguments = ["--images", "out", "--group-by", "style"];
    let text = succeeded(&score(folder.path(), &["aesthetic"], &arguments).output().unwrap());
    for part in ["style", "plain", "odd", "aesthetic", "median", "2"] {
        assert!(text.contains(part), "{text}");
    }
    let arguments = ["--images", "out", "--group-by", "stile"];
    let error = refused(&score(folder.path(), &["aesthetic"], &arguments).output().unwrap());
    assert!(
        error.contains("--group-by stile") && error.contains("style"),
        "{error}"
    );
}

#[test]
fn a_broken_picture_is_counted_and_not_fatal() {
    let folder = pictures();
    let path = folder.path().join("out/images/00002-0.png");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let arguments = ["--images", "out", "--format", "csv", "--output", "scores.csv"];
    let mut command = score(folder.path(), &["clip"], &arguments);
    let output = command.output().unwrap();
    let summary = succeeded(&output);
    assert!(summary.contains("clip") && summary.contains('3'), "{summary}");
    let table = fs::read_to_string(folder.path().join("scores.csv")).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 5);
    assert!(
        lines[0].starts_with("file,prompt,") && lines[0].ends_with(",clip,problem"),
        "{}",
        lines[0]
    );
    assert!(
        lines[3].contains("00002-0.png") && !lines[3].ends_with(','),
        "{}",
        lines[3]
    );
    assert!(lines[4].ends_with(','), "{}", lines[4]);
}

#[test]
fn prompts_that_do_not_pair_up_are_named() {
    let folder = pictures();
    fs::remove_file(folder.path().join("out/images.jsonl")).unwrap();
    let with = |lines: &str, arguments: &[&str]| {
        fs::write(folder.path().join("prompts.txt"), lines).unwrap();
        let all = [&["--images", "out"], arguments].concat();
        score(folder.path(), &["clip"], &all).output().unwrap()
    };
    let named = ["--prompts", "prompts.txt"];
    let error = refused(&with("a cat\na dog\n", &named));
    assert!(
        error.contains("prompts.txt") && error.contains("has 2 prompts") && error.contains("00002-0.png"),
        "{error}"
    );
    let five = "a\nb\nc\nd\nthe fifth\n";
    let error = refused(&with(five, &named));
    assert!(
        error.contains("5 prompts for 4 pictures") && error.contains("the fifth"),
        "{error}"
    );
    let error = refused(&with("", &[]));
    assert!(
        error.contains("00000-0.png") && error.contains("without a prompt"),
        "{error}"
    );
    let text = succeeded(&with("a cat\na dog\na bee\na bus\n", &named));
    assert!(text.contains("clip"), "{text}");

    let folder = pictures();
    fs::write(
        folder.path().join("prompts.txt"),
        PROMPTS.join("\n").replace("rocket", "bee"),
    )
    .unwrap();
    let arguments = ["--images", "out", "--prompts", "prompts.txt"];
    let error = refused(&score(folder.path(), &["clip"], &arguments).output().unwrap());
    assert!(
        error.contains("00002-0.png")
            && error.contains("cat and a bee")
            && error.contains("cat and a rocket"),
        "{error}"
    );
}

/// A copy of `aesthetic` under another name, with another head.
fn with_head(folder: &Path, name: &str, weights: usize, bias: f32) {
    let copy = folder.join(name);
    fs::create_dir(&copy).unwrap();
    let original = reward("aesthetic");
    fs::copy(original.join("model.onnx"), copy.join("model.onnx")).unwrap();
    let manifest = fs::read_to_string(original.join("reward.yaml")).unwrap();
    let manifest = manifest.replace("name: aesthetic", &format!("name: {name}"));
    fs::write(copy.join("reward.yaml"), manifest).unwrap();
    let values = vec![0.25f32; weights];
    let weight = TensorView::new(Dtype::F32, vec![1, weights], bytemuck::cast_slice(&values)).unwrap();
    let bias = bias.to_le_bytes();
    let bias = TensorView::new(Dtype::F32, vec![1], &bias).unwrap();
    let tensors = [("weight", weight), ("bias", bias)];
    fs::write(
        copy.join("head.safetensors"),
        safetensors::serialize(tensors, None).unwrap(),
    )
    .unwrap();
}

#[test]
fn scores_that_are_no_numbers_are_named_and_spoil_no_others() {
    let folder = pictures();
    with_head(folder.path(), "broken", 64, f32::NAN);
    let both = format!("{},broken", reward("clip").display());
    let run = |rewards: &str, further: &[&str]| {
        let mut command = ortdpo(folder.path());
        command.args([
            "score", "--images", "out", "--format", "json", "--reward", rewards,
        ]);
        command.args(further).output().unwrap()
    };
    let output = run(&both, &[]);
    let rows = rows(&succeeded(&output));
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert!(row["clip"].is_number() && row["broken"].is_null(), "{row}");
        let problem = row["problem"].as_str().unwrap();
        assert!(problem.contains("reward broken: gives NaN"), "{problem}");
    }
    let told = stderr(&output);
    assert!(told.contains("4 of 4 pictures"), "{told}");
    let error = refused(&run("broken", &["--quiet"]));
    assert!(
        error.contains("00000-0.png") && error.contains("gives NaN"),
        "{error}"
    );
}

#[test]
fn a_head_for_another_embedding_is_refused_before_any_picture_is_read() {
    let folder = pictures();
    with_head(folder.path(), "other", 5, 0.0);
    let error = refused(
        &ortdpo(folder.path())
            .args(["score", "--images", "out", "--reward", "other"])
            .output()
            .unwrap(),
    );
    assert!(
        error.contains("other/head.safetensors: holds 5 weights for embeddings of 64 values")
            && !error.contains(".png"),
        "{error}"
    );
}

#[test]
fn what_is_not_there_is_named() {
    let folder = pictures();
    fs::create_dir(folder.path().join("empty")).unwrap();
    let error = refused(
        &score(folder.path(), &["clip"], &["--images", "empty"])
            .output()
            .unwrap(),
    );
    assert!(
        error.contains("empty") && error.contains("no pictures"),
        "{error}"
    );
    let error = refused(
        &score(folder.path(), &["clip"], &["--images", "nowhere"])
            .output()
            .unwrap(),
    );
    assert!(error.contains("nowhere"), "{error}");
    let mut command = ortdpo(folder.path());
    let error = refused(
        &command
            .args(["score", "--reward", "pikscore", "--images", "out"])
            .output()
            .unwrap(),
    );
    assert!(error.contains("pikscore"), "{error}");
    let arguments = ["--images", "out", "--format", "parquet"];
    let error = refused(&score(folder.path(), &["clip"], &arguments).output().unwrap());
    assert!(error.contains("--output"), "{error}");
}

#[test]
fn rows_are_written_as_parquet() {
    let folder = pictures();
    let arguments = [
        "--images",
        "out",
        "--format",
        "parquet",
        "--output",
        "scores.parquet",
    ];
    succeeded(&score(folder.path(), &["clip"], &arguments).output().unwrap());
    let bytes = fs::read(folder.path().join("scores.parquet")).unwrap();
    assert_eq!(
        (&bytes[..4], &bytes[bytes.len() - 4..]),
        (&b"PAR1"[..], &b"PAR1"[..])
    );
}
