//! A folder with an ablation of a tiny random pipeline.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use serde_json::Value;

use crate::common::train::{cache, json};
use crate::common::{fixtures, ortdpo, stderr};

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder with an ablation of `dpo` under two strategies and prompts to judge it by.
pub struct Workspace {
    folder: tempfile::TempDir,
}

/// Everything but `methods`, `strategies` and `seeds`.
fn common_part() -> String {
    let clip = repository().join("models/tiny-rewards/clip");
    let aesthetic = repository().join("models/tiny-rewards/aesthetic");
    format!(
        "\
base:
  model: {model}
  data: {{path: {data}, cache: {cache}, resolution: 16, prompt_dropout: 0.2}}
  train: {{steps: 6, pairs_per_step: 2, eval_every: 3, eval_pairs: 1, eval_draws: 1, checkpoint_every: 2, keep: 1}}
  adapter: {{kind: lora, rank: 2}}
  optimizer: {{lr: 1.0e-2, schedule: {{kind: constant, warmup: 0}}}}
  reference: {{probe: 2}}
  runtime: {{threads: 1}}
evaluation:
  prompts: [prompts.txt]
  rewards: [{clip}, {aesthetic}]
  seeds: [3, 4]
  images_per_prompt: 2
  sampling: {{steps: 2, guidance: 1}}
  set_metrics: [{{features: {clip}}}]
  bootstrap: {{resamples: 300}}
  runtime: {{threads: 1}}
",
        model = fixtures().join("optimum-sd").display(),
        data = fixtures().join("pairs/whole").display(),
        cache = cache().display(),
        clip = clip.display(),
        aesthetic = aesthetic.display(),
    )
}

pub const METHODS: &str = "methods: [{name: dpo, set: {objective: {kind: dpo}}}]\n";
pub const STRATEGIES: &str = "\
strategies:
  - {name: plain}
  - {name: ema, set: {reference: {update: ema, alpha: 0.5}}}
";

impl Workspace {
    pub fn new(rest: &str) -> Self {
        let workspace = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        workspace.write("prompts.txt", "a cat\na red car\na house\n");
        workspace.configure(rest);
        workspace
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Writes the ablation; `rest` goes before what all have.
    pub fn configure(&self, rest: &str) {
        self.write("ablation.yaml", &format!("{rest}{}", common_part()));
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = ortdpo(self.folder.path());
        command
            .args(["ablate", "--config", "ablation.yaml", "--output", "out"])
            .args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn ran(&self, arguments: &[&str]) -> Output {
        let output = self.run(arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        output
    }

    /// The rows so far, as they are written.
    pub fn rows(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("out/rows.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    pub fn results(&self) -> Value {
        json(&self.path("out/ablation.json"))
    }

    /// When each file below `out/runs` and of the initial model's images was last written.
    pub fn written(&self) -> Vec<(PathBuf, SystemTime)> {
        let mut files = Vec::new();
        for start in [self.path("out/runs"), self.path("out/images")] {
            let mut folders = vec![start];
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(folder).unwrap() {
                    let entry = entry.unwrap();
                    match entry.file_type().unwrap().is_dir() {
                        true if entry.file_name() == ".features" => {}
                        true => folders.push(entry.path()),
                        false => files.push((entry.path(), entry.metadata().unwrap().modified().unwrap())),
                    }
                }
            }
        }
        files.sort();
        files
    }
}
