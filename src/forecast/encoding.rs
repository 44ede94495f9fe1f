//! Memory of filling the encoding cache, before the sessions of training are there. A rough figure: these sessions share buffers
//! and change layouts as ONNX Runtime likes, which a walk over the graph does not know. SD1.5's VAE took 1.0 GiB for two pictures of
//! 512² where this says 1.2, and 3.9 GiB for one of 1024² where this says 2.3.

use serde::Serialize;

use super::arena::Arena;
use crate::Result;
use crate::model_folder::{Component, ModelFolder};
use crate::onnx::{Dims, Model, SpecializeOptions, specialize, weight_bytes};
use crate::pipeline::VaeEncoder;
use crate::pipeline::text;

/// Weights that a session holds, packed for its kernels, in sizes of the weights as measured on Stable Diffusion's VAE.
const COPIES: u64 = 2;

/// Bytes beside the program while pictures and captions are encoded; one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Encoding {
    /// The VAE encoder's weights and the values between its nodes.
    pub images: u64,
    /// The text encoders' weights.
    pub captions: u64,
}

impl Encoding {
    /// Of the encoders in `folder`, for pictures of `resolution`², `batch` at once at most.
    ///
    /// # Errors
    /// A network is missing, or the VAE encoder takes other sizes.
    pub fn of(folder: &ModelFolder, resolution: usize, batch: usize) -> Result<Self> {
        let model = Model::read(folder.network(Component::VaeEncoder)?)?;
        let images = VaeEncoder::images_at_once(resolution * resolution).min(batch.max(1));
        let mut dims = Dims::default();
        for input in model.inputs()? {
            dims.shapes
                .insert(input.name, vec![images, 3, resolution, resolution]);
        }
        let options = SpecializeOptions {
            dims,
            split_shared: false,
        };
        let graph = specialize(&model, &options)?;
        let mut arena = Arena::default();
        arena.run(&graph.buffer_events());
        let mut captions = 0;
        for (_, encoder) in text::parts(folder)? {
            captions += COPIES * Model::read(folder.network(encoder)?)?.weight_bytes();
        }
        Ok(Self {
            images: COPIES * weight_bytes(&graph) as u64 + arena.touched(),
            captions,
        })
    }

    /// The larger of both.
    pub fn peak(&self) -> u64 {
        self.images.max(self.captions)
    }
}
