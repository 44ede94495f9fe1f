//! `ortdpo fid` as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{Rgb, RgbImage};
use ortdpo::setmetric::Reference;
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/set_metrics")
        .join(name)
}

/// Ten pictures of two prompts in a folder as `ortdpo generate` leaves it.
fn pictures(folder: &Path, brightness: u32) {
    std::fs::create_dir_all(folder).unwrap();
    let mut list = String::new();
    for i in 0..10u32 {
        let value = |x, y, c| ((x * (3 + i) + y * (7 + c) + brightness) % 256) as u8;
        let image = RgbImage::from_fn(24, 20, |x, y| {
            Rgb([value(x, y, i), value(y, x, 5), value(x, x, 2 * i)])
        });
        image.save(folder.join(format!("{i}.png"))).unwrap();
        list += &format!("{{\"file\": \"{i}.png\", \"prompt\": \"prompt {}\"}}\n", i % 2);
    }
    std::fs::write(folder.join("images.jsonl"), list).unwrap();
}

fn fid(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ortdpo"))
        .arg("fid")
        .args(arguments)
        .current_dir(folder)
        .env(
            "ORT_DYLIB_PATH",
            Path::new(env!("CARGO_MANIFEST_DIR")).join(".ort"),
        )
        .output()
        .unwrap()
}

fn metrics(output: &Output) -> Vec<(String, f64)> {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let row = |row: &Value| {
        (
            row["metric"].as_str().unwrap().to_owned(),
            row["value"].as_f64().unwrap(),
        )
    };
    rows.iter().map(row).collect()
}

#[test]
fn pictures_are_compared_with_pictures_and_with_their_saved_statistics() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    pictures(&at.join("a"), 0);
    pictures(&at.join("b"), 60);
    std::fs::write(at.join("b/broken.png"), b"no picture").unwrap();
    let list = std::fs::read_to_string(at.join("b/images.jsonl")).unwrap();
    std::fs::write(
        at.join("b/images.jsonl"),
        list + "{\"file\": \"broken.png\", \"prompt\": \"x\"}\n",
    )
    .unwrap();
    let extractor = fixture("extractor");
    let common = ["--features", extractor.to_str().unwrap(), "--format", "json"];
    let saved = fid(
        at,
        &[
            &common[..],
            &["--images", "b", "--save-statistics", "b.npz", "--no-cache"],
        ]
        .concat(),
    );
    let alone = metrics(&saved);
    assert_eq!(alone[0].0, "Vendi score");
    assert_eq!(alone[1].0, "1 - cosine within a prompt");
    let said = String::from_utf8_lossy(&saved.stderr).into_owned();
    assert!(
        said.contains("broken.png: ") && said.contains("left out"),
        "{said}"
    );
    let reference = Reference::read(&at.join("b.npz")).unwrap();
    assert_eq!(reference.statistics.n, Some(10));
    let by_file = metrics(&fid(
        at,
        &[
            &common[..],
            &["--images", "a", "--reference", "b.npz", "--no-cache"],
        ]
        .concat(),
    ));
    let by_pictures = metrics(&fid(
        at,
        &[&common[..], &["--images", "a", "--reference", "b"]].concat(),
    ));
    assert_eq!(by_file, by_pictures);
    let cached = metrics(&fid(
        at,
        &[&common[..], &["--images", "a", "--reference", "b"]].concat(),
    ));
    assert_eq!(cached, by_pictures);
    let names: Vec<&str> = by_file.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["FID", "KID", "Vendi score", "1 - cosine within a prompt"]);
    assert!(by_file[0].1 > 0.0);
    let itself = metrics(&fid(
        at,
        &[
            &common[..],
            &["--images", "b", "--reference", "b.npz", "--no-cache"],
        ]
        .concat(),
    ));
    assert!(itself[0].1.abs() < 1e-6 * by_file[0].1, "{itself:?}");
}

#[test]
fn statistics_of_another_extractor_are_refused_and_low_ranks_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    pictures(&at.join("a"), 0);
    let mut reference = Reference::read(&fixture("clean_fid.npz")).unwrap();
    let extractor = fixture("extractor");
    let common = [
        "--features",
        extractor.to_str().unwrap(),
        "--images",
        "a",
        "--reference",
        "r.npz",
    ];
    reference.write(&at.join("r.npz")).unwrap();
    let output = fid(at, &common);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("features of 6 and 24 values"), "{said}");
    reference.extractor = Some(ortdpo::model_folder::ContentHash([1; 32]));
    reference.write(&at.join("r.npz")).unwrap();
    let output = fid(at, &common);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(2) && said.contains("of another extractor than tiny-features"),
        "{said}"
    );
    let few = fid(
        at,
        &[
            "--features",
            common[1],
            "--images",
            "a/[0-4].png",
            "--reference",
            "a",
        ],
    );
    let said = String::from_utf8_lossy(&few.stderr).into_owned();
    assert!(
        few.status.success() && said.contains("warning: 5 pictures give a covariance of 6 features"),
        "{said}"
    );
}

#[test]
fn perceptual_extractors_measure_diversity_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    pictures(&at.join("a"), 0);
    let extractor = fixture("perceptual");
    let common = [
        "--features",
        extractor.to_str().unwrap(),
        "--images",
        "a",
        "--format",
        "json",
    ];
    let found = metrics(&fid(at, &common));
    assert_eq!(found.len(), 1);
    assert!(found[0].0 == "LPIPS within a prompt" && found[0].1 > 0.0);
    let refused = fid(at, &[&common[..], &["--reference", "a"]].concat());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(2) && said.contains("kind perceptual"),
        "{said}"
    );
}
