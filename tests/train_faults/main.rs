//! What `ortdpo train` says about bad input and bad luck, and what it leaves behind then; and once, what it leaves
//! when all goes well.

#[path = "../common/mod.rs"]
mod common;

mod data;
mod divergence;
#[cfg(unix)]
mod full_disk;
mod model;
mod output;
mod results;
mod resume;

use common::train::{Workspace, refused};

/// What is said of a run that cannot begin. It has made no folder.
fn refused_at_once(workspace: &Workspace, set: &[&str]) -> String {
    let text = refused(&workspace.train("run", set).output().unwrap());
    assert!(!workspace.path("run").exists(), "{text}");
    text
}

/// Asserts that `text` holds all `parts`.
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}
