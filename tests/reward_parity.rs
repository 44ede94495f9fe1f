//! Reward models against the code they were published with, stage by stage and from the same pixels.
//!
//! `scripts/fixtures/rewards.py` made the models (true architectures, reduced size, random weights) and recorded what
//! transformers, open_clip and torchvision give.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use ndarray::{ArrayD, IxDyn};
use ortdpo::data::image::decode;
use ortdpo::reward::RewardModel;
use ortdpo::runtime::SessionOptions;
use ortdpo::text::Tokenizer;
use safetensors::SafeTensors;
use serde_json::Value;

/// Largest difference of preprocessed values, and of embeddings and scores relative to the largest of them.
const TOLERANCE: f64 = 1e-4;

const MODELS: [&str; 6] = [
    "clip-l14",
    "hpsv2",
    "hpsv2-no-antialias",
    "siglip",
    "imagereward",
    "aesthetic-v2",
];

const PICTURES: [&str; 12] = [
    "rgb.png",
    "tall.png",
    "large.png",
    "small.png",
    "grey.png",
    "alpha.png",
    "palette.png",
    "oriented.jpg",
    "subsampled.jpg",
    "lossless.webp",
    "narrow.png",
    "long.png",
];

const PROMPTS: [&str; 12] = [
    "a small apple on a blue background",
    "two cats and a rocket, highly detailed digital art",
    "",
    "A Portrait of an Astronaut",
    "a dog & a horse!!! (sharp:1.3)",
    "naïve café",
    "", // `cat ` sixty times, see `prompts`
    "oil painting, soft light",
    "1920x1080 photo",
    "house by the sea",
    "the moon and stars",
    "it's what they've wanted",
];

fn folder(name: &str) -> PathBuf {
    common::fixtures().join("rewards").join(name)
}

fn prompts() -> Vec<String> {
    let mut prompts = PROMPTS.map(str::to_owned).to_vec();
    prompts[6] = "cat ".repeat(60);
    prompts
}

fn file(name: &str) -> Vec<u8> {
    let new = folder("pictures").join(name);
    let place = if new.exists() {
        new
    } else {
        common::fixtures().join("images").join(name)
    };
    fs::read(place).unwrap()
}

/// Pictures as Pillow decodes them: ours, but for JPEG files.
fn pictures() -> Vec<RgbImage> {
    let decoded = |name: &&str| match name.ends_with(".jpg") {
        true => decode(&fs::read(folder("decoded").join(format!("{name}.png"))).unwrap()).unwrap(),
        false => decode(&file(name)).unwrap(),
    };
    PICTURES.iter().map(decoded).collect()
}

fn open(folder: &Path) -> RewardModel {
    RewardModel::open_folder(folder, &SessionOptions::default()).unwrap()
}

/// What was recorded for a model.
struct Expected {
    bytes: Vec<u8>,
    ids: Vec<Vec<i64>>,
    scores: Vec<f64>,
}

impl Expected {
    fn read(name: &str) -> Self {
        let json: Value =
            serde_json::from_slice(&fs::read(folder(name).join("expected.json")).unwrap()).unwrap();
        Self {
            bytes: fs::read(folder(name).join("expected.safetensors")).unwrap(),
            ids: serde_json::from_value(json["ids"].clone()).unwrap(),
            scores: serde_json::from_value(json["scores"].clone()).unwrap(),
        }
    }

    fn tensor(&self, name: &str) -> Option<ArrayD<f32>> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).ok()?;
        let (values, _) = tensor.data().as_chunks::<4>();
        let values = values.iter().map(|&v| f32::from_le_bytes(v)).collect();
        Some(ArrayD::from_shape_vec(IxDyn(tensor.shape()), values).unwrap())
    }
}

fn pixels(model: &RewardModel, pictures: &[RgbImage]) -> ArrayD<f32> {
    let [channels, height, width] = model.preprocessor().shape();
    let mut values = vec![f32::NAN; pictures.len() * model.preprocessor().len()];
    for (out, picture) in values.chunks_exact_mut(model.preprocessor().len()).zip(pictures) {
        model.preprocessor().apply(picture, out);
    }
    ArrayD::from_shape_vec(IxDyn(&[pictures.len(), channels, height, width]), values).unwrap()
}

fn largest_difference<'a>(ours: impl IntoIterator<Item = &'a f32>, theirs: &ArrayD<f32>) -> f64 {
    let pairs = ours.into_iter().zip(theirs);
    pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
}

fn largest(values: &ArrayD<f32>) -> f64 {
    values.iter().map(|v| f64::from(v.abs())).fold(0.0, f64::max)
}

fn score_error(scores: &[f64], expected: &[f64]) -> f64 {
    let scale = expected.iter().map(|s| s.abs()).fold(1.0, f64::max);
    let errors = scores.iter().zip(expected).map(|(a, b)| (a - b).abs());
    errors.fold(0.0, f64::max) / scale
}

#[test]
fn every_stage_equals_the_published_code() {
    let (pictures, prompts) = (pictures(), prompts());
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    for name in MODELS {
        let (mut model, expected) = (open(&folder(name)), Expected::read(name));
        let ours = pixels(&model, &pictures);
        let wanted = expected.tensor("pixels").unwrap();
        assert_eq!(ours.shape(), wanted.shape(), "{name}");
        for (index, picture) in PICTURES.iter().enumerate() {
            let part = |all: &ArrayD<f32>| all.index_axis(ndarray::Axis(0), index).to_owned();
            let difference = largest_difference(&part(&ours), &part(&wanted));
            assert!(
                difference < TOLERANCE,
                "{name}, {picture}: preprocessed values differ by {difference}"
            );
        }
        if let Some(tokens) = model.tokens(&prompts).unwrap() {
            for (row, ids) in tokens.ids.outer_iter().zip(&expected.ids) {
                assert_eq!(row.to_vec(), *ids, "{name}");
            }
        }
        let mut embeddings = vec![];
        if let Some(text) = model.embed_prompts(&prompts).unwrap() {
            embeddings.push(("text_embeds", text));
        }
        if name != "imagereward" {
            embeddings.push(("image_embeds", model.embed_images(&pictures).unwrap()));
        }
        for (kind, ours) in embeddings {
            let wanted = expected.tensor(kind).unwrap();
            let difference = largest_difference(&ours, &wanted) / largest(&wanted);
            assert!(
                difference < TOLERANCE,
                "{name}: {kind} differ by {difference} of the largest"
            );
        }
        let scores = model.score(&pictures, &prompts).unwrap();
        let error = score_error(&scores, &expected.scores);
        assert!(
            error < TOLERANCE,
            "{name}: scores differ by {error}: {scores:?} {:?}",
            expected.scores
        );
        let (least, most) = expected
            .scores
            .iter()
            .fold((f64::MAX, f64::MIN), |(a, b), &s| (a.min(s), b.max(s)));
        let spread = (most - least) / most.abs().max(least.abs()).max(1.0);
        assert!(
            spread > 100.0 * TOLERANCE,
            "{name}: scores spread over {spread} only"
        );
    }
}

/// What the test above could not tell apart would be worth nothing.
#[test]
fn a_wrong_resize_is_noticed() {
    let (pictures, prompts) = (pictures(), prompts());
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    for (name, right, wrong) in [
        ("clip-l14", "filter: bicubic", "filter: bilinear"),
        (
            "clip-l14",
            "center_crop_transformers_v1",
            "center_crop_torchvision_v1",
        ),
        ("imagereward", "filter: bicubic", "filter: lanczos"),
        (
            "imagereward",
            "center_crop_torchvision_v1",
            "center_crop_transformers_v1",
        ),
        ("siglip", "filter: bicubic", "filter: bilinear"),
        (
            "hpsv2",
            "torch_resize_longest_antialiased_v1",
            "torch_resize_longest_v1",
        ),
    ] {
        let copy = tempfile::tempdir_in(folder("")).unwrap();
        let manifest = fs::read_to_string(folder(name).join("reward.yaml")).unwrap();
        assert!(manifest.contains(right));
        let manifest = manifest
            .replace(right, wrong)
            .replace("model: ", &format!("model: ../{name}/"));
        let manifest = manifest.replace("tokenizer: ", &format!("tokenizer: ../{name}/"));
        fs::write(copy.path().join("reward.yaml"), manifest).unwrap();
        let (mut model, expected) = (open(copy.path()), Expected::read(name));
        let difference = largest_difference(&pixels(&model, &pictures), &expected.tensor("pixels").unwrap());
        assert!(difference > 100.0 * TOLERANCE, "{name}, {wrong}: {difference}");
        let error = score_error(&model.score(&pictures, &prompts).unwrap(), &expected.scores);
        assert!(
            error > TOLERANCE,
            "{name}, {wrong}: scores differ by {error} only"
        );
    }
}

/// Decoders of JPEG agree to a step or two of 255; every other format is exact.
#[test]
fn jpeg_files_differ_from_pillow_by_a_step_or_two() {
    for name in PICTURES.iter().filter(|name| name.ends_with(".jpg")) {
        let ours = decode(&file(name)).unwrap();
        let theirs = decode(&fs::read(folder("decoded").join(format!("{name}.png"))).unwrap()).unwrap();
        assert_eq!(ours.dimensions(), theirs.dimensions());
        let pairs = ours.as_raw().iter().zip(theirs.as_raw());
        let differences: Vec<u8> = pairs.map(|(a, b)| a.abs_diff(*b)).collect();
        let largest = differences.iter().copied().max().unwrap();
        let mean = differences.iter().map(|&d| f64::from(d)).sum::<f64>() / differences.len() as f64;
        println!("{name}: differs from Pillow's decoder by {largest}/255 at most, {mean:.3}/255 on average");
        // Without subsampling only rounding differs; with it also how colour is interpolated.
        let average = if *name == "subsampled.jpg" { 1.0 } else { 0.05 };
        assert!(largest <= 8 && mean <= average, "{name}: {largest} {mean}");
    }
}

#[test]
fn a_thousand_odd_prompts_give_the_ids_of_transformers() {
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(folder("prompts.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 1000);
    let tokenizer = Tokenizer::from_folder(&folder("clip-l14/tokenizer"), Some(77)).unwrap();
    for case in &cases {
        let text = case["text"].as_str().unwrap();
        let tokens = tokenizer.encode(text).unwrap();
        let expected: Vec<i64> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokens.ids[..tokens.used], expected, "{text:?}");
        assert!(
            tokens.ids[tokens.used..]
                .iter()
                .all(|id| id == expected.last().unwrap())
        );
    }
}

/// Two rewards on one image tower, two resizes in front of another: what may share features does, and nothing else.
#[test]
fn features_are_shared_by_content() {
    let hash = |name: &str| open(&folder(name)).features_hash().unwrap();
    assert_eq!(hash("clip-l14"), hash("aesthetic-v2"));
    assert_ne!(hash("hpsv2"), hash("hpsv2-no-antialias"));
}
