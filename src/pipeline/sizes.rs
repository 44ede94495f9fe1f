//! Which sizes of images a model can make, and of what shapes a sample then is.

use std::path::PathBuf;

use super::Embedding;
use super::denoiser::{Added, Geometry};
use crate::model_folder::{Component, JsonFile, ModelFolder};
use crate::onnx::{Dim, Model};
use crate::{Error, Result};

/// What a model says about the sizes that it can make.
#[derive(Debug)]
pub struct Sizes {
    unet: PathBuf,
    /// Latent channels.
    channels: usize,
    /// Pixels per latent.
    vae: usize,
    /// Sides of a latent are multiples of this.
    multiple: usize,
    /// Height and width of the latents it was trained on.
    natural: [usize; 2],
    /// Height and width that the export fixes.
    fixed: [Option<usize>; 2],
}

impl Sizes {
    /// Reads them from the configs of `model` and the inputs of `unet`, its denoiser.
    ///
    /// # Errors
    /// A config is missing or does not say them.
    pub fn read(model: &ModelFolder, unet: &Model) -> Result<Self> {
        let config = model.config(model.denoiser()?)?;
        let levels = |config: &JsonFile| {
            let channels = config.get("block_out_channels").and_then(|v| v.as_array());
            channels.map_or(1, |c| 1 << c.len().saturating_sub(1))
        };
        let side = config.get("sample_size");
        let pair = side.and_then(|v| v.as_array()).map(|sides| {
            let side = |i: usize| sides.get(i).and_then(|v| v.as_u64()).unwrap_or(0) as usize;
            [side(0), side(1)]
        });
        let natural = match pair {
            Some(pair) => pair,
            None => [config.number("sample_size")? as usize; 2],
        };
        let inputs = unet.inputs()?;
        let sample = inputs.iter().find(|input| input.name == "sample");
        let fixed = [2, 3].map(|axis| {
            match sample
                .and_then(|input| input.dims.as_deref())
                .and_then(|dims| dims.get(axis))
            {
                Some(Dim::Fixed(size)) => Some(*size),
                _ => None,
            }
        });
        Ok(Self {
            unet: unet.path.clone(),
            channels: config.number("in_channels")? as usize,
            vae: levels(&model.config(Component::VaeDecoder)?),
            multiple: levels(&config),
            natural,
            fixed,
        })
    }

    /// Height and width of images, as `wanted` or the model's own. `names` are those of the settings that say what is wanted.
    ///
    /// # Errors
    /// The model cannot make images of this size.
    pub fn image(&self, wanted: [Option<usize>; 2], names: [&str; 2]) -> Result<[usize; 2]> {
        let side = |axis: usize| {
            let name = names[axis];
            let natural = self.fixed[axis].unwrap_or(self.natural[axis]) * self.vae;
            let side = wanted[axis].unwrap_or(natural);
            let step = self.vae * self.multiple;
            if let Some(fixed) = self.fixed[axis].filter(|fixed| fixed * self.vae != side) {
                let what = format!(
                    "is {side}, but {} was exported for images of {} pixels only",
                    self.unet.display(),
                    fixed * self.vae
                );
                let remedy = "Leave the option out, or export the model with dynamic height and width.";
                return Err(Error::bad(name, what, remedy));
            }
            match side > 0 && side.is_multiple_of(step) {
                true => Ok(side),
                false => Err(Error::bad(
                    name,
                    format!("is {side}, which is not a multiple of {step}"),
                    format!("{natural} is the model's own size."),
                )),
            }
        };
        Ok([side(0)?, side(1)?])
    }

    /// Shapes of one sample for images of `size`, conditioned on texts like `text`.
    pub fn sample(&self, size: [usize; 2], text: &Embedding) -> Geometry {
        Geometry {
            samples: 1,
            latent: [self.channels, size[0] / self.vae, size[1] / self.vae],
            text: text.hidden.dim().into(),
            added: text.pooled.as_ref().map(|pooled| Added {
                pooled: pooled.len(),
                size,
            }),
        }
    }
}
