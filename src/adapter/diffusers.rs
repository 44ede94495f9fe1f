//! `pytorch_lora_weights.safetensors`: a LoRA as diffusers' pipelines and PEFT write it.
//!
//! The scale is in the metadata: `lora_adapter_metadata` holds PEFT's `LoraConfig` of every component, ranks and alphas
//! that differ from the commonest in its patterns. diffusers takes no `.alpha` tensors beside it.

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value};

use super::factors::{Lora, ModuleFactors};
use super::file::{self, NamedTensor};
use super::lora::{A, B, ConfigEntry, peft_config};
use super::scales::CONFIG;
use crate::Result;

/// Metadata that is about a file as a whole, and wrong in any other: hashes.
pub(super) fn is_of_one_file(key: &str) -> bool {
    key.starts_with("sshs_") || key.starts_with("modelspec.hash")
}

/// Writes `lora` to `path`. The same adapter gives the same bytes.
///
/// # Errors
/// Paths of modules are not known; the file cannot be written.
pub fn write(path: &Path, lora: &Lora) -> Result<()> {
    lora.paths()?;
    let mut config = Map::new();
    for component in lora.components() {
        let entry = |m: &'_ ModuleFactors| (m.module.as_str().to_owned(), m.rank(), m.alpha);
        let modules: Vec<_> = lora.of(component).map(entry).collect();
        let entries = modules.iter().map(|(module, rank, alpha)| ConfigEntry {
            module,
            rank: *rank,
            alpha: *alpha,
        });
        config.extend(peft_config(component.folder(), &entries.collect::<Vec<_>>()));
    }
    let mut metadata = vec![
        ("format", "pt".to_owned()),
        (CONFIG, Value::Object(config).to_string()),
    ];
    let own = |key: &str| key == "format" || key == CONFIG || is_of_one_file(key);
    let kept = lora.metadata.iter().filter(|(key, _)| !own(key));
    metadata.extend(kept.map(|(key, text)| (key.as_str(), text.clone())));
    let tensors = lora.modules.iter().flat_map(|m| {
        let sides = [(A, &m.down), (B, &m.up)];
        sides.map(|(side, tensor)| NamedTensor {
            name: format!("{}{side}", m.place()),
            shape: tensor.shape.clone(),
            precision: tensor.precision,
            values: Box::new(|| Ok(Cow::Borrowed(tensor.values.as_slice()))),
        })
    });
    file::write(path, &metadata, tensors.collect())
}
