//! `ortdpo data` as a user runs it.

use std::fs;
use std::path::Path;
use std::process::Output;

use ortdpo::data::{Content, Images, Pair, PairSource, ParquetPairs};
use serde_json::Value;

use super::{fixtures, ortdpo, stderr, stdout};

/// A data set among the fixtures.
pub fn dataset(name: &str) -> String {
    fixtures().join("datasets").join(name).display().to_string()
}

/// `ortdpo data` in `folder`, with the small reward models.
pub fn data(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = ortdpo(folder);
    command.env(
        "ORTDPO_REWARDS",
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-rewards"),
    );
    command
        .args(["data", "--quiet"])
        .args(arguments)
        .output()
        .unwrap()
}

/// What it printed, if it succeeded without a word of complaint.
pub fn done(output: &Output) -> String {
    assert!(
        output.status.success() && stderr(output).is_empty(),
        "{}",
        stderr(output)
    );
    stdout(output)
}

/// The one paragraph on bad input.
pub fn refused(output: &Output) -> String {
    super::train::refused(output)
}

/// What it printed as JSON.
pub fn json(output: &Output) -> Value {
    serde_json::from_str(&done(output)).unwrap()
}

/// The pairs of a split that it wrote.
pub fn rows(folder: &Path, split: &str) -> Vec<Pair> {
    let source = ParquetPairs::open(folder, split, Images::Pairs).unwrap();
    let rows = source.rows().unwrap().map(|row| match row.unwrap().content {
        Content::Pair(pair) => pair,
        other => panic!("{other:?}"),
    });
    rows.collect()
}

/// Names of what is in a folder, in order.
pub fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}
