//! Pairs that are not what they should be.

use super::common::fixtures;
use super::common::train::{Workspace, json};
use super::{refused_at_once, says};

fn pairs(name: &str) -> String {
    format!("data.path={}", fixtures().join("pairs").join(name).display())
}

#[test]
fn parquet_without_the_needed_columns() {
    let text = refused_at_once(&Workspace::new(), &[&pairs("missing")]);
    says(
        &text,
        &[
            "missing/train-00000-of-00001.parquet: lacks the columns jpg_1, label_0.",
            "rename the columns",
        ],
    );
}

#[test]
fn a_data_set_with_too_many_undecodable_images() {
    let text = refused_at_once(&Workspace::new(), &[&pairs("broken")]);
    says(
        &text,
        &[
            "pairs/broken: more than 5% of its 20 rows are damaged",
            "row 3: the second picture cannot be decoded",
            "row 8: jpg_0 holds no image bytes",
            "raise data.max_skipped_share",
        ],
    );
}

#[test]
fn a_few_undecodable_images_are_skipped_and_counted() {
    let workspace = Workspace::new();
    let allowed = [&pairs("broken"), "data.max_skipped_share=0.1", "train.steps=2"];
    let summary = json(&workspace.trained("run", &allowed).join("summary.json"));
    // Of 20 rows one is not labelled, three are ties, and two are damaged.
    let data = &summary["data"];
    assert_eq!(
        (&data["skipped"], &data["ties"], &data["pairs"]),
        (&2.into(), &3.into(), &14.into())
    );
    // There is no held-out split.
    assert_eq!(data["heldout_pairs"], 0);
    assert!(summary["initial"].is_null() && summary["final"].is_null());
}

#[test]
fn captions_longer_than_the_context_are_counted() {
    let workspace = Workspace::new();
    let run = workspace.trained("run", &["train.steps=1"]);
    // "two green stars, one small" is 24 tokens long (see tests/fixtures/encodings.json), the context 16.
    assert_eq!(json(&run.join("summary.json"))["data"]["truncated"], 1);
}
