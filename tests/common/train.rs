//! Runs of `ortdpo train` on a tiny random pipeline as optimum exports it, and the folders they leave.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

use super::{fixtures, ortdpo, stderr};

/// What every run here has; each test sets the rest. Two steps of warm-up and a large learning rate make all that
/// moves move visibly.
const CONFIG: &str = "\
data: {resolution: 16, prompt_dropout: 0.2}
train: {steps: 20, pairs_per_step: 2, eval_every: 10, eval_draws: 2, checkpoint_every: 20}
adapter: {kind: lora, rank: 2}
reference: {measure_every: 7, probe: 6}
optimizer: {lr: 1.0e-3, schedule: {kind: constant, warmup: 2}}
runtime: {threads: 1}
";

/// A folder with a configuration, in which runs are made.
pub struct Workspace {
    folder: TempDir,
}

impl Workspace {
    /// A new folder whose configuration names the tiny pipeline and its pairs.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("run.yaml"), CONFIG).unwrap();
        Self { folder }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `ortdpo train` for the run in the folder `output`, with keys set as `--set` does; the last of two holds.
    pub fn train(&self, output: &str, set: &[&str]) -> Command {
        let mut command = self.talking(output, set);
        command.arg("--quiet");
        command
    }

    /// As [`Workspace::train`], with progress on standard error.
    pub fn talking(&self, output: &str, set: &[&str]) -> Command {
        let mut command = ortdpo(self.folder.path());
        command.args(["train", "--config", "run.yaml", "--output", output]);
        let paths = [
            format!("model={}", fixtures().join("optimum-sd").display()),
            format!("data.path={}", fixtures().join("pairs/whole").display()),
            format!("data.cache={}", cache().display()),
        ];
        for assignment in paths.iter().map(String::as_str).chain(set.iter().copied()) {
            command.args(["--set", assignment]);
        }
        command
    }

    /// Runs to the end.
    pub fn trained(&self, output: &str, set: &[&str]) -> PathBuf {
        succeeded(&self.train(output, set).output().unwrap());
        self.path(output)
    }

    /// Resumes and runs to the end.
    pub fn resumed(&self, output: &str, set: &[&str]) -> PathBuf {
        succeeded(&self.train(output, set).arg("--resume").output().unwrap());
        self.path(output)
    }
}

/// Encodings that the runs of one test program share, made anew by each.
pub fn cache() -> &'static Path {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    CACHE.get_or_init(|| {
        let folder =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(concat!(env!("CARGO_CRATE_NAME"), "-encodings"));
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        folder
    })
}

/// Exit code 0 and nothing to complain of.
pub fn succeeded(output: &Output) {
    let text = stderr(output);
    assert_eq!((output.status.code(), text.as_str()), (Some(0), ""), "{text}");
}

/// The one paragraph of a run that ended with `code`.
pub fn paragraph(output: &Output, code: i32) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(
        text.starts_with("error: ") && text.trim_end().lines().count() == 1,
        "{text}"
    );
    text
}

/// The one paragraph on bad input.
pub fn refused(output: &Output) -> String {
    paragraph(output, 2)
}

/// Every file below `folder` with its content; empty if there is no such folder.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(folder: &Path, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
            match path.is_dir() {
                true => walk(&path, &format!("{name}/"), found),
                false => drop(found.insert(name, fs::read(&path).unwrap())),
            }
        }
    }
    let mut found = BTreeMap::new();
    if folder.exists() {
        walk(folder, "", &mut found);
    }
    found
}

/// A JSON file.
pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The lines of a run's `metrics.jsonl`.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A copy of a folder with everything in it.
pub fn copy(from: &Path, to: &Path) {
    for (name, content) in files(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}
