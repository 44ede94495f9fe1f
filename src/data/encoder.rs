//! What the cache needs of a model: encoders of images and captions, loaded only if there is something to
//! encode.

use ndarray::ArrayView4;

use super::image::Size;
use crate::Result;
use crate::model_folder::ContentHash;
use crate::pipeline::{Embedding, LatentScaling, Moments, PromptTokens};

/// Turns images into latent distributions.
pub trait ImageEncoder {
    /// Encodes images (N,3,H,W) with values in [-1, 1].
    ///
    /// # Errors
    /// The model fails or gives something else than latents.
    fn encode(&mut self, images: ArrayView4<f32>) -> Result<Vec<Moments>>;
}

/// Turns captions into what the denoiser is conditioned on.
pub trait CaptionEncoder {
    /// Token ids of a caption.
    ///
    /// # Errors
    /// The tokenizer cannot read the caption.
    fn tokenize(&self, caption: &str) -> Result<PromptTokens>;

    /// Encodes tokenized captions.
    ///
    /// # Errors
    /// The model fails or gives something else than embeddings.
    fn encode(&mut self, captions: &[&PromptTokens]) -> Result<Vec<Embedding>>;
}

/// Hashes of all that shapes encodings, besides what is encoded: part of every cache key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The image encoder.
    pub images: ContentHash,
    /// Tokenizers and text encoders.
    pub captions: ContentHash,
}

/// The encoders of a pipeline.
pub trait Encoders {
    /// See [`Identity`].
    ///
    /// # Errors
    /// A model file cannot be read.
    fn identity(&self) -> Result<Identity>;

    /// How latents are scaled when they are drawn.
    ///
    /// # Errors
    /// A config is missing or broken.
    fn scaling(&self) -> Result<LatentScaling>;

    /// Loads the image encoder, for images of these sizes.
    ///
    /// # Errors
    /// The model is missing or is not an image encoder.
    fn images(&self, sizes: &[Size]) -> Result<Box<dyn ImageEncoder + '_>>;

    /// Loads tokenizer and text encoder.
    ///
    /// # Errors
    /// A file is missing or is not what it should be.
    fn captions(&self) -> Result<Box<dyn CaptionEncoder + '_>>;
}
