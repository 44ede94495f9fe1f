//! The pipeline folder that is trained: its denoiser, noise schedule and identity.

use std::path::Path;

use crate::Result;
use crate::diffusion::NoiseSchedule;
use crate::model_folder::{Component, ContentHash, ModelFolder};
use crate::onnx;

/// A pipeline folder with what training needs of it read in.
pub struct Model {
    /// The folder.
    pub folder: ModelFolder,
    /// Which component is trained.
    pub component: Component,
    /// The denoiser as exported.
    pub denoiser: onnx::Model,
    /// Noise schedule and prediction type.
    pub schedule: NoiseSchedule,
    /// Hash of the denoiser's files: what a resumed run must have again.
    pub hash: ContentHash,
}

impl Model {
    /// Prefix of the denoiser's adapters in files: `unet` or `transformer`.
    pub fn prefix(&self) -> &'static str {
        self.component.folder()
    }

    /// Reads the folder; weights stay on disk.
    pub fn open(root: &Path) -> Result<Self> {
        let folder = ModelFolder::open(root)?;
        let component = folder.denoiser()?;
        Ok(Self {
            denoiser: onnx::Model::read(folder.network(component)?)?,
            schedule: NoiseSchedule::from_file(&folder.scheduler_config()?)?,
            hash: folder.hash(&[component])?,
            component,
            folder,
        })
    }
}
