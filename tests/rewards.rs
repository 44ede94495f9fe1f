//! The reward models of the repository against PyTorch, and what wrong folders are told.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use ortdpo::data::image::decode;
use ortdpo::data::{Content, Images, PairSource, ParquetPairs, Row};
use ortdpo::reward::{RewardModel, manifest};
use ortdpo::runtime::SessionOptions;
use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn tiny(name: &str) -> PathBuf {
    repository().join("models/tiny-rewards").join(name)
}

fn open(name: &str) -> RewardModel {
    RewardModel::open_folder(&tiny(name), &SessionOptions::default()).unwrap()
}

/// Held-out pictures with their captions, and what PyTorch says of them (`scripts/fixtures/tiny_rewards.py`).
fn held_out() -> (Vec<RgbImage>, Vec<String>, Vec<Value>) {
    let expected = fs::read(common::fixtures().join("tiny_rewards.json")).unwrap();
    let expected: Vec<Value> = serde_json::from_slice(&expected).unwrap();
    let source = ParquetPairs::open(
        &repository().join("models/tiny-sd/pairs"),
        "heldout",
        Images::Pairs,
    )
    .unwrap();
    let rows: Vec<Row> = source.rows().unwrap().take(40).collect::<Result<_, _>>().unwrap();
    let (mut pictures, mut captions) = (Vec::new(), Vec::new());
    for case in &expected {
        let Content::Pair(pair) = &rows[case["row"].as_u64().unwrap() as usize].content else {
            panic!("held-out rows are pairs")
        };
        let file = pair.images[case["side"].as_u64().unwrap() as usize]
            .read()
            .unwrap();
        pictures.push(decode(&file).unwrap());
        captions.push(pair.caption.clone());
    }
    (pictures, captions, expected)
}

#[test]
fn tiny_rewards_score_as_pytorch_does() {
    let (pictures, captions, expected) = held_out();
    let prompts: Vec<&str> = captions.iter().map(String::as_str).collect();
    // The pictures are JPEG files, which decoders read alike to a step or two of 255; tests/reward_parity.rs is exact.
    for (name, tolerance) in [("clip", 0.02), ("aesthetic", 0.02), ("judge", 0.005)] {
        let scores = open(name).score(&pictures, &prompts).unwrap();
        let expected: Vec<f64> = expected.iter().map(|case| case[name].as_f64().unwrap()).collect();
        let spread = expected.iter().copied().fold(f64::MIN, f64::max)
            - expected.iter().copied().fold(f64::MAX, f64::min);
        assert!(spread > 100.0 * tolerance, "{name} spreads over {spread}");
        for (ours, theirs) in scores.iter().zip(&expected) {
            assert!((ours - theirs).abs() < tolerance, "{name}: {ours} {theirs}");
        }
    }
}

#[test]
fn the_size_of_a_batch_changes_nothing() {
    let (pictures, captions, _) = held_out();
    let prompts: Vec<&str> = captions.iter().map(String::as_str).collect();
    let mut clip = open("clip");
    let together = clip.score(&pictures[..20], &prompts[..20]).unwrap();
    for (index, whole) in together.iter().enumerate() {
        let alone = clip
            .score(&pictures[index..=index], &prompts[index..=index])
            .unwrap();
        assert!((alone[0] - whole).abs() < 1e-4);
    }
    assert_eq!(clip.score(&[], &[]).unwrap(), [0.0; 0]);
    assert_eq!(clip.embed_images(&pictures[..3]).unwrap().shape(), [3, 96]);
    let unpaired = clip.score(&pictures[..2], &prompts[..1]).unwrap_err().to_string();
    assert!(unpaired.contains("2 pictures and 1 prompts"), "{unpaired}");
}

#[test]
fn the_judge_refuses_prompts_it_cannot_check() {
    let (pictures, _, _) = held_out();
    let error = open("judge")
        .score(&pictures[..1], &["a zebra on a red background"])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("a zebra on a red background") && error.contains("mentions fewer than 1"),
        "{error}"
    );
}

/// A copy of a tiny reward whose manifest is changed.
fn changed(name: &str, from: &str, to: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    copy(&tiny(name), folder.path());
    let path = folder.path().join("reward.yaml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(&path, text.replacen(from, to, 1)).unwrap();
    let error = match RewardModel::open_folder(folder.path(), &SessionOptions::default()) {
        Ok(_) => "no error".to_owned(),
        Err(error) => error.to_string(),
    };
    (folder, error)
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn wrong_manifests_say_where_and_what() {
    for (name, from, to, expected) in [
        ("clip", "licence: CC-BY-4.0\n", "", &["licence: is not set"][..]),
        (
            "clip",
            "unit:",
            "units:",
            &["reward.yaml:4: units", "Did you mean unit?"],
        ),
        (
            "clip",
            "kind: dual_tower",
            "kind: dual_towers",
            &["reward.yaml:8: scorer.kind", "Did you mean dual_tower?"],
        ),
        (
            "clip",
            "filter: bicubic",
            "filter: cubic",
            &["preprocessing[0].filter", "Did you mean bicubic?"],
        ),
        (
            "clip",
            "step: center_crop_transformers_v1",
            "step: center_crop_v1",
            &["preprocessing[1].step"],
        ),
        (
            "clip",
            "size: 64, filter",
            "size: 48, filter",
            &["preprocessing[1].step: crops 64 pixels"],
        ),
        (
            "clip",
            "      - {step: to_unit_float_v1}\n",
            "",
            &["preprocessing[2].step: works on floats"],
        ),
        (
            "clip",
            "input: pixel_values",
            "input: pixels",
            &["model.onnx: has no input `pixels`", "pixel_values f32["],
        ),
        (
            "clip",
            "output: image_embeds",
            "output: embeds",
            &["has no output `embeds`", "image_embeds"],
        ),
        (
            "clip",
            ", mask: attention_mask",
            "",
            &["takes an input `attention_mask", "does not name"],
        ),
        ("clip", "length: 16", "length: 12", &["12 token ids per prompt"]),
        (
            "clip",
            "size: 64, filter: bicubic",
            "size: 64.5, filter: bicubic",
            &["is 64.5, which is not a whole number"],
        ),
        (
            "clip",
            "name: clip",
            "name: tiny clip",
            &["reward.yaml:2: name: is \"tiny clip\""],
        ),
        (
            "judge",
            "label: clean",
            "label: tidy",
            &["heads[3].expect", "lacks", "clean, junk"],
        ),
        (
            "judge",
            "output: junk",
            "output: trash",
            &["has no output `trash`"],
        ),
        ("judge", "nth: 1}", "nth: 0}", &["Count from 1"]),
    ] {
        let (_folder, error) = changed(name, from, to);
        for part in expected {
            assert!(error.contains(part), "{from:?} -> {to:?}: {error}");
        }
    }
}

#[test]
fn hashes_follow_content() {
    let clip = open("clip");
    let (same, _) = changed("clip", "source:", "source:");
    let same = RewardModel::open_folder(same.path(), &SessionOptions::default()).unwrap();
    assert_eq!(clip.hash().unwrap(), same.hash().unwrap());
    let (other, _) = changed("clip", "filter: bicubic", "filter: bilinear");
    let other = RewardModel::open_folder(other.path(), &SessionOptions::default()).unwrap();
    assert_ne!(clip.hash().unwrap(), other.hash().unwrap());
    assert_ne!(clip.features_hash().unwrap(), other.features_hash().unwrap());
    let (scaled, _) = changed(
        "clip",
        "scale: {kind: logit",
        "scale: {kind: logit, logit_bias: 1.0",
    );
    let scaled = RewardModel::open_folder(scaled.path(), &SessionOptions::default()).unwrap();
    assert_ne!(clip.hash().unwrap(), scaled.hash().unwrap());
    assert_eq!(clip.features_hash().unwrap(), scaled.features_hash().unwrap());
}

/// Editors read the committed file; `UPDATE=1 cargo test --test rewards` writes it anew.
#[test]
fn the_committed_schema_is_current() {
    let path = repository().join("docs/reward.schema.json");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, manifest::json_schema()).unwrap();
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == manifest::json_schema(),
        "docs/reward.schema.json is out of date; write it anew: UPDATE=1 cargo test --test rewards"
    );
}
