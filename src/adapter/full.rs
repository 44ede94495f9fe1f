//! `diffusion_pytorch_model.safetensors`: a denoiser's weights under PyTorch's names and in PyTorch's layout.

use std::path::Path;

use super::file::{self, NamedTensor};
use crate::Result;

/// Writes a whole model, with `note` in its metadata. The same weights give the same bytes.
///
/// # Errors
/// The file cannot be written.
pub fn save_full(path: &Path, tensors: Vec<NamedTensor<'_>>, note: Option<String>) -> Result<()> {
    let mut metadata = vec![("format", "pt".to_owned())];
    metadata.extend(note.map(|note| ("ortdpo.incomplete", note)));
    file::write(path, &metadata, tensors)
}
