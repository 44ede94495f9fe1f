//! `ortdpo merge`: the merged pipeline makes what the adapters make.

mod common;

use std::fs;
use std::path::Path;

use common::train::{files, refused, succeeded};
use common::{fixtures, ortdpo, stdout};
use ortdpo::model_folder::ModelFolder;
use ortdpo::onnx::Model;
use ortdpo::pipeline::{AdapterRef, Draw, Embedding, Pipeline, PipelineOptions};
use ortdpo::rng::{Purpose, Streams};

fn adapter(name: &str) -> String {
    fixtures().join("trajectories").join(name).display().to_string()
}

/// Latents of two steps of a simple descent: enough to see any difference of text encoders or denoiser.
fn latents(model: &Path, adapters: &[&str]) -> Vec<f32> {
    let adapters: Vec<AdapterRef> = adapters.iter().map(|a| a.parse().unwrap()).collect();
    let model = ModelFolder::open(model).unwrap();
    let mut pipeline = Pipeline::load(&model, &adapters, &PipelineOptions::default()).unwrap();
    let embedding: Embedding = pipeline.encode_prompts(&["ab cd"]).unwrap().remove(0);
    let scheduler = model.scheduler_config().unwrap();
    let config = ortdpo::diffusion::SamplerConfig::from_file(&scheduler).unwrap();
    let schedule = ortdpo::diffusion::NoiseSchedule::from_file(&scheduler).unwrap();
    let mut sampler = ortdpo::diffusion::sampler(&config, &schedule, 3).unwrap();
    let mut noise = |_: usize, _: Draw, values: &mut [f32]| {
        Streams::new(3).named(Purpose::Noise, "merge").fill_normal(values);
    };
    pipeline
        .sample(&mut *sampler, &[&embedding], &mut noise, &mut |_| {
            std::ops::ControlFlow::Continue(())
        })
        .unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_merged_pipeline_is_the_adapted_one() {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["sd", "sdxl"] {
        let model = fixtures().join(format!("optimum-{kind}"));
        let first = format!("{}:0.7", adapter(&format!("{kind}-first.safetensors")));
        let second = format!("{}:-0.5", adapter(&format!("{kind}-second.safetensors")));
        let output = folder.path().join(kind);
        let mut command = ortdpo(folder.path());
        command.args([
            "merge",
            "--adapter",
            &first,
            "--adapter",
            &second,
            "--output",
            kind,
        ]);
        let done = command.arg("--model").arg(&model).output().unwrap();
        succeeded(&done);
        assert!(
            stdout(&done).contains("weights changed in unet, text_encoder"),
            "{}",
            stdout(&done)
        );
        let (plain, merged) = (latents(&model, &[]), latents(&output, &[]));
        let adapted = latents(&model, &[&first, &second]);
        assert!(
            largest_difference(&plain, &adapted) > 0.5,
            "the adapters do nothing"
        );
        let off = largest_difference(&merged, &adapted);
        assert!(off <= 1e-3, "{kind} is off by {off}");
        // Dimensions stay open, and nothing else is missing.
        let inputs = |folder: &Path| {
            Model::read(folder.join("unet/model.onnx"))
                .unwrap()
                .inputs()
                .unwrap()
        };
        assert_eq!(inputs(&output), inputs(&model));
        let names = |folder: &Path| files(folder).into_keys().collect::<Vec<_>>();
        assert_eq!(names(&output), names(&model));
    }
}

#[test]
fn whole_weights_take_the_place_of_the_models() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixtures().join("optimum-sd");
    // A weight that the export stores transposed, one that it stores as it is, and a scale of a norm.
    let names = [
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        "conv_in.weight",
        "conv_norm_out.weight",
    ];
    let shapes = [vec![4, 4], vec![4, 4, 3, 3], vec![4]];
    let weight = |(name, shape): (&&str, &Vec<usize>)| {
        let mut values = vec![0.0_f32; shape.iter().product()];
        Streams::new(9)
            .named(Purpose::Noise, name)
            .fill_normal(&mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        (name.to_string(), shape.clone(), bytes)
    };
    let weights: Vec<_> = names.iter().zip(&shapes).map(weight).collect();
    let path = folder.path().join("diffusion_pytorch_model.safetensors");
    let views = weights.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.clone(), view.unwrap())
    });
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    let full = path.display().to_string();
    let done = ortdpo(folder.path())
        .args(["merge", "--adapter", &full, "--output", "out", "--model"])
        .arg(&model)
        .output()
        .unwrap();
    succeeded(&done);
    assert!(
        stdout(&done).contains("3 weights changed in unet"),
        "{}",
        stdout(&done)
    );
    let (applied, merged) = (
        latents(&model, &[&full]),
        latents(&folder.path().join("out"), &[]),
    );
    assert!(largest_difference(&applied, &latents(&model, &[])) > 0.1);
    assert_eq!(applied, merged);
}

#[test]
fn a_folder_in_use_and_foreign_adapters_are_refused_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("used")).unwrap();
    fs::write(folder.path().join("used/note"), "").unwrap();
    let merge = |adapter: &str, output: &str| {
        let mut command = ortdpo(folder.path());
        command.args(["merge", "--adapter", adapter, "--output", output, "--model"]);
        refused(&command.arg(fixtures().join("optimum-sd")).output().unwrap())
    };
    let text = merge(&adapter("sd-first.safetensors"), "used");
    assert!(text.contains("used: is in use"), "{text}");
    let text = merge(&adapter("sdxl-second.safetensors"), "new");
    assert!(
        text.contains("does not fit") && text.contains("are not in the model"),
        "{text}"
    );
    let text = merge(&format!("{}:2", adapter("cases.json")), "new");
    assert!(text.contains("is not a safetensors file"), "{text}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
