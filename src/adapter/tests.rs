//! Adapters as diffusers and PEFT write them (`scripts/fixtures/adapters.py`), read and written back.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use serde_json::Value;

use super::*;
use crate::params::{Layout, ParamSet};

const SIX_OVER_TWO: LoraScale = LoraScale { rank: 2, alpha: 6.0 };

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/adapters")
        .join(name)
}

/// Names and shapes of the fixture's factors, without the prefix.
fn layout() -> Arc<Layout> {
    let bytes = std::fs::read(fixture("peft.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let named = file.iter().map(|(name, view)| {
        (
            name.strip_prefix("unet.").unwrap().to_owned(),
            view.shape().to_vec(),
        )
    });
    Layout::new(named).unwrap()
}

fn load(name: &str, scale: LoraScale) -> ParamSet {
    load_lora(&fixture(name), "unet", &layout(), scale).unwrap()
}

/// Writes what was trained.
fn save(path: &Path, adapter: &ParamSet, precision: Precision) {
    let lora = trained("unet", adapter, SIX_OVER_TWO, Default::default());
    diffusers::write(path, &lora.in_precision(precision).unwrap()).unwrap();
}

fn refusal(path: &Path, layout: &Arc<Layout>) -> String {
    let error = load_lora(path, "unet", layout, SIX_OVER_TWO).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

fn metadata(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    assert_eq!(metadata["format"], "pt");
    serde_json::from_str(&metadata["lora_adapter_metadata"]).unwrap()
}

#[test]
fn what_we_write_holds_what_diffusers_wrote() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("ours.safetensors");
    save(&path, &load("peft.safetensors", SIX_OVER_TWO), Precision::Fp32);
    let (ours, theirs) = (
        std::fs::read(&path).unwrap(),
        std::fs::read(fixture("peft.safetensors")).unwrap(),
    );
    let (ours, theirs) = (
        SafeTensors::deserialize(&ours).unwrap(),
        SafeTensors::deserialize(&theirs).unwrap(),
    );
    assert_eq!((ours.len(), theirs.len()), (74, 74));
    for (name, expected) in theirs.iter() {
        let written = ours.tensor(name).unwrap();
        assert_eq!(
            (written.dtype(), written.shape()),
            (expected.dtype(), expected.shape()),
            "{name}"
        );
        assert_eq!(written.data(), expected.data(), "{name}");
    }
    // What loaders read of the configuration is the same, except that modules are named in full.
    let (ours, theirs) = (metadata(&path), metadata(&fixture("peft.safetensors")));
    for key in [
        "r",
        "lora_alpha",
        "bias",
        "use_dora",
        "use_rslora",
        "lora_bias",
        "rank_pattern",
        "alpha_pattern",
    ] {
        let key = format!("unet.{key}");
        let equal = match (ours[&key].as_f64(), theirs[&key].as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => ours[&key] == theirs[&key],
        };
        assert!(equal, "{key}");
    }
    assert_eq!(ours["unet.target_modules"].as_array().unwrap().len(), 37);
}

#[test]
fn equal_adapters_give_equal_bytes() {
    let temp = tempfile::tempdir().unwrap();
    let adapter = load("peft.safetensors", SIX_OVER_TWO);
    let bytes = |name: &str| {
        let path = temp.path().join(name);
        save(&path, &adapter, Precision::Fp32);
        std::fs::read(path).unwrap()
    };
    assert_eq!(bytes("a"), bytes("b"));
}

#[test]
fn scales_of_files_are_kept_in_b() {
    let ours = load("peft.safetensors", SIX_OVER_TWO);
    // The same file as an adapter of scale 1: B counts three times.
    let unscaled = load("peft.safetensors", LoraScale { rank: 2, alpha: 2.0 });
    let pattern = load("pattern.safetensors", SIX_OVER_TWO);
    for (index, name) in ours.layout().names().iter().enumerate() {
        let is_b = name.ends_with("lora_B.weight");
        let (factor, own_alpha) = if is_b {
            (3.0, if name.contains("proj_in") { 0.5 } else { 1.0 })
        } else {
            (1.0, 1.0)
        };
        for ((a, b), c) in ours
            .tensor(index)
            .iter()
            .zip(unscaled.tensor(index))
            .zip(pattern.tensor(index))
        {
            assert!((a * factor - b).abs() <= 1e-6 * b.abs(), "{name}: {a} {b}");
            assert!((a * own_alpha - c).abs() <= 1e-6 * a.abs(), "{name}: {a} {c}");
        }
    }
}

#[test]
fn the_old_spelling_in_16_bits_is_read_with_alpha_equal_to_rank() {
    let halves = load("diffusers.safetensors", LoraScale { rank: 2, alpha: 2.0 });
    let exact = load("peft.safetensors", SIX_OVER_TWO);
    assert_ne!(halves, exact);
    for (half, exact) in halves.values().iter().zip(exact.values()) {
        assert!((half - exact).abs() <= exact.abs() / 1024.0, "{half} {exact}");
    }
}

#[test]
fn lower_precisions_round_to_their_nearest_value() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a.safetensors");
    let adapter = load("peft.safetensors", SIX_OVER_TWO);
    for (precision, bits) in [(Precision::Fp16, 11), (Precision::Bf16, 8)] {
        save(&path, &adapter, precision);
        let read = load_lora(&path, "unet", adapter.layout(), SIX_OVER_TWO).unwrap();
        assert_ne!(read, adapter);
        for (rounded, exact) in read.values().iter().zip(adapter.values()) {
            assert!(
                (rounded - exact).abs() <= exact.abs() / f32::from(2u8).powi(bits),
                "{rounded} {exact}"
            );
        }
    }
}

#[test]
fn adapters_that_do_not_fit_name_their_differences() {
    let names: Vec<(String, Vec<usize>)> = (0..74)
        .map(|index| (layout().names()[index].clone(), layout().shape(index).to_vec()))
        .collect();
    let path = fixture("peft.safetensors");
    let fewer = Layout::new(names[2..].to_vec()).unwrap();
    assert!(refusal(&path, &fewer).contains(
        "adapts `conv_in.lora_A.weight`, `conv_in.lora_B.weight` not among the trained layers (2 of 74"
    ));
    let more = Layout::new(
        names
            .iter()
            .cloned()
            .chain([("x.lora_A.weight".into(), vec![2, 2])]),
    )
    .unwrap();
    assert!(refusal(&path, &more).contains("has no `x.lora_A.weight`"));
    let mut wider = names;
    wider[0].1[0] = 3;
    let text = refusal(&path, &Layout::new(wider).unwrap());
    assert!(
        text.contains("`conv_in.lora_A.weight` of shape [2, 4, 3, 3] instead of [3, 4, 3, 3]"),
        "{text}"
    );
}

#[test]
fn files_that_are_no_adapters_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("model.safetensors");
    let weight = NamedTensor {
        name: "conv_in.weight".into(),
        shape: vec![1],
        precision: Precision::Fp32,
        values: Box::new(|| Ok(Cow::Owned(vec![1.0]))),
    };
    save_full(&path, vec![weight], None).unwrap();
    assert!(refusal(&path, &layout()).contains("holds whole weights, not the factors of a LoRA"));
    let whole = std::fs::read(fixture("peft.safetensors")).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(refusal(&path, &layout()).contains("is cut off: it has 16127 bytes of 16128"));
    std::fs::write(&path, &whole[..100]).unwrap();
    assert!(refusal(&path, &layout()).contains("is cut off after 100 bytes, within its header"));
    std::fs::write(&path, "no tensors").unwrap();
    assert!(refusal(&path, &layout()).contains("is not a safetensors file"));
    assert!(refusal(&temp.path().join("none"), &layout()).contains("cannot read"));
}

#[test]
fn a_whole_model_is_written_under_its_names() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("diffusion_pytorch_model.safetensors");
    let tensor = |name: &str, shape: Vec<usize>, values: &'static [f32]| NamedTensor {
        name: name.into(),
        shape,
        precision: Precision::Fp32,
        values: Box::new(move || Ok(Cow::Borrowed(values))),
    };
    let weights = vec![
        tensor("b.bias", vec![2], &[1.0, -2.0]),
        tensor("a.weight", vec![1, 2], &[0.5, f32::MAX]),
    ];
    save_full(&path, weights, None).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let a = file.tensor("a.weight").unwrap();
    assert_eq!(
        (a.shape(), a.data()),
        (&[1, 2][..], bytemuck::cast_slice(&[0.5f32, f32::MAX]))
    );
    assert_eq!(
        file.tensor("b.bias").unwrap().data(),
        bytemuck::cast_slice::<f32, u8>(&[1.0, -2.0])
    );
}

/// Training goes on from whatever is read elsewhere: Kohya's form, folders, PEFT's own files.
#[test]
fn adapters_of_any_form_can_be_started_from() {
    let temp = tempfile::tempdir().unwrap();
    let expected = load("peft.safetensors", SIX_OVER_TWO);
    let (lora, _) = Lora::read(&fixture("peft.safetensors")).unwrap();
    let kohya = temp.path().join("kohya.safetensors");
    kohya::write(&kohya, &lora, kohya::Naming::Auto).unwrap();
    let run = temp.path().join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::copy(
        fixture("peft.safetensors"),
        run.join("pytorch_lora_weights.safetensors"),
    )
    .unwrap();
    let peft = peft_folder(temp.path(), &expected, r#"{"r": 2, "lora_alpha": 6}"#);
    for path in [kohya, run, peft] {
        let read = load_lora(&path, "unet", &layout(), SIX_OVER_TWO).unwrap();
        assert!(read == expected, "{}", path.display());
    }
}

/// A folder as PEFT's `save_pretrained` writes it.
fn peft_folder(parent: &Path, adapter: &ParamSet, config: &str) -> PathBuf {
    let folder = parent.join("peft");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("adapter_config.json"), config).unwrap();
    let tensors = adapter
        .layout()
        .names()
        .iter()
        .enumerate()
        .map(|(i, name)| NamedTensor {
            name: format!("base_model.model.{name}"),
            shape: adapter.layout().shape(i).to_vec(),
            precision: Precision::Fp32,
            values: Box::new(move || Ok(Cow::Borrowed(adapter.tensor(i)))),
        });
    let file = folder.join("adapter_model.safetensors");
    write_tensors(&file, &[("format", "pt".to_owned())], tensors.collect()).unwrap();
    folder
}

#[test]
fn pefts_configuration_says_how_much_factors_count() {
    let temp = tempfile::tempdir().unwrap();
    let adapter = load("peft.safetensors", SIX_OVER_TWO);
    let alphas = |config: &str| {
        let folder = peft_folder(temp.path(), &adapter, config);
        Lora::read(&folder.join("adapter_model.safetensors")).map(|(lora, _)| {
            let alpha_of = |name: &str| {
                let found = lora.modules.iter().find(|m| m.module.as_str().ends_with(name));
                found.unwrap().alpha
            };
            [
                alpha_of("conv_in"),
                alpha_of("attn1.to_q"),
                alpha_of("attn2.to_q"),
            ]
        })
    };
    let read = |config: &str| alphas(config).unwrap();
    assert_eq!(read(r#"{"r": 2, "lora_alpha": 16}"#), [16.0; 3]);
    assert_eq!(
        read(r#"{"peft_type": "LORA", "bias": "none", "use_dora": false}"#),
        [2.0; 3]
    );
    let stable = read(r#"{"r": 2, "lora_alpha": 16, "use_rslora": true}"#);
    assert_eq!(stable, [16.0 * 2.0_f64.sqrt(); 3]);
    let own = r#"{"r": 2, "lora_alpha": 16, "alpha_pattern": {"attn1.to_q": 3, "^conv_in$": 5, "to_q": 4}}"#;
    assert_eq!(read(own), [5.0, 3.0, 4.0]);
    for (config, what) in [
        (r#"{"use_dora": true}"#, "is a DoRA adapter"),
        (r#"{"lora_bias": true}"#, "(lora_bias)"),
        (r#"{"bias": "all"}"#, "(bias: all)"),
        (r#"{"peft_type": "LOHA"}"#, "of the kind LOHA"),
        (r#"{"modules_to_save": ["conv_in"]}"#, "uses modules_to_save"),
        (
            r#"{"alpha_pattern": {".*attn1.*": 3}}"#,
            "a value for `.*attn1.*`",
        ),
        (r#"{"r": 4, "lora_alpha": 16}"#, "the rank 4, but"),
        ("[]", "is no JSON object"),
    ] {
        let error = alphas(config).unwrap_err().to_string();
        assert!(
            error.contains("adapter_config.json") && error.contains(what),
            "{error}"
        );
    }
    let mixed = r#"{"r": 4, "lora_alpha": 16, "rank_pattern": {"to_q": 2}}"#;
    assert!(
        alphas(mixed)
            .unwrap_err()
            .to_string()
            .contains("`conv_in` the rank 4")
    );
}

#[test]
fn a_module_in_two_spellings_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("twice.safetensors");
    let keys = [
        "unet.mid_block.attentions.0.proj_in.lora_A.weight",
        "unet.mid_block.attentions.0.proj_in.lora_B.weight",
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
    ];
    let tensors = keys.map(|name| NamedTensor {
        name: name.into(),
        shape: vec![1, 1],
        precision: Precision::Fp32,
        values: Box::new(|| Ok(Cow::Owned(vec![1.0]))),
    });
    write_tensors(&path, &[], tensors.into()).unwrap();
    let error = Lora::read(&path).unwrap_err().to_string();
    assert!(error.contains("under another spelling of its name"), "{error}");
}
