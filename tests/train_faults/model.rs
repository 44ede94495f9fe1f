//! Pipeline folders that are none, lack something, or hold damaged files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ortdpo::onnx::{self, Model, TensorData};
use ortdpo::pipeline::denoiser::{self, Geometry};

use super::common::fixtures;
use super::common::train::{Workspace, copy};
use super::{refused_at_once, says};

/// A workspace with a copy of the pipeline in it, under `model`.
fn with_pipeline() -> (Workspace, PathBuf) {
    let workspace = Workspace::new();
    let pipeline = workspace.path("model");
    copy(&fixtures().join("optimum-sd"), &pipeline);
    (workspace, pipeline)
}

/// What is said of the pipeline in the workspace. Nothing encoded before helps.
fn refuses_model(workspace: &Workspace) -> String {
    refused_at_once(workspace, &["model=model", "data.cache=cache"])
}

#[test]
fn a_folder_that_is_no_pipeline() {
    let workspace = Workspace::new();
    says(
        &refuses_model(&workspace),
        &["model: is not a folder.", "`optimum-cli export onnx"],
    );
    fs::create_dir(workspace.path("model")).unwrap();
    says(
        &refuses_model(&workspace),
        &["model: holds no model_index.json", "`optimum-cli export onnx"],
    );
}

#[test]
fn a_pipeline_that_lacks_a_component() {
    for missing in [
        "unet/model.onnx",
        "vae_encoder/model.onnx",
        "vae_encoder/config.json",
        "text_encoder/model.onnx",
        "scheduler/scheduler_config.json",
    ] {
        let (workspace, pipeline) = with_pipeline();
        fs::remove_file(pipeline.join(missing)).unwrap();
        let text = refuses_model(&workspace);
        says(&text, &[missing, "missing"]);
        // Nothing was encoded before that was noticed.
        assert!(!workspace.path("cache").exists(), "{text}");
    }
    let (workspace, pipeline) = with_pipeline();
    fs::remove_file(pipeline.join("tokenizer/merges.txt")).unwrap();
    says(
        &refuses_model(&workspace),
        &["model/tokenizer: holds neither tokenizer.json nor vocab.json with merges.txt"],
    );
}

#[test]
fn networks_that_are_no_onnx_or_only_a_part_of_it() {
    for component in ["unet", "vae_encoder", "text_encoder"] {
        let (workspace, pipeline) = with_pipeline();
        let path = pipeline.join(component).join("model.onnx");
        let whole = fs::read(&path).unwrap();
        for damaged in [
            &b""[..],
            b"<html>404 not found</html>",
            &whole[..whole.len() / 2],
            &whole[..whole.len() - 1],
        ] {
            fs::write(&path, damaged).unwrap();
            says(
                &refuses_model(&workspace),
                &[&format!("model/{component}/model.onnx: is ")],
            );
        }
    }
}

/// Puts the weights of the pipeline's UNet into a file beside it, as exporters do with large ones. Its batch is four
/// samples, for two pairs.
fn with_external_data(pipeline: &Path) -> PathBuf {
    let path = pipeline.join("unet/model.onnx");
    let geometry = Geometry {
        samples: 4,
        latent: [4, 8, 8],
        text: [16, 6],
        added: None,
    };
    let mut graph = denoiser::load(&Model::read(&path).unwrap(), &geometry, false).unwrap();
    let file = pipeline.join("unet/model.onnx_data");
    let mut bytes = Vec::new();
    for constant in graph
        .constants
        .values_mut()
        .filter(|c| c.shape.iter().product::<usize>() > 64)
    {
        let values = constant.read_bytes().unwrap();
        constant.data = TensorData::External {
            file: Arc::new(file.clone()),
            offset: bytes.len() as u64,
            length: values.len() as u64,
        };
        bytes.extend_from_slice(&values);
    }
    fs::write(&file, bytes).unwrap();
    onnx::save(&graph, &path).unwrap();
    file
}

#[test]
fn weights_beside_the_model_that_are_missing_or_cut_short() {
    let (workspace, pipeline) = with_pipeline();
    let file = with_external_data(&pipeline);
    // With them the run is that of the model which holds its weights itself.
    let set = ["train.steps=3", "model=model"];
    let adapter = |run: PathBuf| fs::read(run.join("pytorch_lora_weights.safetensors")).unwrap();
    let beside = adapter(workspace.trained("beside", &set));
    assert!(
        beside == adapter(workspace.trained("inside", &set[..1])),
        "the adapters differ"
    );

    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    says(&refuses_model(&workspace), &["model/unet/model.onnx_data: "]);
    fs::remove_file(&file).unwrap();
    says(&refuses_model(&workspace), &["model/unet/model.onnx_data: "]);
}

#[test]
fn encoders_whose_weights_are_missing_or_cut_short() {
    let (workspace, pipeline) = with_pipeline();
    let folder = pipeline.join("text_encoder");
    fs::copy(fixtures().join("runtime/affine.onnx"), folder.join("model.onnx")).unwrap();
    says(
        &refuses_model(&workspace),
        &["text_encoder/affine.data: external data of tensor `weight` is missing"],
    );
    fs::write(folder.join("affine.data"), [0; 4]).unwrap();
    says(
        &refuses_model(&workspace),
        &["text_encoder/affine.data: is 4 bytes long, too short for tensor `weight`"],
    );
    fs::copy(fixtures().join("runtime/affine.data"), folder.join("affine.data")).unwrap();
    says(
        &refuses_model(&workspace),
        &["text_encoder/model.onnx: has no input input_ids; it has x "],
    );
}
