//! ONNX's own operator tests (`scripts/node_tests.py` writes them): the static graph must give the stored outputs, and
//! where float inputs reach float outputs, derived gradients must agree with differences.
//!
//! What is left out, and why, is in `left_out.txt`, which has to match; `UPDATE_LEFT_OUT=1` writes it anew.

#[path = "../gradcheck/mod.rs"]
mod gradcheck;

mod case;
mod mutate;
mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use case::Verdict;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".data/onnx-node-tests")
}

fn case_names() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap_or_else(|e| {
        panic!(
            "{}: {e}. Write ONNX's operator tests there with scripts/node_tests.py; `make test` does so by itself.",
            folder().display()
        )
    });
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap())
        .filter(|e| e.path().join("model.onnx").is_file())
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn onnx_operator_tests() {
    gradcheck::load_runtime();
    let names = case_names();
    assert!(
        names.len() > 1500,
        "only {} cases are in {}",
        names.len(),
        folder().display()
    );
    let (mut forward, mut backward) = (0, 0);
    let mut left_out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut failures = Vec::new();
    for name in &names {
        match case::run(&folder().join(name), name) {
            Ok(Verdict::Gradients) => (forward, backward) = (forward + 1, backward + 1),
            Ok(Verdict::ForwardOnly(why)) => {
                forward += 1;
                left_out
                    .entry(format!("outputs checked, gradients not: {why}"))
                    .or_default()
                    .push(name.clone());
            }
            Ok(Verdict::LeftOut(why)) => left_out.entry(why).or_default().push(name.clone()),
            Err(what) => failures.push(format!("{name}: {what}")),
        }
    }
    println!(
        "{} cases: outputs of {forward} checked, gradients of {backward}",
        names.len()
    );
    assert!(
        failures.is_empty(),
        "{} of {} cases fail:\n{}",
        failures.len(),
        names.len(),
        failures.join("\n")
    );

    let text = list(&left_out);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/onnx_node_tests/left_out.txt");
    if std::env::var_os("UPDATE_LEFT_OUT").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        text == written,
        "what is left out has changed; UPDATE_LEFT_OUT=1 writes {} anew",
        file.display()
    );
}

#[test]
fn odd_nodes_never_panic() {
    let (mut odd, mut panicked) = (0, Vec::new());
    for name in case_names() {
        let Some(graph) = case::static_graph(&folder().join(&name)) else {
            continue;
        };
        for round in 0..10 {
            let mut rng = gradcheck::rng(&format!("{name} {round}"));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                mutate::take_odd_node_all_the_way(&graph, &mut rng);
            }));
            if result.is_err() {
                panicked.push(format!("{name}, round {round}"));
            }
            odd += 1;
        }
    }
    assert!(
        panicked.is_empty(),
        "see above for the panics of {}",
        panicked.join("; ")
    );
    assert!(odd > 5000, "only {odd} odd nodes");
}

/// The reasons with their cases, as the file has them.
fn list(left_out: &BTreeMap<String, Vec<String>>) -> String {
    let mut text = String::from("# ONNX's operator tests that are not checked, or not wholly, and why.\n");
    for (why, names) in left_out {
        text += &format!("\n{why} ({})\n", names.len());
        for name in names {
            text += &format!("  {}\n", name.trim_start_matches("test_"));
        }
    }
    text
}
