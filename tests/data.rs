//! `ortdpo data` as a user runs it.

mod common;

use std::fs;
use std::path::PathBuf;

use common::data_command::{data, dataset, done, json, names, refused, rows};
use common::train::{Workspace, metrics};
use common::{fixtures, stdout};
use ortdpo::data::Preference;
use serde_json::Value;

/// The pairs of the repository's small Stable Diffusion.
fn tiny_sd() -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "models/tiny-sd/pairs"]
        .iter()
        .collect();
    path.display().to_string()
}

#[test]
fn inspect_counts_what_is_there() {
    let at = tempfile::tempdir().unwrap();
    let report = json(&data(
        at.path(),
        &[
            "inspect",
            &dataset("jsonl"),
            "--alike",
            "--sheet",
            "sheet.png",
            "--format",
            "json",
        ],
    ));
    assert_eq!(report["kind"], "jsonl");
    let [heldout, train] = [&report["splits"][0], &report["splits"][1]];
    assert_eq!(
        (&heldout["split"], &train["split"]),
        (&"heldout".into(), &"train".into())
    );
    let counts = [
        "rows",
        "pairs",
        "first_preferred",
        "second_preferred",
        "ties",
        "unlabelled",
        "scored",
    ];
    let of = |split: &Value| counts.map(|name| split[name].as_u64().unwrap());
    assert_eq!(of(train), [3, 3, 1, 1, 1, 0, 1]);
    assert_eq!(of(heldout), [6, 5, 3, 2, 0, 1, 0]);
    assert_eq!(train["pictures"], 6);
    let bytes: u64 = fs::read_dir(fixtures().join("datasets/jsonl/pictures"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(train["bytes"], bytes);
    assert_eq!(train["formats"]["png"], 6);
    let sizes: u64 = train["resolutions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["pictures"].as_u64().unwrap())
        .sum();
    assert_eq!((sizes, &train["resolutions"][0]["width"]), (6, &24.into()));
    // red/grey comes twice in the held-out part: once by name and once by rank, the other way round but of the same opinion.
    let duplicates = &heldout["duplicates"];
    assert_eq!(
        (&duplicates["repeated_pairs"], &duplicates["contradictions"]),
        (&1.into(), &0.into())
    );
    assert_eq!(report["shared"]["prompts"], 1);
    assert_eq!(report["shared"]["pictures"], 4);
    let sheet = image::open(at.path().join("sheet.png")).unwrap().into_rgb8();
    assert!(sheet.width() > 1000, "three pairs abreast");

    let text = done(&data(at.path(), &["inspect", &dataset("rated-csv")]));
    assert!(
        text.contains("not liked") && !text.contains("pairs of one picture"),
        "{text}"
    );
}

#[test]
fn pictures_that_look_alike_are_found_and_others_are_not() {
    let at = tempfile::tempdir().unwrap();
    let mut shards = fs::read_dir(tiny_sd())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let shard = shards
        .find(|path| path.to_string_lossy().contains("heldout"))
        .unwrap();
    let pairs = rows(&shard, "any");
    let picture = |n: usize| {
        image::load_from_memory(&pairs[n].images[0].read().unwrap())
            .unwrap()
            .into_rgb8()
    };
    let one = picture(0);
    one.save(at.path().join("one.png")).unwrap();
    // Saved as JPEG, and made larger: other bytes, the same to the eye.
    one.save(at.path().join("again.jpg")).unwrap();
    let larger = image::imageops::resize(&one, 100, 100, image::imageops::FilterType::CatmullRom);
    larger.save(at.path().join("larger.png")).unwrap();
    picture(40).save(at.path().join("other.png")).unwrap();
    // In another split, with a name of its own.
    let smaller = image::imageops::resize(&one, 48, 48, image::imageops::FilterType::CatmullRom);
    smaller.save(at.path().join("smaller.png")).unwrap();
    picture(80).save(at.path().join("third.png")).unwrap();
    let heldout = "{\"prompt\": \"b\", \"chosen\": \"third.png\", \"rejected\": \"smaller.png\"}\n";
    fs::write(at.path().join("heldout.jsonl"), heldout).unwrap();
    let list = "{\"prompt\": \"a\", \"chosen\": \"one.png\", \"rejected\": \"other.png\"}\n\
                {\"prompt\": \"a\", \"chosen\": \"again.jpg\", \"rejected\": \"larger.png\"}\n";
    fs::write(at.path().join("train.jsonl"), list).unwrap();
    let report = json(&data(at.path(), &["inspect", ".", "--alike", "--format", "json"]));
    let [heldout, train] = [&report["splits"][0], &report["splits"][1]];
    assert_eq!(heldout["duplicates"]["alike"], 0, "{report}");
    assert_eq!(train["duplicates"]["alike"], 3, "{report}");
    let example = train["duplicates"]["alike_examples"][0].as_str().unwrap();
    assert!(example.contains("picture of ./train.jsonl, line "), "{example}");
    assert_eq!(report["shared"]["alike"], 4, "{report}");
    assert_eq!(report["shared"]["pictures"], 0);
    let example = report["shared"]["alike_examples"][0].as_str().unwrap();
    assert!(
        example.contains("the second picture of ./heldout.jsonl, line 1 and")
            && example.contains("train.jsonl"),
        "{example}"
    );
}

#[test]
fn validate_lists_every_broken_row_and_ends_with_2() {
    let at = tempfile::tempdir().unwrap();
    let output = data(at.path(), &["validate", &dataset("broken-jsonl"), "--jobs", "1"]);
    let text = refused(&output);
    assert!(
        text.contains("broken-jsonl: 5 of 8 rows cannot be used"),
        "{text}"
    );
    let listed = stdout(&output);
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 5, "{listed}");
    for (line, expected) in lines.iter().zip([
        "line 2: the first picture cannot be decoded",
        "line 4: the second picture is missing: there is no",
        "line 5: lacks prompt",
        "line 7: is no JSON object",
        "line 8: holds 0.7 as label",
    ]) {
        assert!(line.contains(&format!("train.jsonl, {expected}")), "{line}");
    }
    let output = data(
        at.path(),
        &["validate", &dataset("broken-jsonl"), "--format", "json"],
    );
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(report["problems"].as_array().unwrap().len(), 5);
    let sound = done(&data(at.path(), &["validate", &dataset("webdataset")]));
    assert_eq!(sound.trim(), "3 rows, 0 without a label; all can be used");
}

#[test]
fn convert_keeps_pictures_labels_and_splits() {
    let at = tempfile::tempdir().unwrap();
    let from = dataset("jsonl");
    done(&data(at.path(), &["convert", &from, "out", "--shard-rows", "2"]));
    let out = at.path().join("out");
    assert_eq!(
        names(&out),
        [
            "heldout-00000-of-00003.parquet",
            "heldout-00001-of-00003.parquet",
            "heldout-00002-of-00003.parquet",
            "train-00000-of-00002.parquet",
            "train-00001-of-00002.parquet"
        ]
    );
    let train = rows(&out, "train");
    let labels: Vec<f64> = train.iter().map(|pair| pair.preference.label()).collect();
    assert_eq!(labels, [1.0, 0.0, 0.5]);
    assert_eq!(train[0].scores, Some([0.5, 0.25]));
    assert_eq!(train[1].scores, None);
    let file = |name: &str| fs::read(fixtures().join("datasets/jsonl/pictures").join(name)).unwrap();
    assert_eq!(train[1].images[1].read().unwrap(), file("blue.png"));
    // What is there is not replaced unasked, and a run that fails leaves it as it is.
    let text = refused(&data(at.path(), &["convert", &from, "out"]));
    assert!(text.contains("is there already"), "{text}");
    let text = refused(&data(
        at.path(),
        &["convert", &dataset("broken-jsonl"), "out", "--replace"],
    ));
    assert!(
        text.contains("train.jsonl, line 4: the second picture is missing"),
        "{text}"
    );
    assert_eq!(rows(&out, "train"), train);
    assert_eq!(names(&out).len(), 5, "nothing half-written: {:?}", names(&out));
    let dropped = [
        "convert",
        &from,
        "out",
        "--replace",
        "--ties",
        "drop",
        "--split",
        "train",
    ];
    done(&data(at.path(), &dropped));
    assert_eq!(names(&out), ["train-00000-of-00001.parquet"]);
    assert_eq!(rows(&out, "train").len(), 2);
}

#[test]
fn convert_limits_pairs_per_prompt_and_skips_damage_where_allowed() {
    let at = tempfile::tempdir().unwrap();
    let report = json(&data(
        at.path(),
        &[
            "convert",
            &dataset("hpdv2"),
            "two",
            "--max-pairs-per-prompt",
            "2",
            "--format",
            "json",
        ],
    ));
    assert_eq!(
        (&report["rows"]["written"], &report["rows"]["over_limit"]),
        (&5.into(), &4.into())
    );
    let report = json(&data(
        at.path(),
        &[
            "convert",
            &dataset("broken-jsonl"),
            "skipped",
            "--skip-damaged",
            "--format",
            "json",
        ],
    ));
    // The picture that is cut off has a sound head: only decoding shows it, which is `validate`'s to do.
    assert_eq!(
        (&report["rows"]["written"], &report["rows"]["damaged"]),
        (&4.into(), &4.into())
    );
    let text = refused(&data(
        at.path(),
        &["convert", &dataset("hpdv3"), "none", "--from", "hpdv2"],
    ));
    assert!(
        text.contains("lacks file_path or image_path. HPDv2 has"),
        "{text}"
    );
    assert_eq!(names(at.path()), ["skipped", "two"]);
}

#[test]
fn no_prompt_is_on_both_sides_of_a_split() {
    let at = tempfile::tempdir().unwrap();
    let split = |to: &str, seed: &str| {
        json(&data(
            at.path(),
            &[
                "split",
                &tiny_sd(),
                to,
                "--held-out",
                "0.3",
                "--seed",
                seed,
                "--format",
                "json",
            ],
        ))
    };
    split("a", "1");
    split("b", "1");
    split("c", "2");
    let report = json(&data(at.path(), &["inspect", "a", "--format", "json"]));
    assert_eq!(report["shared"]["prompts"], 0);
    let prompts = |i: usize| report["splits"][i]["prompts"].as_f64().unwrap();
    let share = prompts(0) / (prompts(0) + prompts(1));
    assert!((0.24..0.36).contains(&share), "{share}");
    let held_out = |name: &str| rows(&at.path().join(name), "heldout");
    assert_eq!(held_out("a"), held_out("b"));
    assert_ne!(held_out("a").len(), held_out("c").len());
    // Case and spacing make no other prompt.
    let line = |prompt: &str| {
        format!("{{\"prompt\": \"{prompt}\", \"chosen\": \"red.png\", \"rejected\": \"grey.png\"}}\n")
    };
    let list: String = (0..40)
        .flat_map(|n| {
            [
                line(&format!("a cat, take {n}")),
                line(&format!(" A  Cat, take {n}")),
            ]
        })
        .collect();
    for name in ["red.png", "grey.png"] {
        fs::copy(
            fixtures().join("datasets/hpdv2/train").join(name),
            at.path().join(name),
        )
        .unwrap();
    }
    fs::write(at.path().join("cats.jsonl"), list).unwrap();
    done(&data(
        at.path(),
        &["split", "cats.jsonl", "cats", "--held-out", "0.5"],
    ));
    let report = json(&data(at.path(), &["inspect", "cats", "--format", "json"]));
    assert_eq!(report["shared"]["prompts"], 0);
    assert_eq!(report["splits"][0]["rows"].as_u64().unwrap() % 2, 0);
    assert_eq!(report["splits"][0]["pairs_per_prompt"]["most"], 2);
}

#[test]
fn relabel_follows_the_rewards() {
    let at = tempfile::tempdir().unwrap();
    done(&data(
        at.path(),
        &["convert", &tiny_sd(), "pairs", "--split", "heldout"],
    ));
    let relabel = |to: &str, more: &[&str]| {
        let all = [&["relabel", "pairs", to, "--format", "json"], more].concat();
        json(&data(at.path(), &all))
    };
    let one = relabel("one", &["--reward", "clip"]);
    assert_eq!(one["splits"][0][0], "heldout");
    // The held-out pairs were labelled by this very reward, before their pictures were saved as JPEG.
    let kept = |report: &Value| {
        report["same_winner"].as_f64().unwrap() / report["decided_by_both"].as_f64().unwrap()
    };
    assert!(kept(&one) > 0.98, "{one}");
    let (old, new) = (
        rows(&at.path().join("pairs"), "heldout"),
        rows(&at.path().join("one"), "heldout"),
    );
    assert_eq!(old.len(), new.len());
    for (old, new) in old.iter().zip(&new) {
        assert_eq!((&old.caption, &old.images), (&new.caption, &new.images));
        let [first, second] = new.scores.unwrap();
        let preferred = if first > second {
            Preference::First
        } else {
            Preference::Second
        };
        assert_eq!(new.preference, preferred);
    }
    let judge = relabel("by-judge", &["--reward", "judge"]);
    assert!(
        judge["same_winner"].as_u64() < judge["decided_by_both"].as_u64(),
        "{judge}"
    );
    // Two of three outvote the third.
    let vote = relabel("vote", &["--reward", "clip,judge,aesthetic", "--majority"]);
    assert_eq!(vote["scored"], one["scored"]);
    relabel("by-aesthetic", &["--reward", "aesthetic"]);
    let by = |name: &str| -> Vec<f64> {
        let pairs = rows(&at.path().join(name), "heldout");
        pairs.iter().map(|pair| pair.preference.label()).collect()
    };
    let (clip, judge, aesthetic, vote) = (by("one"), by("by-judge"), by("by-aesthetic"), by("vote"));
    for i in 0..vote.len() {
        let ayes = clip[i] + judge[i] + aesthetic[i];
        assert_eq!(vote[i], f64::from(u8::from(ayes > 1.5)), "pair {i}");
    }
    let text = refused(&data(
        at.path(),
        &["relabel", &dataset("rated-csv"), "no", "--reward", "clip"],
    ));
    assert!(text.contains("holds single pictures"), "{text}");
}

#[test]
fn training_reads_every_kind_and_gets_the_same_pairs() {
    let workspace = Workspace::new();
    let run = |name: &str, kind: &str, path: &str| {
        let set = [
            format!("data={{kind: {kind}, path: {path}, split: train, heldout_split: null}}"),
            "train={steps: 2, pairs_per_step: 2, eval_every: 0, checkpoint_every: 2}".to_owned(),
        ];
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let log = metrics(&workspace.trained(name, &set));
        log.iter()
            .map(|line| line["loss"].as_f64().unwrap())
            .collect::<Vec<_>>()
    };
    let lists = run("hpdv3", "hpdv3", &dataset("hpdv3"));
    assert_eq!(lists.len(), 2);
    for (kind, name) in [
        ("imagefolder", "imagefolder"),
        ("folders", "folders"),
        ("chosen_rejected", "chosen-rejected"),
    ] {
        assert_eq!(run(name, kind, &dataset(name)), lists, "{kind}");
    }
    // So do the parquet files that `convert` makes of it.
    done(&data(
        &workspace.path(""),
        &["convert", &dataset("hpdv3"), "converted"],
    ));
    assert_eq!(
        run(
            "parquet",
            "pickapic",
            &workspace.path("converted").display().to_string()
        ),
        lists
    );
    let kto = [
        "objective={kind: kto}".to_owned(),
        format!("data={{kind: rated, path: {}}}", dataset("rated-csv")),
        "train={steps: 1, pairs_per_step: 2, eval_every: 0}".to_owned(),
    ];
    let kto: Vec<&str> = kto.iter().map(String::as_str).collect();
    workspace.trained("kto", &kto);
    let missing = format!("data={{kind: jsonl, path: {}}}", dataset("broken-jsonl"));
    let text = refused(&workspace.train("broken", &[&missing]).output().unwrap());
    assert!(
        text.contains("more than 5% of its 8 rows are damaged, such as") && text.contains("line 2"),
        "{text}"
    );
}
