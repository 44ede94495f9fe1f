//! What files in Kohya's form say of themselves.

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use common::ortdpo;
use common::train::{refused, succeeded};
use safetensors::SafeTensors;

fn metadata(path: &Path) -> HashMap<String, String> {
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    header.metadata().clone().unwrap()
}

/// A LoRA of one cross-attention layer of this width, with these texts.
fn cross_attention(path: &Path, width: usize, texts: &[(&str, &str)]) {
    let module = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k";
    let tensors = [
        (format!("{module}.lora_A.weight"), vec![1, width]),
        (format!("{module}.lora_B.weight"), vec![640, 1]),
    ];
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape)| 0.5_f32.to_le_bytes().repeat(shape.iter().product()))
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape), bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.clone(), view.unwrap())
    });
    let texts = texts
        .iter()
        .map(|(key, text)| (key.to_string(), text.to_string()));
    fs::write(
        path,
        safetensors::serialize(views, Some(texts.collect())).unwrap(),
    )
    .unwrap();
}

#[test]
fn kohyas_metadata_names_every_architecture() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("in.safetensors");
    for (width, texts, architecture, resolution, prediction) in [
        (768, &[][..], "stable-diffusion-v1/lora", "512x512", "epsilon"),
        (
            1024,
            &[("modelspec.prediction_type", "v")],
            "stable-diffusion-v2-768-v/lora",
            "768x768",
            "v",
        ),
        (
            1024,
            &[("ss_v_parameterization", "True")],
            "stable-diffusion-v2-768-v/lora",
            "768x768",
            "v",
        ),
        (
            1024,
            &[("modelspec.prediction_type", "epsilon")],
            "stable-diffusion-v2-512/lora",
            "512x512",
            "epsilon",
        ),
        (
            2048,
            &[("modelspec.resolution", "768x1344")],
            "stable-diffusion-xl-v1-base/lora",
            "768x1344",
            "epsilon",
        ),
    ] {
        cross_attention(&source, width, texts);
        let mut command = ortdpo(folder.path());
        command.args([
            "--quiet",
            "adapter",
            "convert",
            "in.safetensors",
            "style.safetensors",
            "--to",
            "kohya",
            "--replace",
        ]);
        succeeded(&command.env("SOURCE_DATE_EPOCH", "951782400").output().unwrap());
        let notes = metadata(&folder.path().join("style.safetensors"));
        for (key, expected) in [
            ("modelspec.architecture", architecture),
            ("modelspec.resolution", resolution),
            ("modelspec.prediction_type", prediction),
            ("modelspec.title", "style"),
            ("modelspec.date", "2000-02-29T00:00:00"),
            ("ss_network_args", "{}"),
        ] {
            assert_eq!(notes[key], expected, "{architecture}: {key}");
        }
        assert_eq!(notes["ss_v2"], if width == 1024 { "True" } else { "False" });
        // The hash is of what lies behind the header.
        let bytes = fs::read(folder.path().join("style.safetensors")).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let digest = <sha2::Sha256 as sha2::Digest>::digest(&bytes[header..]);
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(notes["sshs_model_hash"], hex);
        assert_eq!(notes["sshs_legacy_hash"].len(), 8);
    }
    // Which of the two kinds of 2.x it is cannot be told from its layers.
    cross_attention(&source, 1024, &[]);
    let convert = |naming: &str| {
        let mut command = ortdpo(folder.path());
        command.args([
            "--quiet",
            "adapter",
            "convert",
            "in.safetensors",
            "out.safetensors",
        ]);
        command
            .args(["--to", "kohya", "--naming", naming])
            .output()
            .unwrap()
    };
    succeeded(&convert("auto"));
    assert!(!metadata(&folder.path().join("out.safetensors")).contains_key("modelspec.architecture"));
    fs::remove_file(folder.path().join("out.safetensors")).unwrap();
    let text = refused(&convert("ldm"));
    assert!(text.contains("would have the names of SDXL's blocks"), "{text}");
}
