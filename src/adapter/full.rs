//! `diffusion_pytorch_model.safetensors`: a denoiser's weights under PyTorch's names and in PyTorch's layout.

use std::path::Path;

use super::file::{self, NamedTensor};
use crate::Result;

/// Writes a whole model. The same weights give the same bytes.
///
/// # Errors
/// The file cannot be written.
pub fn save_full(path: &Path, tensors: Vec<NamedTensor<'_>>) -> Result<()> {
    file::write(path, &[("format", "pt".to_owned())], tensors)
}
