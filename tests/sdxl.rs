//! Training on a pipeline of SDXL's kind: two text encoders, pooled embeddings and time ids, all the way to images.

mod common;

use std::fs;
use std::path::Path;

use common::train::{Workspace, succeeded};
use common::{fixtures, ortdpo};

fn adapter(run: &Path) -> Vec<u8> {
    fs::read(run.join("pytorch_lora_weights.safetensors")).unwrap()
}

#[test]
fn a_run_on_sdxl_resumes_bit_for_bit_and_its_adapter_makes_images() {
    let workspace = Workspace::new();
    let model = fixtures().join("optimum-sdxl");
    let base = [
        format!("model={}", model.display()),
        "train.checkpoint_every=3".into(),
        "train.eval_every=3".into(),
        "reference={update: ema, alpha: 0.1, anchor: {kind: kl, lambda: 0.1}}".into(),
    ];
    let set = |steps: &'static str| -> Vec<&str> { base.iter().map(String::as_str).chain([steps]).collect() };
    let straight = workspace.trained("straight", &set("train.steps=6"));
    let run = workspace.trained("run", &set("train.steps=3"));
    assert_ne!(adapter(&run), adapter(&straight));
    workspace.resumed("run", &set("train.steps=6"));
    assert!(
        adapter(&run) == adapter(&straight),
        "the resumed run is another one"
    );

    let image = |output: &str, adapters: &[&str]| {
        let mut command = ortdpo(workspace.path("").as_path());
        command.args(["generate", "--quiet", "--prompt", "ab cd", "--steps", "3"]);
        command.args(["--output", output, "--model"]).arg(&model);
        for adapter in adapters {
            command.args(["--adapter", adapter]);
        }
        succeeded(&command.output().unwrap());
        let file = workspace.path(output).join("images/00000-0.png");
        image::open(file).unwrap().to_rgb8().into_raw()
    };
    // Six steps move little: many times as much is plain to see.
    assert_ne!(image("base", &[]), image("adapted", &["run:500"]));
}
