//! Any adapter file as the factors of modules, whoever wrote it.
//!
//! | written by | keys | scale |
//! |---|---|---|
//! | this program, diffusers, PEFT | `unet.MODULE.lora_A.weight`, `text_encoder.…`, `text_encoder_2.…` | metadata, else alpha = rank |
//! | older diffusers | `unet.MODULE.lora.down.weight`, `….attn1.processor.to_q_lora.down.weight` | alpha = rank |
//! | PEFT alone | `base_model.model.MODULE.lora_A.weight` | `adapter_config.json` beside the file, else alpha = rank |
//! | Kohya's scripts | `lora_unet_MODULE_WITH_UNDERSCORES.lora_down.weight`, `lora_te_…`, `lora_te1_…`, `lora_te2_…` | `.alpha` beside each |
//! | this program, for ONNX Runtime | `unet.MODULE.lora_A` ([`super::onnx_adapter`]) | in B |
//!
//! A file without any factor holds whole weights of the denoiser under PyTorch's names, as full fine-tuning writes them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::factors::ModuleFactors;
use super::file::{ReadTensor, TensorFile};
use super::keys::{self, Key, ModuleName, Role, Spelling};
use super::onnx_adapter;
use super::scales::FileScales;
use super::whole::check_safetensors;
use crate::model_folder::Component;
use crate::{Error, Result};

/// A file that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFile {
    /// Who writes such files.
    pub format: Format,
    /// What it changes.
    pub content: Content,
    /// Texts beside the tensors, by key.
    pub metadata: BTreeMap<String, String>,
}

/// Form of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A LoRA as safetensors, its keys in this spelling.
    Lora(Spelling),
    /// Whole weights as safetensors.
    Full,
    /// ONNX Runtime's own format.
    OnnxAdapter,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lora(Spelling::Diffusers) => "LoRA of diffusers and PEFT",
            Self::Lora(Spelling::OldDiffusers) => "LoRA of older diffusers",
            Self::Lora(Spelling::Peft) => "LoRA of PEFT",
            Self::Lora(Spelling::Kohya) => "LoRA of Kohya's scripts",
            Self::Lora(Spelling::KohyaLdm) => "LoRA of Kohya's scripts, blocks named as in Stability's code",
            Self::Full => "whole weights of a denoiser",
            Self::OnnxAdapter => "LoRA for ONNX Runtime",
        })
    }
}

/// What a file changes.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Low-rank factors by module.
    Lora(Vec<ModuleFactors>),
    /// Whole weights of the denoiser, by PyTorch's names; read one by one when they are used.
    Full(TensorFile),
}

/// Files that a folder may hold in the place of an adapter: those of a run, and PEFT's.
const IN_FOLDERS: [&str; 4] = [
    "pytorch_lora_weights.safetensors",
    "kohya_lora_weights.safetensors",
    "diffusion_pytorch_model.safetensors",
    "adapter_model.safetensors",
];

/// The adapter's file where `path` may be the folder of a run or of PEFT.
///
/// # Errors
/// It is a folder without such a file.
pub fn file_of(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let found = IN_FOLDERS.map(|name| path.join(name));
    found.into_iter().find(|file| file.is_file()).ok_or_else(|| {
        Error::bad(
            path.display().to_string(),
            format!("holds none of {}", IN_FOLDERS.join(", ")),
            "Name the adapter's file, or the folder of a finished run.",
        )
    })
}

/// Reads `path`.
///
/// # Errors
/// It is no file of any of these forms, has factors without their counterpart or of different ranks, numbers that are
/// not finite, or keys that are neither factors nor weights.
pub fn read(path: &Path) -> Result<AdapterFile> {
    if onnx_adapter::is_one(path)? {
        return Ok(AdapterFile {
            format: Format::OnnxAdapter,
            content: Content::Lora(onnx_adapter::read(path)?),
            metadata: BTreeMap::new(),
        });
    }
    let file = TensorFile::open(path)?;
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    let metadata = file.metadata.iter().filter_map(text).collect();
    let (format, content) = match file.entries().iter().any(|entry| keys::is_factor(&entry.name)) {
        true => {
            let (spelling, modules) = factors(&file)?;
            (Format::Lora(spelling), Content::Lora(modules))
        }
        false => (Format::Full, weights(file)?),
    };
    Ok(AdapterFile {
        format,
        content,
        metadata,
    })
}

/// Checks that a file of one of these forms is all there; its tensors are not read.
///
/// # Errors
/// It is cut off, or of no such form.
pub fn check_file(path: &Path) -> Result<()> {
    match onnx_adapter::is_one(path)? {
        // These are read whole whenever they are opened, and small.
        true => Ok(()),
        false => check_safetensors(path),
    }
}

fn weights(file: TensorFile) -> Result<Content> {
    let is_weight = |key: &str| key.ends_with(".weight") || key.ends_with(".bias");
    let place = || file.path().display().to_string();
    let names = || file.entries().iter().map(|entry| entry.name.as_str());
    if file.entries().is_empty() {
        return Err(Error::bad(place(), "holds no tensor", "Give an adapter."));
    }
    let odd: Vec<&str> = names().filter(|key| !is_weight(key)).collect();
    match odd.is_empty() {
        true => Ok(Content::Full(file)),
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

type Entry = (&'static str, ModuleName);

impl Gathered {
    /// Takes a tensor; whether there was one already.
    fn put(&mut self, role: Role, tensor: ReadTensor) -> bool {
        match role {
            Role::Down => self.down.replace(tensor).is_some(),
            Role::Up => self.up.replace(tensor).is_some(),
            Role::Alpha => {
                let alpha = tensor.values.first().map(|v| f64::from(*v));
                std::mem::replace(&mut self.alpha, alpha).is_some()
            }
        }
    }
}

fn factors(file: &TensorFile) -> Result<(Spelling, Vec<ModuleFactors>)> {
    let path = file.path();
    let mut unknown: Vec<&str> = Vec::new();
    let mut gathered: BTreeMap<Entry, Gathered> = BTreeMap::new();
    let mut spellings: Vec<Spelling> = Vec::new();
    for entry in file.entries() {
        let key = entry.name.as_str();
        let tensor = file.read(entry)?;
        if let Some(value) = tensor.values.iter().find(|value| !value.is_finite()) {
            return Err(not_finite(path, key, *value));
        }
        let Some(Key {
            component,
            module,
            role,
            spelling,
        }) = keys::parse(key)
        else {
            unknown.push(key);
            continue;
        };
        spellings.push(spelling);
        let found = gathered.entry((component.folder(), module)).or_default();
        if found.put(role, tensor) {
            return Err(Error::bad(
                path.display().to_string(),
                format!("holds `{key}` and the same tensor under another spelling of its name"),
                "Save the adapter anew: only one of them can be meant.",
            ));
        }
    }
    if !unknown.is_empty() {
        return Err(Error::bad(
            path.display().to_string(),
            format!("holds {}, which are no factors of a LoRA", listed(&unknown)),
            "Give a plain LoRA: DoRA, LoHa and LoKr are not read.",
        ));
    }
    // Text encoders have the same names in both spellings of Kohya's scripts: one block's name tells.
    let spelling = match spellings.contains(&Spelling::KohyaLdm) {
        true => Spelling::KohyaLdm,
        false => spellings[0],
    };
    let scales = scales(file, spelling, gathered.keys().map(|(folder, _)| *folder))?;
    let modules = gathered
        .into_iter()
        .map(|(entry, found)| complete(path, &scales[entry.0], entry, found));
    Ok((spelling, modules.collect::<Result<_>>()?))
}

/// Scales of every network that the file changes.
fn scales<'a>(
    file: &TensorFile,
    spelling: Spelling,
    folders: impl Iterator<Item = &'a str>,
) -> Result<HashMap<&'a str, FileScales>> {
    let of_peft = || match spelling {
        Spelling::Peft => FileScales::beside(file.path()),
        _ => Ok(None),
    };
    let mut scales: HashMap<&str, FileScales> = HashMap::new();
    for folder in folders {
        if !scales.contains_key(folder) {
            let own = match of_peft()? {
                Some(own) => own,
                None => FileScales::of_metadata(file.path(), folder, &file.metadata)?,
            };
            scales.insert(folder, own);
        }
    }
    Ok(scales)
}

fn complete(path: &Path, scales: &FileScales, entry: Entry, found: Gathered) -> Result<ModuleFactors> {
    let (folder, module) = entry;
    let (Some(down), Some(up)) = (found.down, found.up) else {
        let what = format!("has one factor of `{}` without the other", module.as_str());
        let remedy = "Save the adapter anew: the file is incomplete.";
        return Err(Error::bad(path.display().to_string(), what, remedy));
    };
    check_shapes(path, module.as_str(), &down.shape, &up.shape)?;
    let rank = down.shape[0];
    scales.check_rank(path, module.as_str(), rank)?;
    Ok(ModuleFactors {
        component: component_of(folder),
        alpha: found
            .alpha
            .filter(|alpha| *alpha != 0.0)
            .unwrap_or_else(|| scales.alpha_of(module.as_str(), rank)),
        module,
        down,
        up,
    })
}

pub(super) fn component_of(folder: &str) -> Component {
    Component::ALL
        .into_iter()
        .find(|c| c.folder() == folder)
        .expect("folders in the tables come from components")
}

pub(super) fn not_finite(path: &Path, key: &str, value: f32) -> Error {
    Error::bad(
        path.display().to_string(),
        format!("holds {value} in `{key}`"),
        "Save the adapter anew: its training may have diverged.",
    )
}

/// A is (r, in, …) and B (out, r, …), r at least 1.
pub(super) fn check_shapes(path: &Path, module: &str, down: &[usize], up: &[usize]) -> Result<()> {
    let what = match (down, up) {
        ([rank, _, ..], [_, other, ..]) if rank == other && *rank > 0 => return Ok(()),
        ([0, _, ..], [_, 0, ..]) => format!("has factors of rank 0 for `{module}`"),
        _ => format!("has factors of shapes {down:?} and {up:?} for `{module}`, whose ranks do not agree"),
    };
    let remedy = "Save the adapter anew: the first factor is (rank, inputs), the second (outputs, rank).";
    Err(Error::bad(path.display().to_string(), what, remedy))
}
