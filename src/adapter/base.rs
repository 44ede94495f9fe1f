//! Which kind of model an adapter was trained on, told from its modules.

use super::factors::ModuleFactors;
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
        Component::Unet => name.starts_with("add_embedding") || deep().is_some_and(|index| index > 0),
        _ => false,
    }
}
