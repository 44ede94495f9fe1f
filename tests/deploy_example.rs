//! `examples/deploy/generate_onnx_adapter.rs` makes an image, and another one with another adapter.

mod common;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::ortdpo;
use common::train::succeeded;
use ortdpo::adapter::{NamedTensor, Precision, write_tensors};

/// Built by `cargo test` without a choice of targets; otherwise it may not be there.
fn example() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let name = format!("generate_onnx_adapter{}", std::env::consts::EXE_SUFFIX);
    Some(own.parent()?.parent()?.join("examples").join(name)).filter(|path| path.is_file())
}

fn runtime() -> Option<PathBuf> {
    let given = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ort/libonnxruntime.so");
    given.into_iter().chain([fetched]).find(|path| path.is_file())
}

#[test]
fn the_rust_example_makes_an_image_with_an_adapter() {
    let (Some(example), Some(runtime)) = (example(), runtime()) else {
        eprintln!("skipped: the example is not built, or ONNX Runtime is not where it is looked for");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let run = |arguments: &[&str]| {
        let mut command = ortdpo(folder.path());
        succeeded(
            &command
                .arg("--quiet")
                .arg("adapter")
                .args(arguments)
                .output()
                .unwrap(),
        );
    };
    let module = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0";
    let images = ["nothing", "much"].map(|name| {
        let scale = if name == "much" { 0.2 } else { 0.0 };
        let tensor = |side: &str, shape: [usize; 2], scale: f32| NamedTensor {
            name: format!("{module}.{side}.weight"),
            shape: shape.to_vec(),
            precision: Precision::Fp32,
            values: Box::new(move || Ok(Cow::Owned((0..128).map(|i| scale * (i as f32).sin()).collect()))),
        };
        let tensors = vec![tensor("lora_A", [1, 128], 1.0), tensor("lora_B", [128, 1], scale)];
        let file = format!("{name}.safetensors");
        write_tensors(&path(&file), &[("format", "pt".to_owned())], tensors).unwrap();
        let onnx = format!("{name}.onnx_adapter");
        run(&["convert", &file, &onnx, "--to", "onnx"]);
        if !path("base").exists() {
            let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-sd");
            run(&["export-base", model.to_str().unwrap(), "base", "--adapter", &file]);
        }
        let png = format!("{name}.png");
        let mut command = Command::new(&example);
        command.current_dir(folder.path()).env("ORT_DYLIB_PATH", &runtime);
        let prompt = "a small apple on a blue background";
        succeeded(&command.args(["base", &onnx, prompt, &png]).output().unwrap());
        image::open(path(&png)).unwrap().into_rgb8()
    });
    assert_eq!(images[0].dimensions(), (64, 64));
    assert_ne!(images[0], images[1]);
    // The background is blue.
    let [red, _, blue] = images[0].get_pixel(2, 2).0;
    assert!(blue > 150 && red < 120, "{:?}", images[0].get_pixel(2, 2));
}
