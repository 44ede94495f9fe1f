//! The VAE encoder and the text encoders of a pipeline folder, as the encoding cache uses them.

use ndarray::ArrayView4;

use super::encoder::{CaptionEncoder, Encoders, Identity, ImageEncoder};
use super::image::Size;
use crate::Result;
use crate::model_folder::{Component, ContentHash, ModelFolder};
use crate::pipeline::text::components;
use crate::pipeline::{
    Adapters, Embedding, LatentScaling, Moments, PromptTokens, TextEncoders, VaeEncoder, VaePrecision,
};
use crate::runtime::SessionOptions;
use crate::text;

/// Encoders of a pipeline folder; sessions are made when they are asked for.
#[derive(Debug)]
pub struct OnnxEncoders<'a> {
    /// The pipeline.
    pub model: &'a ModelFolder,
    /// How sessions are built.
    pub options: SessionOptions,
    /// What the VAE computes in.
    pub vae: VaePrecision,
}

impl Encoders for OnnxEncoders<'_> {
    fn identity(&self) -> Result<Identity> {
        let captions = self.model.hash(&components(self.model)?)?;
        let version = text::TOKENIZER_VERSION.to_le_bytes();
        let captions = blake3::Hasher::new()
            .update(&captions.0)
            .update(&version)
            .finalize();
        let mut images = self.model.hash(&[Component::VaeEncoder])?;
        if self.vae == VaePrecision::Single {
            // Latents of the same images, but others.
            images = ContentHash(
                *blake3::Hasher::new()
                    .update(&images.0)
                    .update(b"fp32")
                    .finalize()
                    .as_bytes(),
            );
        }
        Ok(Identity {
            images,
            captions: ContentHash(*captions.as_bytes()),
        })
    }

    fn scaling(&self) -> Result<LatentScaling> {
        LatentScaling::of(self.model)
    }

    fn images(&self, sizes: &[Size]) -> Result<Box<dyn ImageEncoder + '_>> {
        let sides: Vec<[usize; 2]> = sizes.iter().map(Size::sides).collect();
        Ok(Box::new(VaeEncoder::load(
            self.model,
            &self.options,
            self.vae,
            &sides,
        )?))
    }

    fn captions(&self) -> Result<Box<dyn CaptionEncoder + '_>> {
        let none = Adapters::default();
        Ok(Box::new(TextEncoders::load(self.model, &self.options, 0, &none)?))
    }
}

impl ImageEncoder for VaeEncoder {
    fn encode(&mut self, images: ArrayView4<f32>) -> Result<Vec<Moments>> {
        self.encode(images)
    }
}

impl CaptionEncoder for TextEncoders {
    fn tokenize(&self, caption: &str) -> Result<PromptTokens> {
        self.tokenize(caption)
    }

    fn encode(&mut self, captions: &[&PromptTokens]) -> Result<Vec<Embedding>> {
        self.encode(captions)
    }
}
