//! `ortdpo adapter`: what it writes is what its sources were, and what it refuses leaves nothing.
//! `scripts/check_conversions.py` has diffusers, PEFT and ONNX Runtime read the same kinds of files.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::structures::Structure;
use common::train::{files, refused, succeeded};
use common::{fixtures, ortdpo, stderr, stdout};
use ortdpo::adapter::names;
use ortdpo::onnx::Model;
use safetensors::SafeTensors;
use serde_json::Value;

fn adapter(name: &str) -> String {
    fixtures().join("trajectories").join(name).display().to_string()
}

fn pipeline(kind: &str) -> String {
    fixtures().join(format!("optimum-{kind}")).display().to_string()
}

struct Workspace(tempfile::TempDir);

impl Workspace {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = ortdpo(self.0.path());
        command
            .arg("--quiet")
            .arg("adapter")
            .args(arguments)
            .output()
            .unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        succeeded(&output);
        stdout(&output)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.done(&[arguments, &["--format", "json"]].concat())).unwrap()
    }

    /// The one paragraph, and nothing new in the folder.
    fn refused(&self, arguments: &[&str]) -> String {
        let before = files(self.0.path());
        let text = refused(&self.run(arguments));
        assert_eq!(files(self.0.path()), before, "{arguments:?} left something");
        text
    }
}

/// Type, shape and bytes of every tensor.
fn tensors(path: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let entry = |(name, view): (&str, safetensors::tensor::TensorView)| {
        let data = view.data().to_vec();
        (
            name.to_owned(),
            (format!("{:?}", view.dtype()), view.shape().to_vec(), data),
        )
    };
    file.iter().map(entry).collect()
}

fn metadata(path: &Path) -> std::collections::HashMap<String, String> {
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    header.metadata().clone().unwrap()
}

/// Python wrote both files.
#[test]
fn kohyas_form_holds_what_pytorch_wrote_and_leads_back() {
    let workspace = Workspace::new();
    workspace.done(&[
        "convert",
        &adapter("sd-first.safetensors"),
        "k.safetensors",
        "--to",
        "kohya",
    ]);
    let ours = tensors(&workspace.path("k.safetensors"));
    let mut theirs = tensors(Path::new(&adapter("sd-first-kohya.safetensors")));
    for (key, (dtype, _, bytes)) in &mut theirs {
        // Python made whole numbers of its alphas.
        if key.ends_with(".alpha") {
            (*dtype, *bytes) = ("F32".into(), 4.0_f32.to_le_bytes().to_vec());
        }
    }
    assert_eq!(ours.len(), 3 * 89);
    assert!(ours == theirs, "other tensors than PyTorch's");
    let notes = metadata(&workspace.path("k.safetensors"));
    assert_eq!(notes["ss_network_module"], "networks.lora");
    assert_eq!(
        (&*notes["ss_network_dim"], &*notes["ss_network_alpha"]),
        ("2", "4")
    );
    assert!(!notes.contains_key("lora_adapter_metadata"));

    workspace.done(&["convert", "k.safetensors", "d.safetensors", "--to", "diffusers"]);
    assert!(
        tensors(&workspace.path("d.safetensors")) == tensors(Path::new(&adapter("sd-first.safetensors")))
    );
    let notes = metadata(&workspace.path("d.safetensors"));
    let config: Value = serde_json::from_str(&notes["lora_adapter_metadata"]).unwrap();
    for component in ["unet", "text_encoder"] {
        let key = |name: &str| config[format!("{component}.{name}")].as_f64();
        assert_eq!((key("r"), key("lora_alpha")), (Some(2.0), Some(4.0)));
    }
    assert_eq!(notes["ss_network_module"], "networks.lora");
}

#[test]
fn sdxl_has_both_namings() {
    let workspace = Workspace::new();
    let source = adapter("sdxl-first.safetensors");
    for (naming, block) in [
        ("auto", "lora_unet_input_blocks_4_1_"),
        ("ldm", "lora_unet_input_blocks_4_1_"),
        ("diffusers", "lora_unet_down_blocks_1_attentions_0_"),
    ] {
        workspace.done(&[
            "convert",
            &source,
            "k.safetensors",
            "--to",
            "kohya",
            "--naming",
            naming,
            "--replace",
        ]);
        let keys = tensors(&workspace.path("k.safetensors"));
        for prefix in [
            block,
            "lora_te1_text_model_encoder_layers_0_",
            "lora_te2_text_model_",
        ] {
            assert!(
                keys.keys().any(|key| key.starts_with(prefix)),
                "{naming}: no {prefix}"
            );
        }
        let notes = metadata(&workspace.path("k.safetensors"));
        assert_eq!(
            notes["modelspec.architecture"],
            "stable-diffusion-xl-v1-base/lora"
        );
        workspace.done(&[
            "convert",
            "k.safetensors",
            "d.safetensors",
            "--to",
            "diffusers",
            "--replace",
        ]);
        assert!(
            tensors(&workspace.path("d.safetensors")) == tensors(Path::new(&source)),
            "{naming}"
        );
    }
}

/// Every layer of the real networks; diffusers' reader of original checkpoints says what it is called there
/// (`scripts/fixtures/ldm_names.py`).
#[test]
fn names_of_all_layers_are_those_of_stabilitys_code() {
    let packed = fs::File::open(fixtures().join("adapters/names.json.gz")).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed)
        .read_to_string(&mut text)
        .unwrap();
    let lists: Value = serde_json::from_str(&text).unwrap();
    for (architecture, layers) in [("sd15", 282), ("sdxl", 794)] {
        let list = lists[architecture].as_object().unwrap();
        assert_eq!(list.len(), layers);
        for (path, theirs) in list {
            let theirs = names::flat(theirs.as_str().unwrap());
            assert_eq!(names::from_ldm(&theirs), names::flat(path));
            assert_eq!(names::dotted(&names::flat(path)).as_ref(), Some(path));
            if architecture == "sdxl" {
                assert_eq!(names::sdxl_ldm(path), Some(theirs));
            }
        }
    }
    for path in lists["clip"].as_array().unwrap() {
        let path = path.as_str().unwrap();
        assert_eq!(names::dotted(&names::flat(path)).as_deref(), Some(path));
    }
}

#[test]
fn types_change_only_when_asked() {
    let workspace = Workspace::new();
    let halves = fixtures()
        .join("adapters/diffusers.safetensors")
        .display()
        .to_string();
    let dtypes = |name: &str| -> Vec<String> {
        let mut found: Vec<String> = tensors(&workspace.path(name))
            .into_values()
            .map(|t| t.0)
            .collect();
        found.dedup();
        found
    };
    workspace.done(&["convert", &halves, "same.safetensors", "--to", "diffusers"]);
    assert_eq!(dtypes("same.safetensors"), ["F16"]);
    workspace.done(&[
        "convert",
        &halves,
        "wide.safetensors",
        "--to",
        "diffusers",
        "--dtype",
        "f32",
    ]);
    assert_eq!(dtypes("wide.safetensors"), ["F32"]);
    workspace.done(&[
        "convert",
        "wide.safetensors",
        "back.safetensors",
        "--to",
        "diffusers",
        "--dtype",
        "f16",
    ]);
    assert!(tensors(&workspace.path("back.safetensors")) == tensors(&workspace.path("same.safetensors")));
    workspace.done(&[
        "convert",
        &halves,
        "b.safetensors",
        "--to",
        "kohya",
        "--dtype",
        "bf16",
    ]);
    assert_eq!(
        workspace.json(&["inspect", "b.safetensors"])["components"][0]["dtypes"]["BF16"],
        37
    );
}

#[test]
fn merging_and_resizing_give_adapters_of_the_ranks_they_say() {
    let workspace = Workspace::new();
    let (first, second) = (adapter("sd-first.safetensors"), adapter("sd-second.safetensors"));
    let parts = [format!("{first}:0.7"), format!("{second}:-0.5")];
    let merged = workspace.json(&["merge", &parts[0], &parts[1], "both.safetensors"]);
    assert_eq!(merged["ranks"], serde_json::json!([2, 4]));
    let small = workspace.json(&[
        "resize",
        "both.safetensors",
        "small.safetensors",
        "--energy",
        "0.8",
    ]);
    let modules = small["by_module"].as_array().unwrap();
    let below = |m: &&Value| m["to"].as_u64() < m["from"].as_u64();
    assert!(modules.iter().any(|m| below(&m)) && modules.iter().all(|m| m["kept"].as_f64().unwrap() >= 0.8));
    let at_once = workspace.json(&["merge", &parts[0], &parts[1], "two.safetensors", "--rank", "2"]);
    assert_eq!(at_once["ranks"], serde_json::json!([2, 2]));
    assert!(at_once["kept"].as_f64().unwrap() < 1.0);
    // Ranks and alphas of all modules come back from the patterns: what is kept of the norm is what was said.
    let squares = |file: &str| -> f64 {
        let inspected = workspace.json(&["inspect", file]);
        let components = inspected["components"].as_array().unwrap();
        components
            .iter()
            .map(|c| c["norm"].as_f64().unwrap().powi(2))
            .sum()
    };
    let kept = squares("small.safetensors") / squares("both.safetensors");
    assert!((kept - small["kept"].as_f64().unwrap()).abs() < 1e-6, "{kept}");
    let inspected = workspace.json(&["inspect", "small.safetensors"]);
    assert!(inspected["components"][1]["ranks"].as_object().unwrap().len() > 1);
}

#[test]
fn inspecting_lists_every_difference_to_a_model() {
    let workspace = Workspace::new();
    let fits = workspace.json(&[
        "inspect",
        &adapter("sdxl-first.safetensors"),
        "--model",
        &pipeline("sdxl"),
    ]);
    assert_eq!(
        (&fits["fits"], fits["base"].as_str()),
        (&Value::Bool(true), Some("SDXL"))
    );
    assert!(
        fits["groups"]
            .as_array()
            .unwrap()
            .iter()
            .all(|g| g["mean_norm"].as_f64().unwrap() > 0.0)
    );

    let foreign = adapter("sdxl-first.safetensors");
    let output = workspace.run(&[
        "inspect",
        &foreign,
        "--model",
        &pipeline("sd"),
        "--format",
        "json",
    ]);
    assert_eq!(output.status.code(), Some(2));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let differences = report["differences"].as_array().unwrap();
    let of = |kind: &str| differences.iter().filter(|d| d["kind"] == kind).count();
    // The second text encoder has 12 adapted modules; widths of captions and of the first text encoder are others.
    assert_eq!((of("component"), of("name"), of("shape")), (12, 70, 16));
    let text = stderr(&output);
    assert!(
        text.contains("12 differences of component, 70 differences of name, 16 differences of shape"),
        "{text}"
    );
}

#[test]
fn a_base_with_inputs_for_adapters_computes_what_the_pipeline_did() {
    let workspace = Workspace::new();
    let first = adapter("sdxl-first.safetensors");
    let exported = workspace.json(&["export-base", &pipeline("sdxl"), "base", "--adapter", &first]);
    assert_eq!(
        exported["components"][0],
        serde_json::json!({"component": "unet", "layers": 117})
    );
    workspace.done(&["convert", &first, "a.onnx_adapter", "--to", "onnx"]);
    let image = |model: &str, adapter: Option<&str>, output: &str| {
        let mut command = ortdpo(workspace.0.path());
        command.args([
            "generate", "--quiet", "--prompt", "ab cd", "--steps", "2", "--model", model,
        ]);
        command
            .args(["--output", output])
            .args(adapter.iter().flat_map(|a| ["--adapter", a]));
        succeeded(&command.output().unwrap());
        let file = workspace.path(output).join("images/00000-0.png");
        image::open(file).unwrap().to_rgb8().into_raw()
    };
    let plain = image(&pipeline("sdxl"), None, "plain");
    assert_eq!(image("base", None, "from-base"), plain);
    // Read back, the file is the adapter of the UNet.
    let of_unet = image("base", Some("a.unet.onnx_adapter"), "of-unet");
    assert!(of_unet != plain);
    workspace.done(&[
        "convert",
        "a.unet.onnx_adapter",
        "u.safetensors",
        "--to",
        "diffusers",
    ]);
    assert_eq!(image(&pipeline("sdxl"), Some("u.safetensors"), "again"), of_unet);

    let text = workspace.refused(&["export-base", "base", "twice", "--adapter", &first]);
    assert!(text.contains("lora_A` already"), "{text}");
    let text = workspace.refused(&["export-base", &pipeline("sd"), "other", "--adapter", &first]);
    assert!(text.contains("has no text_encoder_2"), "{text}");
    let text = workspace.refused(&["export-base", &pipeline("sd"), "other", "--target", "to_z"]);
    assert!(text.contains("has no layer that matches to_z"), "{text}");
}

#[test]
fn bad_input_is_refused_and_leaves_nothing() {
    let workspace = Workspace::new();
    let first = adapter("sd-first.safetensors");
    let whole = fs::read(&first).unwrap();
    fs::write(workspace.path("half.safetensors"), &whole[..whole.len() - 99]).unwrap();
    fs::write(workspace.path("there.safetensors"), "").unwrap();
    let convert = |input: &str, output: &str| workspace.refused(&["convert", input, output, "--to", "kohya"]);
    let text = convert("half.safetensors", "k.safetensors");
    assert!(text.contains("half.safetensors: is cut off: it has "), "{text}");
    assert!(convert(&first, "none/k.safetensors").contains("there is no folder none"));
    assert!(convert(&first, "there.safetensors").contains("allow it with --replace"));
    assert!(convert("none.safetensors", "k.safetensors").contains("none.safetensors: cannot read"));
    assert!(convert(&first, ".").contains("is a folder"));

    let resize =
        |size: &[&str]| workspace.refused(&[&["resize", &first, "small.safetensors"], size].concat());
    assert!(resize(&["--rank", "0"]).contains("--rank: is 0"));
    assert!(resize(&["--energy", "1.5"]).contains("--energy: is 1.5"));
    assert!(resize(&["--energy", "NaN"]).contains("--energy: is NaN"));
    let output = workspace.run(&["merge", &format!("{first}:NaN"), "m.safetensors"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("NaN is no factor"),
        "{}",
        stderr(&output)
    );
    let text = workspace.refused(&[
        "merge",
        &first,
        &adapter("sdxl-first.safetensors"),
        "m.safetensors",
    ]);
    assert!(
        text.contains("Merge adapters that were trained on the same kind of model"),
        "{text}"
    );

    workspace.done(&["convert", &first, "a.onnx_adapter", "--to", "onnx"]);
    let cut = fs::read(workspace.path("a.unet.onnx_adapter")).unwrap();
    fs::write(workspace.path("cut.onnx_adapter"), &cut[..cut.len() - 9]).unwrap();
    assert!(convert("cut.onnx_adapter", "k.safetensors").contains("is cut off"));
}

/// A file with one pair of factors of these shapes, all of them `value`.
fn write_factors(path: &Path, down: &[usize], up: &[usize], value: f32) {
    let bytes = |shape: &[usize]| value.to_le_bytes().repeat(shape.iter().product());
    let (a, b) = (bytes(down), bytes(up));
    let view = |shape: &[usize], bytes: &'static [u8]| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap()
    };
    let tensors = [
        ("unet.conv_in.lora_A.weight", view(down, a.leak())),
        ("unet.conv_in.lora_B.weight", view(up, b.leak())),
    ];
    fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

#[test]
fn factors_that_make_no_sense_are_refused() {
    let workspace = Workspace::new();
    for (down, up, value, expected) in [
        (&[0, 4], &[4, 0], 1.0, "has factors of rank 0 for `conv_in`"),
        (&[2, 4], &[4, 3], 1.0, "whose ranks do not agree"),
        (
            &[2, 4],
            &[4, 2],
            f32::NAN,
            "holds NaN in `unet.conv_in.lora_A.weight`",
        ),
    ] {
        write_factors(&workspace.path("bad.safetensors"), down, up, value);
        let text = workspace.refused(&["inspect", "bad.safetensors"]);
        assert!(text.contains(expected), "{text}");
    }
    write_factors(&workspace.path("large.safetensors"), &[2, 4], &[4, 2], 1e6);
    let text = workspace.refused(&[
        "convert",
        "large.safetensors",
        "h.safetensors",
        "--to",
        "kohya",
        "--dtype",
        "f16",
    ]);
    assert!(
        text.contains("unet.conv_in: holds 1000000, which is too large for F16"),
        "{text}"
    );
}

/// Exports of the real networks, the sizes of their inputs, and how many layers are adapted by default.
const EXPORTS: [(&str, &str, usize); 4] = [
    ("sd15-legacy17", "sd15", 128),
    ("sd15-dynamo20", "sd15", 128),
    ("sdxl-legacy17", "sdxl", 560),
    ("sdxl-dynamo20", "sdxl", 560),
];

/// A pipeline folder whose UNet is an export of a real network, without its weights.
fn real_pipeline(export: &str, kind: &str, folder: &Path) {
    let structure = Structure::unpack(export);
    let unet = folder.join("unet");
    fs::create_dir_all(folder.join("text_encoder")).unwrap();
    fs::create_dir_all(&unet).unwrap();
    fs::copy(structure.model(), unet.join("model.onnx")).unwrap();
    // As long as the largest weight, without contents.
    let weights = fs::File::create(unet.join("weights")).unwrap();
    weights.set_len(1 << 28).unwrap();
    let mut config = serde_json::json!({"sample_size": 32, "in_channels": 4, "cross_attention_dim": 768});
    if kind == "sdxl" {
        config["cross_attention_dim"] = 2048.into();
        config["projection_class_embeddings_input_dim"] = 2816.into();
        config["addition_time_embed_dim"] = 256.into();
    }
    fs::write(unet.join("config.json"), config.to_string()).unwrap();
    let text = serde_json::json!({"max_position_embeddings": 77});
    fs::write(folder.join("text_encoder/config.json"), text.to_string()).unwrap();
    let index = serde_json::json!({
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    });
    fs::write(folder.join("model_index.json"), index.to_string()).unwrap();
}

#[test]
fn every_export_of_the_real_networks_can_take_adapters() {
    let workspace = Workspace::new();
    for (export, kind, layers) in EXPORTS {
        real_pipeline(export, kind, &workspace.path(export));
        let base = format!("{export}-base");
        let exported = workspace.json(&["export-base", export, &base]);
        assert_eq!(exported["components"][0]["layers"], layers, "{export}");
        let model = |name: &str| Model::read(workspace.path(name).join("unet/model.onnx")).unwrap();
        // What has a default is no input that must be given.
        assert_eq!(model(&base).inputs().unwrap(), model(export).inputs().unwrap());
        assert!(workspace.path(&base).join("unet/weights").is_file());
    }
}

#[test]
fn an_adapter_of_another_family_is_told_from_the_real_network() {
    let workspace = Workspace::new();
    real_pipeline("sdxl-dynamo20", "sdxl", &workspace.path("sdxl"));
    let block = "down_blocks.1.attentions.0.transformer_blocks.0";
    let pair = |module: &str, inputs: usize, outputs: usize| {
        let zeros = |shape: [usize; 2]| (shape.to_vec(), vec![0_u8; 4 * shape[0] * shape[1]]);
        let key = |side: &str| format!("unet.{module}.lora_{side}.weight");
        [
            (key("A"), zeros([700, inputs])),
            (key("B"), zeros([outputs, 700])),
        ]
    };
    // Of the right size but for its rank; of SD1.5's size; of a block that SDXL has no attention in.
    let tensors: Vec<_> = [
        pair(&format!("{block}.attn1.to_q"), 640, 640),
        pair(&format!("{block}.attn2.to_k"), 768, 640),
        pair("down_blocks.0.attentions.0.proj_in", 320, 320),
    ]
    .concat();
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.clone(), view.unwrap())
    });
    fs::write(
        workspace.path("a.safetensors"),
        safetensors::serialize(views, None).unwrap(),
    )
    .unwrap();
    let output = workspace.run(&["inspect", "a.safetensors", "--model", "sdxl", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["base"], "Stable Diffusion 1.x");
    let differences = report["differences"].as_array().unwrap();
    let listed = differences
        .iter()
        .map(|d| (d["kind"].as_str().unwrap(), d["model"].as_str().unwrap()));
    let expected = [
        ("name", ""),
        ("shape", "[700, 2048] [640, 700]"),
        ("rank", "at most 640"),
    ];
    assert_eq!(listed.collect::<Vec<_>>(), expected);
}
