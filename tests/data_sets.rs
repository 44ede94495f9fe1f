//! `ortdpo data` on sets that are small, unlabelled, or between other things.

mod common;

use std::fs;
use std::path::Path;

use common::data_command::{data, dataset, done, json, names, refused, rows};
use common::{fixtures, ortdpo, stderr, stdout};

#[test]
fn a_division_that_leaves_a_part_empty_is_refused() {
    let at = tempfile::tempdir().unwrap();
    let split = |share: &str| {
        let from = dataset("hpdv3");
        data(at.path(), &["split", &from, "out", "--held-out", share])
    };
    let text = refused(&split("0.01"));
    assert!(
        text.contains("none is held out") && text.contains("Give another --held-out or --seed"),
        "{text}"
    );
    assert!(refused(&split("0.999")).contains("none is left to train on"));
    assert_eq!(names(at.path()), [""; 0]);
    done(&split("0"));
    assert_eq!(names(&at.path().join("out")), ["train-00000-of-00001.parquet"]);
}

#[test]
fn a_sheet_that_cannot_be_written_is_refused_before_the_work() {
    let at = tempfile::tempdir().unwrap();
    let text = refused(&data(
        at.path(),
        &["inspect", &dataset("broken-jsonl"), "--sheet", "none/sheet.png"],
    ));
    assert!(
        text.contains("none/sheet.png: cannot be written: there is no folder none"),
        "{text}"
    );
}

#[test]
fn files_that_are_missing_by_the_names_of_others_are_named() {
    let at = tempfile::tempdir().unwrap();
    let whole = data(
        at.path(),
        &["convert", &dataset("hpdv3"), "set", "--shard-rows", "1"],
    );
    done(&whole);
    let files = names(&at.path().join("set"));
    assert!(
        files.len() > 1 && files[1].starts_with("train-00001-of-"),
        "{files:?}"
    );
    fs::remove_file(at.path().join("set").join(&files[1])).unwrap();
    let validate = ortdpo(at.path())
        .args(["data", "validate", "set"])
        .output()
        .unwrap();
    assert!(validate.status.success(), "{}", stderr(&validate));
    let said = stderr(&validate);
    assert!(
        said.contains(&format!(
            "set: {} is missing, of {} files by their names",
            files[1],
            files.len()
        )),
        "{said}"
    );
}

/// HPDv2 as it is published, with lists of prompts for benchmarks.
#[test]
fn lists_of_other_things_are_named_and_left_aside() {
    let at = tempfile::tempdir().unwrap();
    common::train::copy(Path::new(&dataset("hpdv2")), &at.path().join("HPDv2"));
    fs::create_dir(at.path().join("HPDv2/benchmark")).unwrap();
    fs::write(at.path().join("HPDv2/benchmark/anime.json"), "[\"a cat\"]").unwrap();
    let inspect = |more: &[&str]| {
        let mut command = ortdpo(at.path());
        command.args(["data", "inspect", "HPDv2"]).args(more);
        command.output().unwrap()
    };
    for more in [&[][..], &["--from", "hpdv2"]] {
        let output = inspect(more);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stdout(&output).contains("split test") && stdout(&output).contains("split train"));
        let said = stderr(&output);
        assert!(
            said.contains("HPDv2/benchmark/anime.json: left aside, since it is no list of hpdv2"),
            "{said}"
        );
    }
}

#[test]
fn pairs_that_nobody_compared_can_be_labelled() {
    let at = tempfile::tempdir().unwrap();
    for name in ["red.png", "grey.png", "blue.png"] {
        let from = fixtures().join("datasets/jsonl/pictures").join(name);
        fs::copy(from, at.path().join(name)).unwrap();
    }
    let list = "{\"prompt\": \"a red square\", \"image_0\": \"grey.png\", \"image_1\": \"red.png\", \"label\": null}\n\
                {\"prompt\": \"a red square\", \"chosen\": \"red.png\", \"rejected\": \"blue.png\"}\n";
    fs::write(at.path().join("pairs.jsonl"), list).unwrap();
    let report = json(&data(
        at.path(),
        &[
            "relabel",
            "pairs.jsonl",
            "out",
            "--reward",
            "clip",
            "--format",
            "json",
        ],
    ));
    assert_eq!(
        (&report["scored"], &report["unlabelled"], &report["left_out"]),
        (&2.into(), &1.into(), &0.into())
    );
    let written = rows(&at.path().join("out"), "train");
    assert_eq!(written.len(), 2);
    assert_eq!(
        written[0].images[1].read().unwrap(),
        fs::read(at.path().join("red.png")).unwrap()
    );
    assert!(written[0].scores.is_some());
}
