//! Whole trajectories, from given noise to pixels, against diffusers' pipelines (`scripts/fixtures/trajectories.py`).

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::fixtures;
use common::recorded::Recorded;
use ortdpo::diffusion::NoiseSchedule;
use ortdpo::diffusion::sampler::{SamplerConfig, sampler};
use ortdpo::model_folder::ModelFolder;
use ortdpo::pipeline::{AdapterRef, Draw, Embedding, Guidance, Pipeline, PipelineOptions};
use serde_json::Value;

/// Largest difference of a latent; the largest latents are about 20.
const LATENTS: f64 = 1e-3;
/// Largest difference of a pixel, of 255.
const PIXELS: f64 = 2.0;

struct Trajectories {
    model: PathBuf,
    recorded: Recorded,
    cases: Value,
}

impl Trajectories {
    fn read(kind: &str) -> Self {
        let folder = fixtures().join("trajectories");
        let cases: Value =
            serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        Self {
            model: fixtures().join(format!("optimum-{kind}")),
            recorded: Recorded::read(&folder.join(format!("{kind}.safetensors"))),
            cases: cases[kind].clone(),
        }
    }

    fn adapters(&self, name: &str) -> Vec<AdapterRef> {
        let listed = self.cases[name]["adapters"].as_array().unwrap();
        let adapter = |entry: &Value| AdapterRef {
            path: fixtures().join("trajectories").join(entry[0].as_str().unwrap()),
            scale: entry[1].as_f64().unwrap(),
        };
        listed.iter().map(adapter).collect()
    }

    /// Latents and pixels of a case, with these adapters and so many images at a time.
    fn run(&self, name: &str, adapters: &[AdapterRef], batch: usize) -> (Vec<f32>, Vec<u8>) {
        let case = &self.cases[name];
        let natural = |key: &str| case[key].as_u64().map(|n| n as usize);
        let options = PipelineOptions {
            batch,
            guidance: Guidance {
                scale: case["guidance"].as_f64().unwrap(),
                rescale: case["guidance_rescale"].as_f64().unwrap(),
            },
            clip_skip: natural("clip_skip").unwrap_or(0),
            negative: case["negative"].as_str().map(str::to_owned),
            size: [natural("height"), natural("width")],
            ..PipelineOptions::default()
        };
        let model = ModelFolder::open(&self.model).unwrap();
        let mut pipeline = Pipeline::load(&model, adapters, &options).unwrap();
        let prompts: Vec<&str> = case["prompts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p.as_str().unwrap())
            .collect();
        let embeddings = pipeline.encode_prompts(&prompts).unwrap();
        let noise = self.recorded.f32(&format!("{name}.noise"));
        let scheduler = model.scheduler_config().unwrap();
        let config = SamplerConfig::from_file(&scheduler).unwrap();
        let schedule = NoiseSchedule::from_file(&scheduler).unwrap();
        let (mut latents, mut pixels) = (Vec::new(), Vec::new());
        let len = noise.len() / prompts.len();
        for (number, part) in embeddings.chunks(batch).enumerate() {
            let mut sampler = sampler(&config, &schedule, natural("steps").unwrap()).unwrap();
            let part: Vec<&Embedding> = part.iter().collect();
            let own = pipeline.sample(
                &mut *sampler,
                &part,
                &mut |image, draw, values| {
                    assert_eq!(draw, Draw::Initial, "these samplers add no noise");
                    let start = (number * batch + image) * len;
                    values.copy_from_slice(&noise[start..start + len]);
                },
                &mut |_| ControlFlow::Continue(()),
            );
            let own = own.unwrap();
            for image in pipeline.decode(&own).unwrap() {
                pixels.extend_from_slice(image.as_raw());
            }
            latents.extend(own);
        }
        (latents, pixels)
    }

    /// Compares a case with what diffusers made of it.
    fn check(&self, name: &str, adapters: &[AdapterRef], batch: usize) {
        let (latents, pixels) = self.run(name, adapters, batch);
        let expected = self.recorded.values(&format!("{name}.latents"));
        let off = largest_difference(latents.iter().map(|v| f64::from(*v)), expected);
        println!("{name}: latents are off by {off}");
        assert!(off <= LATENTS, "{name}: latents are off by {off}");
        let expected = self.recorded.values(&format!("{name}.images"));
        let off = largest_difference(pixels.iter().map(|v| f64::from(*v)), expected);
        assert!(off <= PIXELS, "{name}: pixels are off by {off}");
    }

    /// Whether a case's recorded pixels differ plainly from another's: the comparison would notice a mix-up.
    fn differ(&self, name: &str, adapters: &[AdapterRef]) -> bool {
        let (_, pixels) = self.run(name, adapters, 2);
        let expected = self.recorded.values(&format!("{name}.images"));
        largest_difference(pixels.iter().map(|v| f64::from(*v)), expected) > 10.0 * PIXELS
    }
}

fn largest_difference(found: impl ExactSizeIterator<Item = f64>, expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

#[test]
fn sd_equals_diffusers() {
    let sd = Trajectories::read("sd");
    for name in ["plain", "unguided", "clip_skip", "rescaled"] {
        sd.check(name, &[], 2);
    }
}

#[test]
fn sdxl_equals_diffusers() {
    let sdxl = Trajectories::read("sdxl");
    for name in ["plain", "negative", "clip_skip"] {
        sdxl.check(name, &[], 2);
    }
}

#[test]
fn adapters_equal_peft() {
    for kind in ["sd", "sdxl"] {
        let recorded = Trajectories::read(kind);
        let adapters = recorded.adapters("adapters");
        assert_eq!(adapters.len(), 2);
        recorded.check("adapters", &adapters, 2);
        assert!(recorded.differ("adapters", &adapters[..1]));
    }
}

#[test]
fn kohyas_names_are_the_same_adapter() {
    let sd = Trajectories::read("sd");
    let mut adapters = sd.adapters("adapters");
    adapters[0].path.set_file_name("sd-first-kohya.safetensors");
    sd.check("adapters", &adapters, 2);
}

#[test]
fn batches_that_are_not_full_give_the_same() {
    let sd = Trajectories::read("sd");
    for batch in [1, 3] {
        sd.check("plain", &[], batch);
    }
}

fn refusal(kind: &str, adapter: &Path, options: &PipelineOptions) -> String {
    let model = ModelFolder::open(fixtures().join(format!("optimum-{kind}"))).unwrap();
    let adapter = AdapterRef {
        path: adapter.to_path_buf(),
        scale: 1.0,
    };
    let error = Pipeline::load(&model, &[adapter], options).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[test]
fn adapters_of_another_model_are_refused_with_all_kinds_of_difference() {
    let file = |name: &str| fixtures().join("trajectories").join(name);
    let options = PipelineOptions::default();
    let text = refusal("sd", &file("sdxl-second.safetensors"), &options);
    for part in [
        "does not fit ",
        "it was trained on SDXL; of its ",
        "are not in the model (`unet.",
        " more)",
        "optimum-sd` lists every difference",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = refusal("sd", &file("sdxl-first.safetensors"), &options);
    assert!(
        text.contains("are of networks that the model does not have (`text_encoder_2."),
        "{text}"
    );
    let text = refusal("sd", &file("cases.json"), &options);
    assert!(text.contains("is not a safetensors file"), "{text}");
}

#[test]
fn sizes_and_skipped_layers_that_the_model_cannot_make_are_refused() {
    let model = ModelFolder::open(fixtures().join("optimum-sd")).unwrap();
    let error = |options: PipelineOptions| Pipeline::load(&model, &[], &options).unwrap_err().to_string();
    let text = error(PipelineOptions {
        size: [Some(12), None],
        ..PipelineOptions::default()
    });
    assert!(
        text.contains("--height: is 12, which is not a multiple of 8. 16 is"),
        "{text}"
    );
    let text = error(PipelineOptions {
        clip_skip: 2,
        ..PipelineOptions::default()
    });
    assert!(text.contains("--clip-skip: is 2, but text_encoder"), "{text}");
}
