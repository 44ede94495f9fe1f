//! A LoRA as Kohya's scripts (sd-scripts) write it, which ComfyUI, AUTOMATIC1111's web UI and their kin read.
//!
//! `PREFIX_MODULE.lora_down.weight`, `.lora_up.weight` and the number `.alpha`. The prefix is `lora_unet`, `lora_te`, and
//! for SDXL's two text encoders `lora_te1` and `lora_te2`. Modules have underscores for dots; those of SDXL's UNet are
//! named as Stability's own code numbers its blocks ([`names`]). The metadata says what the file is by the `ss_` keys of
//! the scripts and by Stability's ModelSpec.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use super::base::BaseModel;
use super::content::listed;
use super::diffusers::is_of_one_file;
use super::factors::{Lora, ModuleFactors};
use super::file::{self, NamedTensor, Precision};
use super::lora::most_common;
use super::names;
use super::scales::CONFIG;
use crate::model_folder::Component;
use crate::{Error, Result};

/// Names of the UNet's modules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Naming {
    /// As the scripts do: Stability's for SDXL, diffusers' for all others.
    #[default]
    Auto,
    /// diffusers' names.
    Diffusers,
    /// The names in Stability's code, of SDXL.
    Ldm,
}

/// Writes `lora` to `path`. The same adapter gives the same bytes.
///
/// # Errors
/// A module has no name in this form; the file cannot be written.
pub fn write(path: &Path, lora: &Lora, naming: Naming) -> Result<()> {
    let base = BaseModel::of(&lora.modules);
    let is_xl = base == Some(BaseModel::Sdxl);
    let ldm = match naming {
        Naming::Auto => is_xl,
        Naming::Diffusers => false,
        Naming::Ldm => true,
    };
    let keys: Vec<Option<String>> = lora.modules.iter().map(|m| key(m, is_xl, ldm)).collect();
    let nameless: Vec<String> = (lora.modules.iter().zip(&keys))
        .filter(|(_, key)| key.is_none())
        .map(|(m, _)| m.place())
        .collect();
    if !nameless.is_empty() {
        let nameless: Vec<&str> = nameless.iter().map(String::as_str).collect();
        return Err(Error::bad(
            path.display().to_string(),
            format!("Kohya's form has no name for {}", listed(&nameless)),
            match ldm {
                true => "Try `--naming diffusers`, or write it in diffusers' form.",
                false => "Write it in diffusers' form.",
            },
        ));
    }
    if let Some(module) = lora.modules.iter().find(|m| m.alpha == 0.0) {
        let what = format!(
            "has alpha 0 for `{}`, which Kohya's form takes for the rank",
            module.place()
        );
        let remedy = "Leave that module out, or write it in diffusers' form.";
        return Err(Error::bad(path.display().to_string(), what, remedy));
    }
    let tensors = (lora.modules.iter().zip(keys.into_iter().flatten())).flat_map(|(m, key)| {
        let alpha = m.alpha as f32;
        let number = NamedTensor {
            name: format!("{key}.alpha"),
            shape: Vec::new(),
            precision: Precision::Fp32,
            values: Box::new(move || Ok(Cow::Owned(vec![alpha]))),
        };
        let down = factor(format!("{key}.lora_down.weight"), &m.down);
        let up = factor(format!("{key}.lora_up.weight"), &m.up);
        [down, up, number]
    });
    let metadata = metadata(path, lora, base);
    let metadata: Vec<(&str, String)> = metadata.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    file::write(path, &metadata, tensors.collect())
}

fn factor(name: String, tensor: &file::ReadTensor) -> NamedTensor<'_> {
    NamedTensor {
        name,
        shape: tensor.shape.clone(),
        precision: tensor.precision,
        values: Box::new(|| Ok(Cow::Borrowed(tensor.values.as_slice()))),
    }
}

/// `PREFIX_MODULE`, if the form has one.
fn key(module: &ModuleFactors, is_xl: bool, ldm: bool) -> Option<String> {
    let flat = module.module.flat();
    match module.component {
        Component::Unet if ldm => Some(format!("lora_unet_{}", names::sdxl_ldm(module.module.as_str())?)),
        Component::Unet => Some(format!("lora_unet_{flat}")),
        Component::TextEncoder if is_xl => Some(format!("lora_te1_{flat}")),
        Component::TextEncoder => Some(format!("lora_te_{flat}")),
        Component::TextEncoder2 => Some(format!("lora_te2_{flat}")),
        _ => None,
    }
}

/// What the scripts note about a file, as far as it is known; what the file said already stays, its ranks aside.
fn metadata(path: &Path, lora: &Lora, base: Option<BaseModel>) -> BTreeMap<String, String> {
    let own = |key: &str| key == CONFIG || is_of_one_file(key);
    let mut texts: BTreeMap<String, String> = lora.metadata.clone();
    texts.retain(|key, _| !own(key));
    texts.insert("format".into(), "pt".into());
    texts.insert("ss_network_module".into(), "networks.lora".into());
    let common = |values: Vec<f64>| {
        let first = most_common(values.iter().map(|v| v.to_bits())).map(f64::from_bits);
        // The scripts' own word for files that were resized to different ranks.
        let differ = values.iter().any(|v| Some(*v) != first);
        if differ {
            "Dynamic".to_owned()
        } else {
            first.unwrap_or(1.0).to_string()
        }
    };
    let ranks = lora.modules.iter().map(|m| m.rank() as f64);
    texts.insert("ss_network_dim".into(), common(ranks.collect()));
    texts.insert(
        "ss_network_alpha".into(),
        common(lora.modules.iter().map(|m| m.alpha).collect()),
    );
    let (version, is_v2, architecture, implementation) = match base {
        Some(BaseModel::Sd1) => ("sd_v1", "False", Some("stable-diffusion-v1/lora"), "diffusers"),
        // Which of its two sizes it is, and so its architecture, cannot be told.
        Some(BaseModel::Sd2) => ("sd_v2", "True", None, "diffusers"),
        Some(BaseModel::Sdxl) => (
            "sdxl_base_v1-0",
            "False",
            Some("stable-diffusion-xl-v1-base/lora"),
            "https://github.com/Stability-AI/generative-models",
        ),
        None => return texts,
    };
    let mut suggest = |key: &str, text: &str| {
        texts.entry(key.into()).or_insert_with(|| text.into());
    };
    suggest("ss_base_model_version", version);
    suggest("ss_v2", is_v2);
    if let Some(architecture) = architecture {
        let title = path.file_stem().unwrap_or_default().to_string_lossy();
        suggest("modelspec.sai_model_spec", "1.0.0");
        suggest("modelspec.architecture", architecture);
        suggest("modelspec.implementation", implementation);
        suggest("modelspec.title", &title);
    }
    texts
}
