//! Memory of filling the encoding cache, before the sessions of training are there. A rough figure: these sessions share buffers
//! and change layouts as ONNX Runtime likes, which a walk over the graph does not know. SD1.5's VAE took 1.0 GiB for two pictures of
//! 512² where this says 1.2, and 3.9 GiB for one of 1024² where this says 2.3.

use serde::Serialize;

use super::arena::Arena;
use super::memory::{PROGRAM, budget_of};
use crate::config::bytes::ByteSize;
use crate::model_folder::{Component, ModelFolder};
use crate::onnx::{Dims, Model, SpecializeOptions, specialize, weight_bytes};
use crate::pipeline::VaeEncoder;
use crate::pipeline::text;
use crate::{Error, Result};

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
        Ok(Self {
            images: Self::images(folder, [resolution; 2], batch)?,
            captions: Self::captions(folder)?,
        })
    }

    /// Of the VAE encoder for pictures of `size`, height and width.
    ///
    /// # Errors
    /// As [`Encoding::of`].
    pub fn images(folder: &ModelFolder, [height, width]: [usize; 2], batch: usize) -> Result<u64> {
        let model = Model::read(folder.network(Component::VaeEncoder)?)?;
        let images = VaeEncoder::images_at_once(height * width).min(batch.max(1));
        let mut dims = Dims::default();
        for input in model.inputs()? {
            dims.shapes.insert(input.name, vec![images, 3, height, width]);
        }
        let options = SpecializeOptions {
            dims,
            split_shared: false,
        };
        let graph = specialize(&model, &options)?;
        let mut arena = Arena::default();
        arena.run(&graph.buffer_events());
        Ok(COPIES * weight_bytes(&graph) as u64 + arena.touched())
    }

    /// Of the text encoders.
    ///
    /// # Errors
    /// A network is missing.
    pub fn captions(folder: &ModelFolder) -> Result<u64> {
        let mut captions = 0;
        for (_, encoder) in text::parts(folder)? {
            captions += COPIES * Model::read(folder.network(encoder)?)?.weight_bytes();
        }
        Ok(captions)
    }

    /// Refuses to encode `what` in `bytes` beside the program, where that is more than `budget`. Those who ask are about to encode: a
    /// cache that is full needs none of it.
    ///
    /// # Errors
    /// It is more.
    pub fn within(budget: ByteSize, what: &str, bytes: u64, remedy: &str) -> Result<()> {
        let all = PROGRAM + bytes;
        if all <= budget.0 {
            return Ok(());
        }
        let enough = budget_of(all);
        Err(Error::bad(
            "runtime.memory_budget",
            format!("is {budget}, but encoding {what} takes about {enough}"),
            format!(
                "Set it to {enough} or more (--memory-budget {enough}){remedy}, or encode without a budget first: \
                 what is in the cache is not encoded again."
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoders_that_do_not_fit_are_refused_with_what_is_enough() {
        let within = |beside| Encoding::within(ByteSize(PROGRAM + 10), "pictures", beside, "");
        within(10).unwrap();
        let error = within(11).unwrap_err().to_string();
        assert!(error.contains("encoding pictures takes about"), "{error}");
        let (_, enough) = error.split_once("--memory-budget ").unwrap();
        let enough: ByteSize = enough.split(')').next().unwrap().parse().unwrap();
        Encoding::within(enough, "pictures", 11, "").unwrap();
    }
}
