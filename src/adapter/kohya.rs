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
use super::kohya_hashes::{BLANK, Hashes};
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
    let base = BaseModel::of_lora(lora);
    let is_xl = base == Some(BaseModel::Sdxl);
    let ldm = match naming {
        Naming::Auto => is_xl,
        Naming::Diffusers => false,
        Naming::Ldm => true,
    };
    if let (Naming::Ldm, Some(other @ (BaseModel::Sd1 | BaseModel::Sd2))) = (naming, base) {
        return Err(Error::bad(
            path.display().to_string(),
            format!(
                "would have the names of SDXL's blocks for an adapter of {other}, whose blocks are others"
            ),
            "Give `--naming diffusers`: programs know this family by those names.",
        ));
    }
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
    with_hashes(path, metadata, tensors.collect())
}

/// Writes a file whose metadata has the hashes of what is in it.
fn with_hashes(
    path: &Path,
    mut metadata: Vec<(&str, String)>,
    mut tensors: Vec<NamedTensor<'_>>,
) -> Result<()> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let blank = BLANK.map(|(key, digits)| (key, "0".repeat(digits)));
    let texts = metadata.len();
    metadata.extend(blank);
    let mut hashes = Hashes::default();
    file::stream(&metadata, &tensors, &mut hashes).map_err(Error::io(path, "write"))?;
    metadata.truncate(texts);
    metadata.extend(hashes.finish());
    file::write(path, &metadata, tensors)
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
    let Some(base) = base else { return texts };
    let title = path.file_stem().unwrap_or_default().to_string_lossy();
    for (key, text) in described(base, &texts) {
        texts.entry(key.into()).or_insert_with(|| text.into());
    }
    texts
        .entry("modelspec.title".into())
        .or_insert_with(|| title.into());
    texts.entry("modelspec.date".into()).or_insert_with(today);
    texts
}

/// What is said of an adapter for a family of models, `texts` being known: Kohya's keys and ModelSpec.
fn described(base: BaseModel, texts: &BTreeMap<String, String>) -> Vec<(&'static str, &'static str)> {
    let is_true = |key: &str, value: &str| texts.get(key).map(|text| text == value);
    // Stable Diffusion 2.x has models of both kinds, the others predict noise.
    let predicts_v = match is_true("modelspec.prediction_type", "v") {
        Some(known) => Some(known),
        None if base == BaseModel::Sd2 => is_true("ss_v_parameterization", "True"),
        None => Some(false),
    };
    let (is_v2, implementation) = match base {
        BaseModel::Sd1 => ("False", "diffusers"),
        BaseModel::Sd2 => ("True", "diffusers"),
        BaseModel::Sdxl => ("False", "https://github.com/Stability-AI/generative-models"),
    };
    let mut found = vec![
        ("ss_base_model_version", base.version()),
        ("ss_v2", is_v2),
        ("ss_network_args", "{}"),
        ("modelspec.sai_model_spec", "1.0.0"),
        ("modelspec.implementation", implementation),
    ];
    let (architecture, resolution) = match (base, predicts_v) {
        (BaseModel::Sd1, _) => ("stable-diffusion-v1/lora", "512x512"),
        (BaseModel::Sdxl, _) => ("stable-diffusion-xl-v1-base/lora", "1024x1024"),
        (BaseModel::Sd2, Some(true)) => ("stable-diffusion-v2-768-v/lora", "768x768"),
        (BaseModel::Sd2, Some(false)) => ("stable-diffusion-v2-512/lora", "512x512"),
        // Which of the two it is cannot be told from its layers.
        (BaseModel::Sd2, None) => return found,
    };
    found.extend([
        ("modelspec.architecture", architecture),
        ("modelspec.resolution", resolution),
        (
            "modelspec.prediction_type",
            if predicts_v == Some(true) { "v" } else { "epsilon" },
        ),
    ]);
    found
}

/// The present time in UTC, or that of `SOURCE_DATE_EPOCH`, with which files come out the same every time.
fn today() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let fixed = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|text| text.parse().ok());
    date(fixed.unwrap_or_else(|| now.unwrap_or_default().as_secs()))
}

/// Seconds since 1970 as ISO 8601 has them.
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of year 0, in periods of 400 years, all of which are alike (H. Hinnant, "chrono-compatible low-level
    // date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(super::date(seconds), expected);
        }
    }
}
