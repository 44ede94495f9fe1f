//! `ortdpo merge`: the merged pipeline makes what the adapters make.

mod common;

use std::fs;
use std::path::Path;

use common::train::{Workspace, files, refused, succeeded};
use common::{fixtures, ortdpo, stdout};
use ortdpo::model_folder::{Component, ModelFolder};
use ortdpo::onnx::{Model, TensorData, save};
use ortdpo::pipeline::{AdapterRef, Draw, Embedding, Guidance, Pipeline, PipelineOptions, read_network};
use ortdpo::rng::{Purpose, Streams};

fn adapter(name: &str) -> String {
    fixtures().join("trajectories").join(name).display().to_string()
}

/// Latents of two steps of a simple descent: enough to see any difference of text encoders or denoiser.
fn latents(model: &Path, adapters: &[&str]) -> Vec<f32> {
    latents_with(model, adapters, &PipelineOptions::default())
}

fn latents_with(model: &Path, adapters: &[&str], options: &PipelineOptions) -> Vec<f32> {
    let adapters: Vec<AdapterRef> = adapters.iter().map(|a| a.parse().unwrap()).collect();
    let model = ModelFolder::open(model).unwrap();
    let mut pipeline = Pipeline::load(&model, &adapters, options).unwrap();
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

/// The pipeline `kind` with the weights of its denoiser in a data file, as exports of large models have them; for one sample at
/// a time.
fn with_data_file(kind: &str, folder: &Path) {
    let source = fixtures().join(format!("optimum-{kind}"));
    common::train::copy(&source, folder);
    let (_, mut graph) = read_network(&ModelFolder::open(&source).unwrap(), Component::Unet, false).unwrap();
    let path = folder.join("unet/weights.bin");
    let mut data = Vec::new();
    for constant in graph.constants.values_mut() {
        let bytes = constant.read_bytes().unwrap();
        if bytes.len() > 64 {
            constant.data = TensorData::External {
                file: std::sync::Arc::new(path.clone()),
                offset: data.len() as u64,
                length: bytes.len() as u64,
            };
            data.extend_from_slice(&bytes);
        }
    }
    fs::write(&path, data).unwrap();
    let model = folder.join("unet/model.onnx");
    fs::remove_file(&model).unwrap();
    save(&graph, &model).unwrap();
}

/// A run that trained some of the weights leaves all of them, and `merge` writes them as the data file of an ONNX model.
#[test]
fn a_full_run_is_a_whole_model_and_merges_into_external_data() {
    let workspace = Workspace::new();
    let run = workspace.trained(
        "run",
        &[
            "train.steps=4",
            "train.eval_every=4",
            "train.checkpoint_every=4",
            r#"adapter={kind: full, targets: ["*attn1*"]}"#,
        ],
    );
    let bytes = fs::read(run.join("diffusion_pytorch_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (_, graph) = read_network(
        &ModelFolder::open(fixtures().join("optimum-sd")).unwrap(),
        Component::Unet,
        true,
    )
    .unwrap();
    let all = ortdpo::traingraph::Trainables::full(&graph, &["*".to_owned()]).unwrap();
    let mut expected: Vec<&str> = all.tensors.iter().map(|t| t.name.as_str()).collect();
    let mut names = file.names();
    names.sort_unstable();
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert_eq!(
        fs::read(run.join("config.json")).unwrap(),
        fs::read(fixtures().join("optimum-sd/unet/config.json")).unwrap()
    );

    let model = workspace.path("large");
    with_data_file("sd", &model);
    let merge = |model: &Path, output: &str| {
        let mut command = ortdpo(&workspace.path(""));
        command.args(["merge", "--adapter", "run", "--output", output, "--model"]);
        command.arg(model).output().unwrap()
    };
    let done = merge(&model, "merged");
    succeeded(&done);
    // Those of self-attention alone were trained.
    let trained = expected.iter().filter(|name| name.contains("attn1")).count();
    let said = stdout(&done);
    assert!(
        said.contains(&format!("{trained} weights changed in unet")),
        "{said}"
    );
    let merged = workspace.path("merged");
    assert!(merged.join("unet/model.onnx_data").is_file() && !merged.join("unet/weights.bin").exists());
    let run = run.display().to_string();
    let single = PipelineOptions {
        guidance: Guidance::new(1.0),
        ..PipelineOptions::default()
    };
    let latents = |model: &Path, adapters: &[&str]| latents_with(model, adapters, &single);
    let applied = latents(&model, &[&run]);
    assert!(largest_difference(&applied, &latents(&model, &[])) > 1e-4);
    assert_eq!(applied, latents(&merged, &[]));
    let text = refused(&merge(&merged, "again"));
    assert!(text.contains("changes none of the weights of"), "{text}");
    assert!(!workspace.path("again").exists());
}

/// Both forms of a run's adapter do the same; views of their own make another run, but the same one every time.
#[test]
fn a_run_leaves_the_forms_that_are_asked_for() {
    let workspace = Workspace::new();
    let short = [
        "train={steps: 2, pairs_per_step: 2, eval_every: 0, checkpoint_every: 2}",
        "data.flip=true",
    ];
    let run = |name: &str, more: &[&str]| workspace.trained(name, &[&short, more].concat());
    let both = run("both", &["adapter.format=both"]);
    let kohya = run("kohya", &["adapter.format=kohya", "data.independent_views=false"]);
    let own = run("own", &["data.independent_views=true"]);
    let own_again = run("own-again", &["data.independent_views=true"]);
    let (diffusers_file, kohya_file) = (
        "pytorch_lora_weights.safetensors",
        "kohya_lora_weights.safetensors",
    );
    assert!(both.join(diffusers_file).is_file() && both.join(kohya_file).is_file());
    assert!(!kohya.join(diffusers_file).exists() && !own.join(kohya_file).exists());
    let model = fixtures().join("optimum-sd");
    let of = |path: &Path| latents(&model, &[&path.display().to_string()]);
    let expected = of(&both.join(diffusers_file));
    assert_eq!(of(&both.join(kohya_file)), expected);
    assert_eq!(of(&kohya), expected);
    let file = |run: &Path| fs::read(run.join(diffusers_file)).unwrap();
    assert_eq!(file(&own), file(&own_again));
    assert_ne!(file(&own), file(&both));
}
