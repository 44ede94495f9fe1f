//! Encoding a data set with a pipeline folder as optimum exports it, against the same in Python.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use common::fixtures;
use ortdpo::config::data::DataConfig;
use ortdpo::data::image::View;
use ortdpo::data::{Dataset, EncodeOptions, OnnxEncoders, Part, open};
use ortdpo::model_folder::ModelFolder;
use ortdpo::pipeline::VaePrecision;
use ortdpo::runtime::SessionOptions;
use serde_json::Value;

fn config(resolution: u32) -> DataConfig {
    DataConfig {
        path: fixtures().join("pairs/whole"),
        resolution,
        encode_batch: 3,
        ..Default::default()
    }
}

fn prepare(model: &Path, config: &DataConfig, cache: &Path) -> ortdpo::Result<Dataset> {
    let model = ModelFolder::open(model)?;
    let encoders = OnnxEncoders {
        model: &model,
        options: SessionOptions::default(),
        vae: VaePrecision::AsExported,
    };
    let source = open(config, Part::Train)?.expect("the train split is named");
    let options = EncodeOptions::new(config, Part::Train);
    Dataset::prepare(&*source, &encoders, cache, options, &mut |_| {
        ControlFlow::Continue(())
    })
}

fn numbers(value: &Value) -> Vec<f32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap() as f32)
        .collect()
}

fn assert_near<'a>(ours: impl Iterator<Item = &'a f32>, theirs: &Value, tolerance: f32, what: &str) {
    let (ours, theirs): (Vec<f32>, Vec<f32>) = (ours.copied().collect(), numbers(theirs));
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let worst = ours
        .iter()
        .zip(&theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what} is off by {worst}");
}

#[test]
fn encodings_equal_those_made_in_python() {
    let expected: Value =
        serde_json::from_slice(&fs::read(fixtures().join("encodings.json")).unwrap()).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let config = config(expected["resolution"].as_u64().unwrap() as u32);
    let dataset = prepare(&fixtures().join("optimum-sd"), &config, cache.path()).unwrap();
    assert_eq!(dataset.scaling().factor, 0.18215);
    let captions = expected["captions"].as_object().unwrap();
    let too_long = captions
        .values()
        .filter(|tokens| tokens.as_u64() > expected["context"].as_u64());
    assert_eq!(dataset.counts().captions, captions.len() as u64);
    assert_eq!(dataset.counts().truncated_captions, too_long.count() as u64);
    assert_eq!(
        dataset.warnings(),
        ["1 of 3 captions are longer than 16 tokens and are cut"]
    );
    for case in expected["cases"].as_array().unwrap() {
        let row = case["row"].as_u64().unwrap();
        let index = dataset.pairs().iter().position(|pair| pair.id.0 == row).unwrap();
        let moments = dataset.moments(index, View::CENTER).unwrap();
        let first = usize::from(dataset.pairs()[index].preference == ortdpo::data::Preference::Second);
        // A pixel in a thousand may differ by 1/255 in resizing.
        assert_near(
            moments[first].mean.iter(),
            &case["mean"],
            5e-3,
            &format!("mean of row {row}"),
        );
        let logvar = moments[first].logvar.as_ref().unwrap();
        assert_near(
            logvar.iter(),
            &case["logvar"],
            5e-3,
            &format!("log variance of row {row}"),
        );
        let embedding = dataset.embedding(dataset.caption(index)).unwrap().hidden;
        assert_near(
            embedding.iter(),
            &case["hidden"],
            1e-4,
            &format!("embedding of row {row}"),
        );
        assert_eq!(
            numbers(&case["latent_shape"]),
            dataset.latent_shape().map(|n| n as f32)
        );
        assert_eq!(
            numbers(&case["text_shape"]),
            dataset.text_shape().map(|n| n as f32)
        );
    }
}

#[test]
fn models_that_are_something_else_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        let to = folder.path().join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(fixtures().join("optimum-sd").join(from), to).unwrap();
    };
    for file in [
        "model_index.json",
        "vae_encoder/config.json",
        "text_encoder/config.json",
        "text_encoder/model.onnx",
    ] {
        copy(file, file);
    }
    for file in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        copy(&format!("tokenizer/{file}"), &format!("tokenizer/{file}"));
    }
    let error = |resolution| {
        let cache = tempfile::tempdir().unwrap();
        prepare(folder.path(), &config(resolution), cache.path()).unwrap_err()
    };
    let missing = error(16);
    assert!(
        missing.to_string().contains("vae_encoder/model.onnx: is missing"),
        "{missing}"
    );
    copy("text_encoder/model.onnx", "vae_encoder/model.onnx");
    let wrong = error(16);
    assert!(
        wrong
            .to_string()
            .contains("has no input sample; it has input_ids"),
        "{wrong}"
    );
    copy("vae_encoder/model.onnx", "vae_encoder/model.onnx");
    fs::remove_file(folder.path().join("tokenizer/merges.txt")).unwrap();
    let broken = error(16);
    assert!(broken.to_string().contains("merges.txt"), "{broken}");
    for error in [missing, wrong, broken] {
        assert_eq!(error.exit_code(), 2);
    }
}
