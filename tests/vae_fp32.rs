//! A VAE in half precision that overflows, as SDXL's own does: named with its remedy, which helps.

mod common;

use std::fs;
use std::path::Path;

use common::train::{Workspace, copy, refused, succeeded};
use common::{fixtures, ortdpo};
use ortdpo::onnx::{Graph, TensorType, ValueId, save};
use ortdpo::tensor::DType;

/// `x` times a number for which half precision has no room where |x| is near 1 or more. On CPUs ONNX Runtime multiplies in
/// single precision and rounds where a value leaves the graph.
fn large(g: &mut Graph, x: ValueId) -> ValueId {
    let most = g.scale(x, 6e4).unwrap();
    g.scale(most, 1.2).unwrap()
}

/// Puts halves of a VAE in half precision into `model`, for images of 16×16 and latents of 8×8.
fn with_overflowing_vae(model: &Path) {
    copy(&fixtures().join("optimum-sd"), model);
    let f16 = |shape: &[usize]| TensorType::new(DType::F16, shape.to_vec());

    let mut g = Graph::new("encoder", 17);
    let image = g.add_input("sample", f16(&[1, 3, 16, 16]));
    let corner = g.slice(image, 2, 0, 8).unwrap();
    let corner = g.slice(corner, 3, 0, 8).unwrap();
    let one = g.slice(corner, 1, 0, 1).unwrap();
    let mean = g.concat(&[corner, one], 1).unwrap();
    let means = large(&mut g, mean);
    let moments = g.concat(&[means, mean], 1).unwrap();
    let moments = g.as_output(moments, "latent_parameters").unwrap();
    g.outputs.push(moments);
    save(&g, &model.join("vae_encoder/model.onnx")).unwrap();

    let mut g = Graph::new("decoder", 17);
    let latent = g.add_input("latent_sample", f16(&[1, 4, 8, 8]));
    let three = g.slice(latent, 1, 0, 3).unwrap();
    let image = large(&mut g, three);
    let image = g.as_output(image, "sample").unwrap();
    g.outputs.push(image);
    save(&g, &model.join("vae_decoder/model.onnx")).unwrap();
}

const REMEDY: &str = "with --vae-fp32 (runtime.vae_fp32: true)";

#[test]
fn images_and_encodings_come_out_in_single_precision() {
    let workspace = Workspace::new();
    with_overflowing_vae(&workspace.path("model"));

    let generate = |more: &[&str]| {
        let mut command = ortdpo(&workspace.path(""));
        command.args([
            "generate", "--quiet", "--model", "model", "--prompt", "ab cd", "--steps", "2",
        ]);
        command.args(["--output", "images"]).args(more).output().unwrap()
    };
    let text = refused(&generate(&[]));
    assert!(
        text.contains("vae_decoder/model.onnx: gives an image") && text.contains(REMEDY),
        "{text}"
    );
    // The same command with the remedy goes on.
    succeeded(&generate(&["--vae-fp32"]));
    assert!(workspace.path("images/images.jsonl").is_file());

    let eval = |more: &[&str]| {
        let mut command = ortdpo(&workspace.path(""));
        fs::write(workspace.path("prompts.txt"), "ab cd\n").unwrap();
        command.args([
            "eval",
            "--quiet",
            "--model",
            "a=model",
            "--prompts",
            "prompts.txt",
            "--steps",
            "2",
        ]);
        let reward = fixtures().join("rewards/clip-l14");
        command.arg("--reward").arg(reward).args(["--output", "eval"]);
        command.args(more).output().unwrap()
    };
    assert!(refused(&eval(&[])).contains(REMEDY));
    assert!(eval(&["--vae-fp32"]).status.success());

    let set = ["model=model", "data.cache=cache", "train.steps=2"];
    let text = refused(&workspace.train("run", &set).output().unwrap());
    assert!(
        text.contains("vae_encoder/model.onnx: gives values that are no numbers") && text.contains(REMEDY),
        "{text}"
    );
    assert!(!workspace.path("run").exists());
    succeeded(&workspace.train("run", &set).arg("--vae-fp32").output().unwrap());
}
