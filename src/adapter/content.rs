//! Any adapter file as the factors of modules, whoever wrote it.
//!
//! | written by | keys | scale |
//! |---|---|---|
//! | this program, diffusers, PEFT | `unet.MODULE.lora_A.weight`, `text_encoder.…`, `text_encoder_2.…` | metadata, else alpha = rank |
//! | older diffusers | `unet.MODULE.lora.down.weight`, `….attn1.processor.to_q_lora.down.weight` | alpha = rank |
//! | PEFT alone | `base_model.model.MODULE.lora_A.weight` | alpha = rank |
//! | Kohya's scripts | `lora_unet_MODULE_WITH_UNDERSCORES.lora_down.weight`, `lora_te_…`, `lora_te1_…`, `lora_te2_…` | `.alpha` beside each |
//!
//! A file without any factor holds whole weights of the denoiser under PyTorch's names, as full fine-tuning writes them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::file::{self, ReadTensor};
use super::lora::FileScales;
use crate::model_folder::Component;
use crate::{Error, Result};

/// What a file changes.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Low-rank factors by module.
    Lora(Vec<ModuleFactors>),
    /// Whole weights of the denoiser, by PyTorch's names.
    Full(Vec<(String, ReadTensor)>),
}

/// The factors of one module.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleFactors {
    /// The network it is of.
    pub component: Component,
    /// The module.
    pub module: ModuleName,
    /// Down factor A, (r, in) or (r, in, kh, kw).
    pub down: ReadTensor,
    /// Up factor B, (out, r) or (out, r, 1, 1).
    pub up: ReadTensor,
    /// What the file says their product counts: alpha / r.
    pub scale: f64,
}

/// How a file names a module.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ModuleName {
    /// The module's path, with dots.
    Path(String),
    /// The path with underscores for dots, from which the dots cannot be told.
    Flat(String),
}

impl ModuleName {
    /// Whether it names the module at `path`.
    pub fn names(&self, path: &str) -> bool {
        match self {
            Self::Path(name) => name == path,
            Self::Flat(name) => *name == path.replace('.', "_"),
        }
    }

    /// As the file spells it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Path(name) | Self::Flat(name) => name,
        }
    }
}

/// What a tensor of a LoRA file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Down,
    Up,
    Alpha,
}

const ROLES: [(&str, Role); 9] = [
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// Reads `path`.
///
/// # Errors
/// It is no safetensors file, has factors without their counterpart, or keys that are neither factors nor weights.
pub fn read(path: &Path) -> Result<Content> {
    let read = file::read(path)?;
    let is_factor = |key: &str| role_of(key).is_some_and(|(_, role)| role != Role::Alpha);
    match read.tensors.iter().any(|(key, _)| is_factor(key)) {
        true => Ok(Content::Lora(factors(path, read.tensors, &read.metadata)?)),
        false => weights(path, read.tensors),
    }
}

fn weights(path: &Path, tensors: Vec<(String, ReadTensor)>) -> Result<Content> {
    let is_weight = |key: &str| key.ends_with(".weight") || key.ends_with(".bias");
    let place = || path.display().to_string();
    if tensors.is_empty() {
        return Err(Error::bad(place(), "holds no tensor", "Give an adapter."));
    }
    let odd: Vec<&str> = tensors
        .iter()
        .map(|(key, _)| key.as_str())
        .filter(|key| !is_weight(key))
        .collect();
    match odd.is_empty() {
        true => Ok(Content::Full(tensors)),
        false => Err(Error::bad(
            place(),
            format!(
                "holds neither factors of a LoRA nor whole weights, but {}",
                listed(&odd)
            ),
            "Give a LoRA of diffusers, PEFT or Kohya's scripts, or what full fine-tuning wrote; other kinds of \
             adapters (LoHa, LoKr, textual inversion) are not read.",
        )),
    }
}

/// Up to six names, and how many more there are.
pub fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 6;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    match names.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

#[derive(Default)]
struct Gathered {
    down: Option<ReadTensor>,
    up: Option<ReadTensor>,
    alpha: Option<f64>,
}

fn factors(
    path: &Path,
    tensors: Vec<(String, ReadTensor)>,
    metadata: &Map<String, Value>,
) -> Result<Vec<ModuleFactors>> {
    let mut unknown: Vec<&str> = Vec::new();
    let mut gathered: BTreeMap<(&'static str, ModuleName), Gathered> = BTreeMap::new();
    for (key, tensor) in &tensors {
        let Some((component, module, role)) = parse(key) else {
            unknown.push(key);
            continue;
        };
        let entry = gathered.entry((component.folder(), module)).or_default();
        match role {
            Role::Down => entry.down = Some(tensor.clone()),
            Role::Up => entry.up = Some(tensor.clone()),
            Role::Alpha => entry.alpha = tensor.values.first().map(|v| f64::from(*v)),
        }
        if let Some(value) = tensor.values.iter().find(|value| !value.is_finite()) {
            let what = format!("holds {value} in `{key}`");
            let remedy = "Save the adapter anew: its training may have diverged.";
            return Err(Error::bad(path.display().to_string(), what, remedy));
        }
    }
    if !unknown.is_empty() {
        return Err(Error::bad(
            path.display().to_string(),
            format!("holds {}, which are no factors of a LoRA", listed(&unknown)),
            "Give a plain LoRA: DoRA, LoHa and LoKr are not read.",
        ));
    }
    let complete = |((folder, module), found): ((&'static str, ModuleName), Gathered)| {
        let component = Component::ALL
            .into_iter()
            .find(|c| c.folder() == folder)
            .expect("folders in the table come from components");
        let (Some(down), Some(up)) = (found.down, found.up) else {
            let what = format!("has one factor of `{}` without the other", module.as_str());
            let remedy = "Save the adapter anew: the file is incomplete.";
            return Err(Error::bad(path.display().to_string(), what, remedy));
        };
        let rank = down.shape.first().copied().unwrap_or(0).max(1);
        let scale = match found.alpha.filter(|alpha| *alpha != 0.0) {
            Some(alpha) => alpha / rank as f64,
            None => FileScales::read(path, folder, metadata)?.of(module.as_str(), rank),
        };
        Ok(ModuleFactors {
            component,
            module,
            down,
            up,
            scale,
        })
    };
    gathered.into_iter().map(complete).collect()
}

fn role_of(key: &str) -> Option<(&str, Role)> {
    ROLES
        .into_iter()
        .find_map(|(suffix, role)| Some((key.strip_suffix(suffix)?, role)))
}

/// Component, module and role of a key.
fn parse(key: &str) -> Option<(Component, ModuleName, Role)> {
    const FLAT: [(&str, Component); 4] = [
        ("lora_unet_", Component::Unet),
        ("lora_te_", Component::TextEncoder),
        ("lora_te1_", Component::TextEncoder),
        ("lora_te2_", Component::TextEncoder2),
    ];
    const DOTTED: [(&str, Component); 4] = [
        ("unet.", Component::Unet),
        ("transformer.", Component::Transformer),
        ("text_encoder.", Component::TextEncoder),
        ("text_encoder_2.", Component::TextEncoder2),
    ];
    let (name, role) = role_of(key)?;
    if let Some((flat, component)) = FLAT
        .into_iter()
        .find_map(|(prefix, c)| Some((name.strip_prefix(prefix)?, c)))
    {
        return Some((component, ModuleName::Flat(from_sgm(flat)), role));
    }
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let (path, component) = DOTTED
        .into_iter()
        .find_map(|(prefix, c)| Some((name.strip_prefix(prefix)?, c)))
        .unwrap_or((name, Component::Unet));
    Some((component, ModuleName::Path(from_processor(path)), role))
}

/// `attn1.processor.to_q_lora` of older diffusers, less its `_lora`, is the module `attn1.to_q`.
fn from_processor(path: &str) -> String {
    match path.split_once(".processor.") {
        Some((attention, "to_out")) => format!("{attention}.to_out.0"),
        Some((attention, projection)) => format!("{attention}.{projection}"),
        None => path.to_owned(),
    }
}

/// diffusers' name of an attention block that a file for SDXL names as Stability's code does: `input_blocks_4_1` is
/// `down_blocks_1_attentions_0`. Other names stay.
fn from_sgm(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("middle_block_1_") {
        return format!("mid_block_attentions_0_{rest}");
    }
    let block = |kind: &str| {
        let rest = name.strip_prefix(kind)?;
        let (number, rest) = rest.split_once('_')?;
        Some((number.parse::<usize>().ok()?, rest.strip_prefix("1_")?))
    };
    if let Some((number, rest)) = block("input_blocks_").filter(|(number, _)| *number > 0) {
        let index = number - 1;
        return format!("down_blocks_{}_attentions_{}_{rest}", index / 3, index % 3);
    }
    if let Some((number, rest)) = block("output_blocks_") {
        return format!("up_blocks_{}_attentions_{}_{rest}", number / 3, number % 3);
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(key: &str) -> (Component, String, Role) {
        let (component, module, role) = parse(key).unwrap_or_else(|| panic!("{key}"));
        (component, module.as_str().to_owned(), role)
    }

    #[test]
    fn every_spelling_leads_to_the_same_module() {
        let attention = "down_blocks.1.attentions.0.transformer_blocks.0.attn1";
        for key in [
            format!("unet.{attention}.to_out.0.lora_A.weight"),
            format!("unet.{attention}.to_out.0.lora.down.weight"),
            format!("unet.{attention}.processor.to_out_lora.down.weight"),
            format!("base_model.model.{attention}.to_out.0.lora_A.weight"),
            format!("{attention}.to_out.0.lora_A.weight"),
        ] {
            let expected = (Component::Unet, format!("{attention}.to_out.0"), Role::Down);
            assert_eq!(parsed(&key), expected, "{key}");
        }
        let path = format!("{attention}.to_out.0");
        for flat in ["down_blocks_1_attentions_0", "input_blocks_4_1"] {
            let key = format!("lora_unet_{flat}_transformer_blocks_0_attn1_to_out_0.lora_up.weight");
            let (component, module, role) = parse(&key).unwrap();
            assert!(module.names(&path) && component == Component::Unet && role == Role::Up);
        }
    }

    #[test]
    fn blocks_of_stabilitys_code_are_those_of_diffusers() {
        for (theirs, ours) in [
            ("input_blocks_5_1_proj_in", "down_blocks_1_attentions_1_proj_in"),
            ("input_blocks_8_1_proj_in", "down_blocks_2_attentions_1_proj_in"),
            ("middle_block_1_proj_in", "mid_block_attentions_0_proj_in"),
            ("output_blocks_5_1_proj_in", "up_blocks_1_attentions_2_proj_in"),
            ("down_blocks_0_attentions_0_x", "down_blocks_0_attentions_0_x"),
        ] {
            assert_eq!(from_sgm(theirs), ours);
        }
    }

    #[test]
    fn text_encoders_are_told_apart() {
        for (key, component) in [
            ("lora_te_a.alpha", Component::TextEncoder),
            ("lora_te1_a.alpha", Component::TextEncoder),
            ("lora_te2_a.alpha", Component::TextEncoder2),
            ("text_encoder.a.lora_B.weight", Component::TextEncoder),
            ("text_encoder_2.a.lora_B.weight", Component::TextEncoder2),
        ] {
            assert_eq!(parsed(key).0, component, "{key}");
        }
        assert!(parse("unet.a.lora_magnitude_vector").is_none());
    }
}
