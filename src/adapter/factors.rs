//! A LoRA in memory as its file has it: factors by module, each with its own rank, alpha and element type.

use std::collections::BTreeMap;
use std::path::Path;

use super::content::{self, Content, Format, listed};
use super::file::{Precision, ReadTensor};
use super::keys::ModuleName;
use crate::model_folder::Component;
use crate::{Error, Result};

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
    /// Their product counts alpha / r times.
    pub alpha: f64,
}

impl ModuleFactors {
    /// Rank r; at least 1 in everything that was read.
    pub fn rank(&self) -> usize {
        self.down.shape[0]
    }

    /// How much the product of the factors counts.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank() as f64
    }

    /// Component and module, as messages name them.
    pub fn place(&self) -> String {
        format!("{}.{}", self.component, self.module.as_str())
    }

    /// Numbers in a row of A: inputs, times the kernel of a convolution.
    pub fn columns(&self) -> usize {
        self.down.shape[1..].iter().product()
    }

    /// Rows of B.
    pub fn outputs(&self) -> usize {
        self.up.shape[0]
    }
}

/// A LoRA file's content.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// Factors, by component and module.
    pub modules: Vec<ModuleFactors>,
    /// Texts beside the tensors, by key.
    pub metadata: BTreeMap<String, String>,
}

impl Lora {
    /// Reads a LoRA in any form, and says which it was.
    ///
    /// # Errors
    /// As [`content::read`]; also if the file holds whole weights.
    pub fn read(path: &Path) -> Result<(Self, Format)> {
        let file = content::read(path)?;
        match file.content {
            Content::Lora(modules) => {
                let metadata = file.metadata;
                Ok((Self { modules, metadata }, file.format))
            }
            Content::Full(_) => Err(Error::bad(
                path.display().to_string(),
                "holds whole weights, not the factors of a LoRA",
                "Give a LoRA; `ortdpo merge` puts whole weights into a pipeline.",
            )),
        }
    }

    /// The networks it changes, each once.
    pub fn components(&self) -> Vec<Component> {
        let mut found: Vec<Component> = self.modules.iter().map(|m| m.component).collect();
        found.dedup();
        found
    }

    /// The modules of a component.
    pub fn of(&self, component: Component) -> impl Iterator<Item = &ModuleFactors> {
        self.modules.iter().filter(move |m| m.component == component)
    }

    /// The same with every factor as `precision`.
    ///
    /// # Errors
    /// A number is too large for it.
    pub fn in_precision(mut self, precision: Precision) -> Result<Self> {
        for module in &mut self.modules {
            let place = module.place();
            for tensor in [&mut module.down, &mut module.up] {
                if !precision.holds(tensor.precision) {
                    round(tensor, precision, &place)?;
                }
                tensor.precision = precision;
            }
        }
        Ok(self)
    }

    /// The paths of all modules, in their order.
    ///
    /// # Errors
    /// Some are known only by their flat names, from which the dots cannot be told.
    pub fn paths(&self) -> Result<Vec<&str>> {
        let flat = |m: &&ModuleFactors| matches!(m.module, ModuleName::Flat(_));
        let unknown: Vec<&str> = self
            .modules
            .iter()
            .filter(flat)
            .map(|m| m.module.as_str())
            .collect();
        match unknown.is_empty() {
            true => Ok(self.modules.iter().map(|m| m.module.as_str()).collect()),
            false => Err(Error::bad(
                "the adapter",
                format!(
                    "has modules whose paths cannot be told from their names: {}",
                    listed(&unknown)
                ),
                "Only the names of UNets and CLIP's text encoders are known; write it in Kohya's form.",
            )),
        }
    }
}

fn round(tensor: &mut ReadTensor, precision: Precision, place: &str) -> Result<()> {
    for value in &mut tensor.values {
        let rounded = precision.rounded(*value);
        if !rounded.is_finite() {
            let what = format!("holds {value}, which is too large for {}", precision.name());
            return Err(Error::bad(place, what, "Choose another --dtype."));
        }
        *value = rounded;
    }
    Ok(())
}
