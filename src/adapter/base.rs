//! Which kind of model an adapter was trained on, told from its modules.

use std::collections::BTreeMap;

use super::factors::{Lora, ModuleFactors};
use super::names;
use crate::model_folder::Component;

/// A family of Stable Diffusion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseModel {
    /// Stable Diffusion 1.x: captions of width 768.
    Sd1,
    /// Stable Diffusion 2.x: captions of width 1024.
    Sd2,
    /// SDXL: captions of width 2048, two text encoders.
    Sdxl,
}

impl std::fmt::Display for BaseModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sd1 => "Stable Diffusion 1.x",
            Self::Sd2 => "Stable Diffusion 2.x",
            Self::Sdxl => "SDXL",
        })
    }
}

impl BaseModel {
    /// The family that an adapter is for: what its modules tell, else what its metadata says.
    pub fn of_lora(lora: &Lora) -> Option<Self> {
        Self::of(&lora.modules).or_else(|| Self::of_metadata(&lora.metadata))
    }

    /// The family that the keys of Kohya's scripts and of ModelSpec name.
    fn of_metadata(metadata: &BTreeMap<String, String>) -> Option<Self> {
        let begins = |key: &str, name: &str| metadata.get(key).is_some_and(|text| text.starts_with(name));
        let families = [
            (Self::Sdxl, "sdxl", "stable-diffusion-xl"),
            (Self::Sd2, "sd_v2", "stable-diffusion-v2"),
            (Self::Sd1, "sd_v1", "stable-diffusion-v1"),
        ];
        let named = |(_, version, architecture): &(Self, &str, &str)| {
            begins("ss_base_model_version", version) || begins("modelspec.architecture", architecture)
        };
        families.into_iter().find(named).map(|(family, ..)| family)
    }

    /// What [`BaseModel::of_lora`] reads in the metadata.
    pub fn version(self) -> &'static str {
        match self {
            Self::Sd1 => "sd_v1",
            Self::Sd2 => "sd_v2",
            Self::Sdxl => "sdxl_base_v1-0",
        }
    }

    /// The family of the model that `modules` fit, if they tell: by the width of what cross-attention reads, else
    /// by layers that only SDXL has.
    pub fn of(modules: &[ModuleFactors]) -> Option<Self> {
        let reads_captions = |m: &&ModuleFactors| {
            let name = m.module.flat();
            m.component == Component::Unet && (name.ends_with("attn2_to_k") || name.ends_with("attn2_to_v"))
        };
        match modules.iter().find(reads_captions).map(ModuleFactors::columns) {
            Some(768) => Some(Self::Sd1),
            Some(1024) => Some(Self::Sd2),
            Some(2048) => Some(Self::Sdxl),
            _ => modules.iter().any(is_sdxls).then_some(Self::Sdxl),
        }
    }
}

fn is_sdxls(module: &ModuleFactors) -> bool {
    let name = names::flat(module.module.as_str());
    let deep = || {
        let (_, behind) = name.split_once("_transformer_blocks_")?;
        behind.split('_').next()?.parse::<usize>().ok()
    };
    match module.component {
        Component::TextEncoder2 => true,
        Component::Unet => {
            let reads = [("up_blocks_0_attentions", 1280), ("up_blocks_1_attentions", 640)];
            // Self-attention of Stable Diffusion 1.x and 2.x is not there, or of another width.
            let own = reads.iter().find(|(block, _)| name.starts_with(block));
            let is_own =
                |(_, width): &(&str, usize)| name.contains("attn1_to_") && module.columns() == *width;
            name.starts_with("add_embedding")
                || deep().is_some_and(|index| index > 0)
                || own.is_some_and(is_own)
        }
        _ => false,
    }
}
