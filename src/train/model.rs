//! The pipeline folder that is trained: its denoiser, noise schedule and identity.

use std::collections::BTreeMap;
use std::path::Path;

use crate::Result;
use crate::diffusion::NoiseSchedule;
use crate::model_folder::{Component, ModelFolder};
use crate::onnx;
use crate::pipeline::text;

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
    /// Hashes of the files of every component that shapes training, by its folder: what a resumed run must have
    /// again. Latents and embeddings come from the encoders, noise levels from the scheduler.
    pub hashes: BTreeMap<String, String>,
}

/// What shapes training besides the denoiser.
const AROUND_THE_DENOISER: [Component; 4] = [
    Component::VaeEncoder,
    Component::TextEncoder,
    Component::Tokenizer,
    Component::Scheduler,
];

impl Model {
    /// Prefix of the denoiser's adapters in files: `unet` or `transformer`.
    pub fn prefix(&self) -> &'static str {
        self.component.folder()
    }

    /// Reads the folder; weights stay on disk.
    ///
    /// # Errors
    /// A component that training needs is missing, or the denoiser or the scheduler cannot be read.
    pub fn open(root: &Path) -> Result<Self> {
        let folder = ModelFolder::open(root)?;
        let component = folder.denoiser()?;
        // Before their hashes, for which every byte is read.
        folder.check_files(&text::components(&folder)?)?;
        folder.check_files(&[component, Component::VaeEncoder, Component::Scheduler])?;
        let mut hashes = BTreeMap::new();
        for needed in [component].into_iter().chain(AROUND_THE_DENOISER) {
            folder.require(needed)?;
            hashes.insert(needed.folder().to_owned(), folder.hash(&[needed])?.to_string());
        }
        Ok(Self {
            denoiser: onnx::Model::read(folder.network(component)?)?,
            schedule: NoiseSchedule::from_file(&folder.scheduler_config()?)?,
            hashes,
            component,
            folder,
        })
    }
}
