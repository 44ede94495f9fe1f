//! `ortdpo pairs` as a user runs it, and its files as training reads them.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Output};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use image::{Rgb, RgbImage};
use ortdpo::data::{Content, Images, PairSource, ParquetPairs, Preference};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

fn pairs(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ortdpo"))
        .arg("pairs")
        .args(arguments)
        .current_dir(folder)
        .env("ORT_DYLIB_PATH", Path::new(REPOSITORY).join(".ort"))
        .env(
            "ORTDPO_REWARDS",
            Path::new(REPOSITORY).join("models/tiny-rewards"),
        )
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Four pictures for each of six prompts, with a made-up score beside them.
fn pictures(folder: &Path) {
    let prompts = [
        "a cat on a blue background",
        "a small apple on a red background",
        "a dog and a key on a green background",
    ];
    let mut list = String::new();
    for (number, prompt) in prompts.iter().flat_map(|prompt| [prompt; 4]).enumerate() {
        let image = RgbImage::from_pixel(64, 64, Rgb([(number * 20) as u8, 90, 255 - (number * 20) as u8]));
        image.save(folder.join(format!("{number}.png"))).unwrap();
        let quality = (number * 7) % 5;
        list +=
            &format!("{{\"file\": \"{number}.png\", \"prompt\": \"{prompt}\", \"quality\": {quality}}}\n");
    }
    std::fs::write(folder.join("images.jsonl"), list).unwrap();
}

fn rows(folder: &Path, split: &str) -> Vec<ortdpo::data::Pair> {
    let source = ParquetPairs::open(folder, split, Images::Pairs).unwrap();
    let rows = source.rows().unwrap().map(|row| match row.unwrap().content {
        Content::Pair(pair) => pair,
        other => panic!("{other:?}"),
    });
    rows.collect()
}

#[test]
fn training_reads_the_pairs_with_their_scores_and_splits() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    pictures(at);
    let made = pairs(
        at,
        &[
            "--images",
            ".",
            "--reward",
            "clip",
            "--watch",
            "judge",
            "--choose",
            "all",
            "--held-out",
            "0.4",
            "--seed",
            "1",
            "--output",
            "out",
            "--format",
            "json",
        ],
    );
    assert!(made.status.success(), "{}", said(&made));
    let summary: Vec<Value> = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(
        (&summary[0]["score"], &summary[1]["score"]),
        (&"clip".into(), &"judge".into())
    );
    assert_eq!(summary[0]["train agreement"], 1.0);
    let (train, held_out) = (rows(&at.join("out"), "train"), rows(&at.join("out"), "heldout"));
    assert_eq!(train.len() + held_out.len(), 18);
    let captions =
        |pairs: &[ortdpo::data::Pair]| pairs.iter().map(|p| p.caption.clone()).collect::<HashSet<_>>();
    assert!(captions(&train).is_disjoint(&captions(&held_out)));
    assert!(!train.is_empty() && !held_out.is_empty());
    for pair in train.iter().chain(&held_out) {
        let [first, second] = pair.scores.unwrap();
        let preferred = if first > second {
            Preference::First
        } else {
            Preference::Second
        };
        assert_eq!(pair.preference, preferred);
        assert!(
            pair.images
                .iter()
                .all(|image| image.read().unwrap().starts_with(b"\x89PNG"))
        );
    }
    // A second time the folder is refused, unless it may be replaced, and the pairs are the same.
    let again = [
        "--images",
        ".",
        "--reward",
        "clip",
        "--choose",
        "all",
        "--held-out",
        "0.4",
        "--seed",
        "1",
        "--output",
        "out",
    ];
    let refused = pairs(at, &again);
    assert!(
        refused.status.code() == Some(2) && said(&refused).contains("is there already"),
        "{}",
        said(&refused)
    );
    assert!(pairs(at, &[&again[..], &["--replace"]].concat()).status.success());
    assert_eq!(rows(&at.join("out"), "train"), train);
}

#[test]
fn scores_may_come_with_the_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    pictures(at);
    let made = pairs(
        at,
        &[
            "--images",
            "images.jsonl",
            "--column",
            "quality",
            "--held-out",
            "0",
            "--output",
            "out",
        ],
    );
    assert!(made.status.success(), "{}", said(&made));
    let found = rows(&at.join("out"), "train");
    assert_eq!(found.len(), 3, "best against worst of each prompt");
    assert!(!at.join("out/heldout-00000-of-00001.parquet").exists());
    let unknown = pairs(
        at,
        &["--images", "images.jsonl", "--column", "beauty", "--output", "x"],
    );
    assert!(
        unknown.status.code() == Some(2) && said(&unknown).contains("no number in the column `beauty`"),
        "{}",
        said(&unknown)
    );
    std::fs::remove_file(at.join("images.jsonl")).unwrap();
    let alone = pairs(at, &["--images", "*.png", "--reward", "judge", "--output", "y"]);
    assert!(
        alone.status.code() == Some(2) && said(&alone).contains("without a prompt"),
        "{}",
        said(&alone)
    );
}

/// Folders of `ortdpo generate` all hold an images/00000-0.png.
#[test]
fn pictures_of_several_folders_keep_names_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (name, quality) in [("hasty", 1), ("careful", 2)] {
        let images = at.join(name);
        std::fs::create_dir(&images).unwrap();
        let shade = 100 * quality as u8;
        RgbImage::from_pixel(8, 8, Rgb([shade; 3]))
            .save(images.join("0.png"))
            .unwrap();
        let record =
            serde_json::json!({"file": "0.png", "prompt": "a cat", "quality": quality, "model": "tiny"});
        std::fs::write(images.join("images.jsonl"), format!("{record}\n")).unwrap();
    }
    let arguments = ["--images", "hasty", "--images", "careful", "--column", "quality"];
    let made = pairs(
        at,
        &[&arguments[..], &["--held-out", "0", "--output", "out"]].concat(),
    );
    assert!(made.status.success(), "{}", said(&made));
    let file = std::fs::File::open(at.join("out/train-00000-of-00001.parquet")).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .unwrap()
        .build()
        .unwrap();
    let batch: RecordBatch = reader.map(Result::unwrap).next().unwrap();
    let text = |column: &str| {
        let column = batch.column_by_name(column).unwrap();
        column.as_string::<i32>().value(0).to_owned()
    };
    let names = [text("image_0_uid"), text("image_1_uid")];
    assert!(
        names.contains(&"hasty/0.png".into()) && names.contains(&"careful/0.png".into()),
        "{names:?}"
    );
    assert_eq!(text("best_image_uid"), "careful/0.png");
}
