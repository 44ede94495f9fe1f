//! Reward models: networks that score pictures, each a folder with ONNX files and a manifest.
//!
//! ```text
//! name ──lookup──► folder ──manifest──► Preprocessor, networks
//! pictures ──Preprocessor──► pixels ──RewardModel::features──► one row per picture ──scores──► one number per picture
//! prompts ──PromptReader──► tokens ─────────────(cross encoders)┘        (towers, classifiers)┘
//! ```
//!
//! [`RewardModel::score`] does all of it. The two halves are there for those who keep rows of features ([`crate::score`]):
//! what a network says of a picture is the same whatever the prompt, except for cross encoders.

mod classifier_match;
mod cross_encoder;
mod dual_tower;
mod feature_extractor;
mod image_head;
mod lookup;
pub mod manifest;
mod network;
mod perceptual;
mod preprocess;
mod prompt;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use image::RgbImage;
use ndarray::{Array2, Array4, ArrayView2, ArrayView4};
use rayon::prelude::*;

pub use lookup::{VARIABLE, find, places};
pub use manifest::Manifest;
pub use preprocess::Preprocessor;
pub use prompt::TokenRows;

use crate::adapter::check_safetensors;
use crate::model_folder::{ContentHash, hash_named};
use crate::runtime::SessionOptions;
use crate::{Error, Result, onnx, placeholder};
use manifest::{FILE_NAME, Scorer};

/// Changes whenever equal folders would give other features; part of every cache key.
const FEATURES_VERSION: u32 = 1;

/// When a reward model looks at the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptUse {
    /// Never.
    Ignored,
    /// When it compares the picture's features with it.
    Afterwards,
    /// While it looks at the picture: features belong to a picture and a prompt.
    Together,
}

/// What each kind of reward model does with its networks.
trait Networks: Send {
    fn prompt_use(&self) -> PromptUse;

    /// One row per picture of `pixels` (N,C,H,W); `prompts` has as many entries, which only [`PromptUse::Together`] reads.
    fn features(&mut self, pixels: ArrayView4<'_, f32>, prompts: &[&str]) -> Result<Array2<f32>>;

    /// Token ids and mask of prompts; none where prompts are not tokenized.
    fn tokens(&self, _prompts: &[&str]) -> Result<Option<TokenRows>> {
        Ok(None)
    }

    /// One embedding per prompt; none where prompts are not embedded alone.
    fn embed_prompts(&mut self, _prompts: &[&str]) -> Result<Option<Array2<f32>>> {
        Ok(None)
    }

    /// One score per row of features and prompt.
    fn scores(&mut self, features: ArrayView2<'_, f32>, prompts: &[&str]) -> Result<Vec<f64>>;
}

/// A reward model, loaded.
pub struct RewardModel {
    folder: PathBuf,
    manifest: Manifest,
    preprocessor: Preprocessor,
    networks: Box<dyn Networks>,
    hash: OnceLock<ContentHash>,
    features_hash: OnceLock<ContentHash>,
}

impl RewardModel {
    /// Loads a reward model by its folder, or by a name that [`find`] finds.
    ///
    /// # Errors
    /// There is none of that name, its manifest is wrong, or its networks are not what the manifest says.
    pub fn open(name_or_folder: &str, options: &SessionOptions) -> Result<Self> {
        Self::open_folder(&find(name_or_folder)?, options)
    }

    /// Checks that every file of a reward model is there and all of it; nothing is loaded.
    ///
    /// # Errors
    /// There is none of that name, its manifest is wrong, or the first file that is not.
    pub fn check_files(name_or_folder: &str) -> Result<()> {
        let folder = find(name_or_folder)?;
        check_files_of(&folder, &Manifest::read(&folder.join(FILE_NAME))?)
    }

    /// Loads the reward model in a folder.
    ///
    /// # Errors
    /// Its manifest is wrong, or its networks are not what the manifest says.
    pub fn open_folder(folder: &Path, options: &SessionOptions) -> Result<Self> {
        let path = folder.join(FILE_NAME);
        let manifest = Manifest::read(&path)?;
        check_files_of(folder, &manifest)?;
        let in_manifest = |error| match error {
            Error::BadInput { place, what, remedy } if place.starts_with("scorer.") => {
                Error::bad(format!("{}: {place}", path.display()), what, remedy)
            }
            other => other,
        };
        let preprocessor = Preprocessor::new(manifest.preprocessing()).map_err(in_manifest)?;
        let shape = preprocessor.shape();
        let networks: Result<Box<dyn Networks>> = match &manifest.scorer {
            Scorer::DualTower { image, text, scale } => {
                dual_tower::open(folder, options, shape, image, text, scale)
            }
            Scorer::ImageHead { image, head } => {
                image_head::open(folder, options, shape, image, head.as_ref())
            }
            Scorer::CrossEncoder {
                image,
                prompt,
                standardize,
            } => cross_encoder::open(folder, options, shape, image, prompt, standardize.clone()),
            Scorer::FeatureExtractor { image } => feature_extractor::open(folder, options, shape, image),
            Scorer::Perceptual { image, heads } => perceptual::open(folder, options, shape, image, heads),
            Scorer::ClassifierMatch {
                image,
                labels,
                heads,
                measure,
            } => classifier_match::open(folder, options, shape, image, labels, heads, *measure),
        };
        Ok(Self {
            networks: networks.map_err(in_manifest)?,
            folder: folder.to_path_buf(),
            manifest,
            preprocessor,
            hash: OnceLock::new(),
            features_hash: OnceLock::new(),
        })
    }

    /// Name, unit, licence, … as the folder says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Prepares pictures for the network; independent of the sessions, so that other threads can do it.
    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    /// Whether scores depend on prompts.
    pub fn needs_prompt(&self) -> bool {
        self.prompt_use() != PromptUse::Ignored
    }

    /// When prompts are looked at.
    pub fn prompt_use(&self) -> PromptUse {
        self.networks.prompt_use()
    }

    /// One score per picture; `prompts` has as many entries (empty texts where no prompt is needed).
    ///
    /// # Errors
    /// A prompt cannot be read, ONNX Runtime fails, or a score is not a number.
    pub fn score(&mut self, images: &[RgbImage], prompts: &[&str]) -> Result<Vec<f64>> {
        self.check_pairing(images.len(), prompts)?;
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let features = self.features(self.pixels(images).view(), prompts)?;
        self.scores(features.view(), prompts)
    }

    /// One embedding per picture (N,D), as the network gives it; the output for one that gives ratings or logits.
    ///
    /// # Errors
    /// The network reads pictures and prompts together, or ONNX Runtime fails.
    pub fn embed_images(&mut self, images: &[RgbImage]) -> Result<Array2<f32>> {
        if self.prompt_use() == PromptUse::Together {
            let what = format!(
                "is of kind {}, which has no embedding of a picture alone",
                self.manifest.kind()
            );
            let remedy = "Take a reward of kind dual_tower or image_head.";
            return Err(Error::bad(self.folder.display().to_string(), what, remedy));
        }
        if images.is_empty() {
            return Ok(Array2::zeros((0, 0)));
        }
        let prompts = vec![""; images.len()];
        self.features(self.pixels(images).view(), &prompts)
    }

    /// One embedding per prompt (N,D), as the text tower gives it; none for kinds other than dual towers.
    ///
    /// # Errors
    /// A prompt cannot be read, or ONNX Runtime fails.
    pub fn embed_prompts(&mut self, prompts: &[&str]) -> Result<Option<Array2<f32>>> {
        self.networks.embed_prompts(prompts)
    }

    /// Token ids and mask of prompts (N,L) as the network is fed them; none for kinds that have no tokenizer.
    ///
    /// # Errors
    /// A prompt cannot be read.
    pub fn tokens(&self, prompts: &[&str]) -> Result<Option<TokenRows>> {
        self.networks.tokens(prompts)
    }

    /// Preprocesses pictures, all cores at once: (N,C,H,W).
    fn pixels(&self, images: &[RgbImage]) -> Array4<f32> {
        let preprocessor = &self.preprocessor;
        let [channels, height, width] = preprocessor.shape();
        let mut pixels = Array4::zeros((images.len(), channels, height, width));
        let rows = pixels.as_slice_mut().expect("a new array is row-major");
        rows.par_chunks_exact_mut(preprocessor.len())
            .zip(images)
            .for_each(|(out, image)| preprocessor.apply(image, out));
        pixels
    }

    /// What the networks say of prepared pictures (N,C,H,W): one row each, see [`RewardModel::scores`].
    ///
    /// # Errors
    /// A prompt cannot be read, or ONNX Runtime fails.
    pub fn features(&mut self, pixels: ArrayView4<'_, f32>, prompts: &[&str]) -> Result<Array2<f32>> {
        self.networks.features(pixels, prompts)
    }

    /// Scores from rows of features and their prompts.
    ///
    /// # Errors
    /// A prompt cannot be read, ONNX Runtime fails, or a score is not a number.
    pub fn scores(&mut self, features: ArrayView2<'_, f32>, prompts: &[&str]) -> Result<Vec<f64>> {
        self.check_pairing(features.nrows(), prompts)?;
        let scores = self.networks.scores(features, prompts)?;
        match scores.iter().position(|score| !score.is_finite()) {
            None => Ok(scores),
            Some(index) => {
                let prompt = match self.needs_prompt() {
                    true => format!(" for the prompt {:?}", prompts[index]),
                    false => String::new(),
                };
                Err(Error::bad(
                    format!("reward {}", self.manifest.name),
                    format!("gives {}{prompt}, which is no score", scores[index]),
                    "Check the picture, and export the reward with fp32 if it was fp16.",
                ))
            }
        }
    }

    fn check_pairing(&self, pictures: usize, prompts: &[&str]) -> Result<()> {
        match pictures == prompts.len() {
            true => Ok(()),
            false => Err(Error::bad(
                format!("reward {}", self.manifest.name),
                format!("was given {pictures} pictures and {} prompts", prompts.len()),
                "Give one prompt per picture.",
            )),
        }
    }

    /// Identity of the whole reward by content: manifest, networks, tokenizer.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn hash(&self) -> Result<ContentHash> {
        remembered(&self.hash, || {
            let scorer = serde_json::to_vec(&self.manifest.scorer).expect("a manifest is plain data");
            self.hash_files(&scorer, &self.manifest.files())
        })
    }

    /// Identity of what determines features: rewards with the same image tower share them.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn features_hash(&self) -> Result<ContentHash> {
        remembered(&self.features_hash, || {
            let description = self.manifest.features();
            let bytes = serde_json::to_vec(&description).expect("a manifest is plain data");
            self.hash_files(&bytes, &self.manifest.feature_files())
        })
    }

    fn hash_files(&self, description: &[u8], files: &[&str]) -> Result<ContentHash> {
        let mut paths = Vec::new();
        for file in files {
            paths.extend(with_external_data(&self.folder.join(file))?);
        }
        // By content alone: one tower may lie in several folders under several names.
        let files = hash_named(paths.iter().map(|path| ("", path.as_path())))?;
        let whole = blake3::Hasher::new()
            .update(&FEATURES_VERSION.to_le_bytes())
            .update(description)
            .update(&files.0)
            .finalize();
        Ok(ContentHash(*whole.as_bytes()))
    }
}

fn check_files_of(folder: &Path, manifest: &Manifest) -> Result<()> {
    for file in manifest.files() {
        let path = folder.join(file);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("onnx") => onnx::check_files(&path)?,
            Some("safetensors") => check_safetensors(&path)?,
            _ if path.is_file() => placeholder::check(&path)?,
            // A folder with a tokenizer, or missing, which its reader says better.
            _ => {}
        }
    }
    Ok(())
}

fn remembered(
    cell: &OnceLock<ContentHash>,
    make: impl FnOnce() -> Result<ContentHash>,
) -> Result<ContentHash> {
    match cell.get() {
        Some(hash) => Ok(*hash),
        None => {
            let hash = make()?;
            Ok(*cell.get_or_init(|| hash))
        }
    }
}

/// A file or folder; with an ONNX file also the files beside it whose names go on from its own, as exporters name weights
/// that do not fit into it (`model.onnx_data`, `model.onnx.data`).
fn with_external_data(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![path.to_path_buf()];
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(found);
    };
    if !name.ends_with(".onnx") {
        return Ok(found);
    }
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "list the folder"))? {
        let entry = entry.map_err(Error::io(folder, "list the folder"))?;
        let other = entry.file_name();
        if other
            .to_str()
            .is_some_and(|other| other.starts_with(name) && other != name)
        {
            found.push(entry.path());
        }
    }
    found[1..].sort();
    Ok(found)
}
