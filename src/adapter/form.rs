//! The forms in which a LoRA is written.

use std::path::{Path, PathBuf};

use super::content::Format;
use super::factors::Lora;
use super::keys::Spelling;
use super::kohya::Naming;
use super::{diffusers, kohya, onnx_adapter};
use crate::Result;
use crate::model_folder::Component;

/// A form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `pytorch_lora_weights.safetensors` of diffusers and PEFT.
    Diffusers,
    /// Kohya's scripts.
    Kohya(Naming),
    /// ONNX Runtime: a file for each network.
    Onnx,
}

impl Form {
    /// The form to write what was read from a file of `format`.
    pub fn of(format: Format) -> Self {
        match format {
            Format::Lora(Spelling::Kohya) => Self::Kohya(Naming::Diffusers),
            Format::Lora(Spelling::KohyaLdm) => Self::Kohya(Naming::Ldm),
            Format::OnnxAdapter => Self::Onnx,
            _ => Self::Diffusers,
        }
    }

    /// The files that `lora` takes in this form, with the networks in them: `path`, or one for each of several networks
    /// with its name before the suffix.
    pub fn files(self, lora: &Lora, path: &Path) -> Vec<(PathBuf, Vec<Component>)> {
        let components = lora.components();
        if self != Self::Onnx || components.len() == 1 {
            return vec![(path.to_path_buf(), components)];
        }
        let named = |component: Component| {
            let mut name = path.file_stem().unwrap_or_default().to_owned();
            name.push(format!(".{component}"));
            if let Some(suffix) = path.extension() {
                name.push(".");
                name.push(suffix);
            }
            (path.with_file_name(name), vec![component])
        };
        components.into_iter().map(named).collect()
    }

    /// Writes `lora`; returns the files.
    ///
    /// # Errors
    /// As [`diffusers::write`], [`kohya::write`] and [`onnx_adapter::write`].
    pub fn write(self, lora: &Lora, path: &Path) -> Result<Vec<PathBuf>> {
        let mut written = Vec::new();
        for (path, components) in self.files(lora, path) {
            match self {
                Self::Diffusers => diffusers::write(&path, lora)?,
                Self::Kohya(naming) => kohya::write(&path, lora, naming)?,
                Self::Onnx => {
                    for component in components {
                        onnx_adapter::write(&path, lora, component)?;
                    }
                }
            }
            written.push(path);
        }
        Ok(written)
    }
}
