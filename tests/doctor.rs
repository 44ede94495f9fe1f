//! `ortdpo doctor`, and what every command says when ONNX Runtime is missing or will not do.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{fixtures, foreign_provider, ortdpo, ortdpo_alone, stderr, stdout};
use serde_json::Value;

fn library_name() -> String {
    format!(
        "{}onnxruntime{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    )
}

/// Builds a shared library from Rust source; `cargo test` has a compiler at hand.
fn build_library(folder: &Path, source: &str) -> PathBuf {
    let (file, library) = (folder.join("fake.rs"), folder.join(library_name()));
    std::fs::write(&file, source).unwrap();
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let arguments = ["--edition=2024", "--crate-type=cdylib", "--crate-name=fake", "-o"];
    let status = Command::new(compiler)
        .args(arguments)
        .arg(&library)
        .arg(&file)
        .status()
        .unwrap();
    assert!(status.success());
    library
}

/// Exit code 2, one paragraph on standard error, which is returned.
fn refused(output: Output) -> String {
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.starts_with("error: ") && text.trim_end().lines().count() == 1,
        "{text}"
    );
    text
}

#[test]
fn a_missing_library_is_reported_with_every_place_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("work");
    std::fs::create_dir(&below).unwrap();
    let output = ortdpo_alone(folder.path())
        .current_dir(&below)
        .arg("doctor")
        .output()
        .unwrap();
    assert!(stdout(&output).contains("ONNX Runtime: not found"));
    let text = refused(output);
    for place in [below.as_path(), folder.path()] {
        let place = place.canonicalize().unwrap().join(".ort").join(library_name());
        assert!(
            text.contains(&place.display().to_string()),
            "{} in {text}",
            place.display()
        );
    }
    assert!(
        text.contains("scripts/setup") && text.contains("--ort-lib"),
        "{text}"
    );
}

#[test]
fn a_file_that_is_no_library_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bogus = folder.path().join("bogus.so");
    std::fs::write(&bogus, "text").unwrap();
    let by_option = ortdpo(folder.path())
        .arg("doctor")
        .arg("--ort-lib")
        .arg(&bogus)
        .output()
        .unwrap();
    let by_variable = ortdpo(folder.path())
        .env("ORT_DYLIB_PATH", &bogus)
        .arg("doctor")
        .output()
        .unwrap();
    for (output, named_by) in [(by_option, "--ort-lib"), (by_variable, "ORT_DYLIB_PATH")] {
        let text = refused(output);
        let expected = format!("{named_by}: {} (cannot be loaded: ", bogus.display());
        assert!(text.contains(&expected), "{text}");
    }
}

#[test]
fn a_library_that_is_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let library = build_library(
        folder.path(),
        "#[unsafe(no_mangle)] pub extern \"C\" fn other() {}",
    );
    let text = refused(
        ortdpo(folder.path())
            .arg("doctor")
            .arg("--ort-lib")
            .arg(library)
            .output()
            .unwrap(),
    );
    assert!(text.contains("a library, but not ONNX Runtime"), "{text}");
}

#[test]
fn a_library_that_is_too_old_is_refused_by_its_version() {
    const OLD: &str = r#"
        use std::ffi::{c_char, c_void};
        extern "system" fn api(_: u32) -> *const c_void { std::ptr::null() }
        extern "system" fn version() -> *const c_char { c"1.20.1".as_ptr() }
        #[repr(C)] pub struct Base(extern "system" fn(u32) -> *const c_void, extern "system" fn() -> *const c_char);
        static BASE: Base = Base(api, version);
        #[unsafe(no_mangle)] pub extern "system" fn OrtGetApiBase() -> *const Base { &BASE }
    "#;
    let folder = tempfile::tempdir().unwrap();
    build_library(folder.path(), OLD);
    // A folder stands for the library in it.
    let folder = folder.path();
    let text = refused(
        ortdpo(folder)
            .arg("doctor")
            .arg("--ort-lib")
            .arg(folder)
            .output()
            .unwrap(),
    );
    assert!(text.contains("version 1.20.1 is too old"), "{text}");
    assert!(text.contains("1.31 or newer"), "{text}");
}

#[test]
fn says_what_the_machine_can_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = ortdpo(folder.path())
        .args(["doctor", "--format", "json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(
        report["onnxruntime"]["version"]
            .as_str()
            .unwrap()
            .starts_with("1.")
    );
    assert!(Path::new(report["onnxruntime"]["library"].as_str().unwrap()).is_file());
    assert_eq!(
        report["threads"],
        std::thread::available_parallelism().unwrap().get()
    );
    let usable = |name: &str| {
        let providers = report["providers"].as_array().unwrap();
        providers.iter().find(|p| p["name"] == name).unwrap()["usable"]
            .as_bool()
            .unwrap()
    };
    assert!(usable("cpu") && !usable(foreign_provider().name()));
    assert_eq!(report["problems"].as_array().unwrap().len(), 0);
}

#[test]
fn a_provider_that_was_asked_for_and_is_not_there_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let name = foreign_provider().name();
    let text = refused(
        ortdpo(folder.path())
            .args(["doctor", "--ep", name])
            .output()
            .unwrap(),
    );
    assert!(
        text.contains(&format!("execution provider `{name}`: cannot be used")),
        "{text}"
    );
    assert!(text.contains("was built without it"), "{text}");
}

/// A folder with every part of a Stable Diffusion pipeline; the networks are small stand-ins.
fn pipeline(root: &Path) {
    let parts = ["unet", "text_encoder", "vae_encoder", "vae_decoder"];
    for part in parts {
        let folder = root.join(part);
        std::fs::create_dir(&folder).unwrap();
        std::fs::copy(fixtures().join("runtime/affine.onnx"), folder.join("model.onnx")).unwrap();
        std::fs::copy(fixtures().join("runtime/affine.data"), folder.join("affine.data")).unwrap();
        std::fs::write(folder.join("config.json"), "{}").unwrap();
    }
    std::fs::create_dir(root.join("tokenizer")).unwrap();
    std::fs::write(root.join("tokenizer/tokenizer.json"), "{}").unwrap();
    std::fs::create_dir(root.join("scheduler")).unwrap();
    std::fs::write(root.join("scheduler/scheduler_config.json"), "{}").unwrap();
    let index = r#"{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"]}"#;
    std::fs::write(root.join("model_index.json"), index).unwrap();
}

#[test]
fn a_complete_folder_is_listed_with_its_inputs_and_outputs() {
    let folder = tempfile::tempdir().unwrap();
    pipeline(folder.path());
    let output = ortdpo(folder.path()).args(["doctor", "."]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for expected in [
        "StableDiffusionPipeline",
        "vae_decoder",
        "drawing images",
        "x f32[batch,3]",
        "y f32[batch,2]",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    assert!(!text.contains("PROBLEM"), "{text}");
}

#[test]
fn each_damaged_or_missing_part_is_named() {
    let folder = tempfile::tempdir().unwrap();
    pipeline(folder.path());
    let path = |name: &str| folder.path().join(name);
    std::fs::remove_dir_all(path("vae_encoder")).unwrap();
    std::fs::remove_file(path("text_encoder/affine.data")).unwrap();
    std::fs::write(path("vae_decoder/affine.data"), [0; 8]).unwrap();
    std::fs::write(path("unet/model.onnx"), "text").unwrap();
    std::fs::remove_file(path("scheduler/scheduler_config.json")).unwrap();
    let output = ortdpo(folder.path())
        .args(["doctor", ".", "--format", "json"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let parts = report["model"]["parts"].as_array().unwrap();
    let problem = |name: &str| parts.iter().find(|p| p["name"] == name).unwrap()["problem"].clone();
    for (name, what) in [
        ("unet", "is not an ONNX model"),
        ("text_encoder", "tensor `weight` is missing"),
        ("vae_encoder", "model.onnx: is missing"),
        ("vae_decoder", "too short for tensor `weight`"),
        ("scheduler", "scheduler_config.json: is missing"),
    ] {
        assert!(
            problem(name).as_str().unwrap().contains(what),
            "{name}: {}",
            problem(name)
        );
    }
    assert!(problem("tokenizer").is_null());
    let text = refused(output);
    let names = "unet, text_encoder, vae_encoder, vae_decoder, scheduler cannot be used";
    assert!(text.contains(names), "{text}");
}

#[test]
fn a_folder_that_is_no_pipeline_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = refused(ortdpo(folder.path()).args(["doctor", "."]).output().unwrap());
    assert!(text.contains("holds no model_index.json"), "{text}");
}

#[cfg(unix)]
#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = ortdpo(folder.path())
        .arg("doctor")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}
