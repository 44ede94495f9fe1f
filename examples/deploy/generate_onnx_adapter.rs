//! An image with an adapter, by the `ort` crate and a tokenizer.
//!
//! ```text
//! ortdpo adapter export-base models/tiny-sd tiny-adaptable --adapter runs/demo
//! ortdpo adapter convert runs/demo demo.onnx_adapter --to onnx
//! export ORT_DYLIB_PATH=.ort/libonnxruntime.so
//! cargo run --example generate_onnx_adapter tiny-adaptable demo.onnx_adapter "a small apple on a blue background" apple.png
//! ```
//!
//! For Stable Diffusion pipelines with one text encoder that predict noise, exported with 64-bit tokens and timesteps.

use std::error::Error;

use ort::session::{Adapter, RunOptions, Session};
use ort::value::Tensor;
use rand_distr::{Distribution, StandardNormal};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::Lowercase;
use tokenizers::pre_tokenizers::whitespace::Whitespace;

const STEPS: usize = 10;
const GUIDANCE: f32 = 3.0;

/// Tokens of the empty prompt and of `prompt`, words in lower case; CLIP's own rules are a little finer.
fn tokens(folder: &str, prompt: &str, context: usize) -> tokenizers::Result<Vec<i64>> {
    let [vocabulary, merges] = ["vocab.json", "merges.txt"].map(|file| format!("{folder}/tokenizer/{file}"));
    let model = BPE::from_file(&vocabulary, &merges)
        .end_of_word_suffix("</w>".into())
        .build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(Lowercase))
        .with_pre_tokenizer(Some(Whitespace));
    let [begin, end] =
        ["<|startoftext|>", "<|endoftext|>"].map(|name| tokenizer.token_to_id(name).unwrap_or(0));
    let mut all = Vec::new();
    for text in ["", prompt] {
        let encoded = tokenizer.encode(text, false)?;
        let words = encoded.get_ids().iter().take(context - 2);
        let ids = std::iter::once(&begin)
            .chain(words)
            .chain(std::iter::repeat(&end))
            .take(context);
        all.extend(ids.map(|id| i64::from(*id)));
    }
    Ok(all)
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, adapter, prompt, output] = arguments.as_slice() else {
        return Err(
            "give the folder of `ortdpo adapter export-base`, an .onnx_adapter, a prompt and a PNG file"
                .into(),
        );
    };
    let environment = ort::init().with_telemetry(false).build()?;
    let load =
        |part: &str| Session::builder(&environment)?.commit_from_file(format!("{base}/{part}/model.onnx"));
    let setting = |part: &str, key: &str| -> Result<f64, Box<dyn Error + Send + Sync>> {
        let config: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(format!("{base}/{part}/config.json"))?)?;
        config[key]
            .as_f64()
            .ok_or_else(|| format!("{part} has no {key}").into())
    };
    let side = setting("unet", "sample_size")? as usize;
    let context = setting("text_encoder", "max_position_embeddings")? as usize;
    let scale = setting("vae_decoder", "scaling_factor")? as f32;
    let adapter = Adapter::from_file(adapter, None)?;
    let mut with_adapter = RunOptions::new()?;
    with_adapter.add_adapter(&adapter)?;

    let ids = Tensor::from_array(([2, context], tokens(base, prompt, context)?))?;
    let mut text_encoder = load("text_encoder")?;
    let encoded = text_encoder.run(ort::inputs!["input_ids" => ids])?;
    let (shape, text) = encoded[0].try_extract_tensor::<f32>()?;
    let text = Tensor::from_array((shape.to_vec(), text.to_vec()))?;

    // The noise schedule of Stable Diffusion, and DDIM.
    let beta =
        |t: usize| (0.00085_f32.sqrt() + (0.012_f32.sqrt() - 0.00085_f32.sqrt()) * t as f32 / 999.0).powi(2);
    let kept: Vec<f32> = (0..1000)
        .scan(1.0, |product, t| {
            Some({
                *product *= 1.0 - beta(t);
                *product
            })
        })
        .collect();
    let mut random = <rand_chacha::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(7);
    let mut latents: Vec<f32> = (0..4 * side * side)
        .map(|_| StandardNormal.sample(&mut random))
        .collect();
    let mut unet = load("unet")?;
    for t in (0..STEPS).rev().map(|step| 1 + step * 1000 / STEPS) {
        let sample = Tensor::from_array(([2, 4, side, side], latents.repeat(2)))?;
        let timestep = Tensor::from_array(([2], vec![t as i64; 2]))?;
        let inputs =
            ort::inputs!["sample" => sample, "timestep" => timestep, "encoder_hidden_states" => &text];
        let made = unet.run_with_options(inputs, &with_adapter)?;
        let (without, with) = made[0].try_extract_tensor::<f32>()?.1.split_at(latents.len());
        let (now, then) = (kept[t], kept[t.saturating_sub(1000 / STEPS)]);
        for ((x, without), with) in latents.iter_mut().zip(without).zip(with) {
            let noise = without + GUIDANCE * (with - without);
            *x = (then / now).sqrt() * (*x - (1.0 - now).sqrt() * noise) + (1.0 - then).sqrt() * noise;
        }
    }

    let latents: Vec<f32> = latents.iter().map(|x| x / scale).collect();
    let mut decoder = load("vae_decoder")?;
    let decoded =
        decoder.run(ort::inputs!["latent_sample" => Tensor::from_array(([1, 4, side, side], latents))?])?;
    let (shape, pixels) = decoded[0].try_extract_tensor::<f32>()?;
    let (height, width) = (shape[2] as usize, shape[3] as usize);
    let value = |x: u32, y: u32, channel: usize| pixels[(channel * height + y as usize) * width + x as usize];
    let byte = |value: f32| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8;
    let pixel = |x, y| image::Rgb([0, 1, 2].map(|channel| byte(value(x, y, channel))));
    image::RgbImage::from_fn(width as u32, height as u32, pixel).save(output)?;
    Ok(())
}
