//! The two halves of a VAE: images to the moments of their latents, latents to images.
//!
//! The denoiser sees `(latent − shift_factor) · scaling_factor` ([`LatentScaling`]); decoding undoes that first.

use image::RgbImage;
use ndarray::{Array4, ArrayD, ArrayView3, ArrayView4, Axis, Ix4};
use rayon::prelude::*;

use super::latent::{LatentScaling, Moments};
use super::network::Network;
use crate::model_folder::{Component, ModelFolder};
use crate::onnx::Model;
use crate::runtime::SessionOptions;
use crate::tensor::{DType, Tensor};
use crate::{Error, Result};

/// What a VAE computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VaePrecision {
    /// What it was exported in.
    #[default]
    AsExported,
    /// Single precision; weights of half precision are widened as they are loaded.
    Single,
}

impl VaePrecision {
    /// As a setting `vae_fp32` says it.
    pub fn of(vae_fp32: bool) -> Self {
        match vae_fp32 {
            true => Self::Single,
            false => Self::AsExported,
        }
    }

    fn load(
        self,
        model: &ModelFolder,
        half: Component,
        options: &SessionOptions,
        input: &str,
    ) -> Result<Network> {
        match self {
            Self::AsExported => Network::load(model, half, options, input),
            Self::Single => Network::load_in_single(model, half, options, input),
        }
    }

    /// Whether a VAE in the file `place` computes in half precision.
    fn is_half(self, place: &str) -> bool {
        // The file was loaded before: what is wrong with it would have been said.
        let has_halves = || Model::read(place).and_then(|model| model.has_halves());
        self == Self::AsExported && has_halves().unwrap_or(false)
    }

    /// The error that a VAE gives `what`.
    fn overflown(self, place: &str, what: &str) -> Error {
        let remedy = match self.is_half(place) {
            true => {
                "A VAE in half precision (fp16) overflows, SDXL's own does for most images: compute it in single precision \
                 with --vae-fp32 (runtime.vae_fp32: true), or take a repaired one such as sdxl-vae-fp16-fix."
            }
            false => {
                "It computes in single precision, so what it is given or its weights are damaged: check the adapter, or \
                 export the VAE again."
            }
        };
        Error::bad(place, what, remedy)
    }
}

/// Moments or latents from images.
#[derive(Debug)]
pub struct VaeEncoder {
    network: Network,
    precision: VaePrecision,
    /// The export gives means and log variances, one behind the other on the channel axis.
    moments: bool,
}

impl VaeEncoder {
    /// Loads the encoder of `model` for images of these heights and widths.
    ///
    /// # Errors
    /// The network is missing, takes other sizes, or is not a VAE encoder.
    pub fn load(
        model: &ModelFolder,
        options: &SessionOptions,
        precision: VaePrecision,
        sizes: &[[usize; 2]],
    ) -> Result<Self> {
        let network = precision.load(model, Component::VaeEncoder, options, "sample")?;
        let fixed = network.input("sample").map_or(&[][..], |input| &input.dims);
        for size in sizes {
            let sides = fixed.iter().skip(2).zip(size);
            if let Some((Some(fixed), side)) = sides
                .clone()
                .find(|(fixed, side)| fixed.is_some_and(|f| f != **side))
            {
                let (what, remedy) = match sizes.len() {
                    1 => (
                        format!("takes images of {fixed} pixels, but data.resolution is {side}"),
                        "Set data.resolution to that, or export the model with dynamic height and width.",
                    ),
                    _ => (
                        format!("takes images of {fixed} pixels only, which rules out data.buckets"),
                        "Leave data.buckets out, or export the model with dynamic height and width.",
                    ),
                };
                return Err(Error::bad(network.place(), what, remedy));
            }
        }
        let moments = network.has_output("latent_parameters");
        match moments || network.has_output("latent_sample") {
            true => Ok(Self {
                network,
                precision,
                moments,
            }),
            false => Err(network.missing_output("latent_parameters (nor latent_sample)")),
        }
    }

    /// Images of `pixels` that are encoded in one run, however many there are.
    pub fn images_at_once(pixels: usize) -> usize {
        (PIXELS_AT_ONCE / pixels.max(1)).max(1)
    }

    /// Encodes images (N,3,H,W) with values in [-1, 1].
    ///
    /// # Errors
    /// The model fails, or gives something else than latents or values that are no numbers.
    pub fn encode(&mut self, images: ArrayView4<f32>) -> Result<Vec<Moments>> {
        let pixels = images.len_of(Axis(2)) * images.len_of(Axis(3));
        let mut moments = Vec::with_capacity(images.len_of(Axis(0)));
        for part in images.axis_chunks_iter(Axis(0), Self::images_at_once(pixels)) {
            moments.extend(self.encode_at_once(part)?);
        }
        Ok(moments)
    }

    fn encode_at_once(&mut self, images: ArrayView4<f32>) -> Result<Vec<Moments>> {
        let output = match self.moments {
            true => "latent_parameters",
            false => "latent_sample",
        };
        let latents = run_on_images(&mut self.network, "sample", images, output)?;
        let channels = latents.len_of(Axis(1));
        if self.moments && channels % 2 != 0 {
            return Err(no_images(&self.network, output, latents.shape()));
        }
        if latents.iter().any(|value| !value.is_finite()) {
            let what = "gives values that are no numbers for an image";
            return Err(self.precision.overflown(self.network.place(), what));
        }
        let split = |latent: ArrayView3<f32>| match self.moments {
            true => {
                let (mean, logvar) = latent.split_at(Axis(0), channels / 2);
                Moments {
                    mean: mean.to_owned(),
                    logvar: Some(logvar.to_owned()),
                }
            }
            false => Moments {
                mean: latent.to_owned(),
                logvar: None,
            },
        };
        Ok(latents.outer_iter().map(split).collect())
    }
}

/// Pixels that are encoded or decoded in one run: a VAE needs a thousand bytes and more for each.
const PIXELS_AT_ONCE: usize = 512 * 1024;

/// Images from latents.
#[derive(Debug)]
pub struct VaeDecoder {
    network: Network,
    precision: VaePrecision,
    scaling: LatentScaling,
}

impl VaeDecoder {
    /// Loads the decoder of `model`.
    ///
    /// # Errors
    /// The network or its config is missing, or it is not a VAE decoder.
    pub fn load(model: &ModelFolder, options: &SessionOptions, precision: VaePrecision) -> Result<Self> {
        let network = precision.load(model, Component::VaeDecoder, options, "latent_sample")?;
        if !network.has_output("sample") {
            return Err(network.missing_output("sample"));
        }
        let scaling = LatentScaling::read(&model.config(Component::VaeDecoder)?)?;
        Ok(Self {
            network,
            precision,
            scaling,
        })
    }

    /// Height and width in latent units that the export fixes, if it does.
    pub fn fixed_size(&self) -> Option<[usize; 2]> {
        match self.network.input("latent_sample")?.dims.as_slice() {
            [_, _, Some(height), Some(width)] => Some([*height, *width]),
            _ => None,
        }
    }

    /// Decodes scaled latents (N,C,H,W), as the sampler leaves them.
    ///
    /// # Errors
    /// The network fails, or gives values that are no numbers or nothing but black, as VAEs in half precision do when
    /// they overflow.
    pub fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Vec<RgbImage>> {
        let unscaled = latents.mapv(|value| self.scaling.undo(value));
        let pixels = 64 * latents.len_of(Axis(2)) * latents.len_of(Axis(3));
        let at_once = (PIXELS_AT_ONCE / pixels.max(1)).max(1);
        let mut images = Vec::with_capacity(latents.len_of(Axis(0)));
        for part in unscaled.axis_chunks_iter(Axis(0), at_once) {
            let decoded = run_on_images(&mut self.network, "latent_sample", part, "sample")?;
            if decoded.len_of(Axis(1)) != 3 {
                return Err(no_images(&self.network, "sample", decoded.shape()));
            }
            let views: Vec<ArrayView3<f32>> = decoded.outer_iter().collect();
            let converted = views.into_par_iter().map(|view| self.to_image(view));
            images.extend(converted.collect::<Result<Vec<_>>>()?);
        }
        Ok(images)
    }

    /// (3,H,W) in [-1, 1] to bytes, rounded as diffusers does.
    fn to_image(&self, decoded: ArrayView3<f32>) -> Result<RgbImage> {
        if decoded.iter().any(|value| !value.is_finite()) {
            let what = "gives an image with values that are no numbers";
            return Err(self.precision.overflown(self.network.place(), what));
        }
        let (_, height, width) = decoded.dim();
        let image = RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let byte = |channel| {
                let value = decoded[(channel, y as usize, x as usize)];
                ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
            };
            image::Rgb([byte(0), byte(1), byte(2)])
        });
        let is_black = image.as_raw().iter().all(|byte| *byte == 0);
        match is_black && self.precision.is_half(self.network.place()) {
            true => Err(self
                .precision
                .overflown(self.network.place(), "gives an image that is black all over")),
            false => Ok(image),
        }
    }
}

/// Runs a network whose one input and wanted output are (N,C,H,W).
fn run_on_images(
    network: &mut Network,
    input: &'static str,
    values: ArrayView4<f32>,
    output: &str,
) -> Result<Array4<f32>> {
    let dtype = network.input(input).map_or(DType::F32, |i| i.dtype);
    let place = network.place().to_owned();
    let inputs = |indices: &[usize]| {
        let chosen: ArrayD<f32> = values.select(Axis(0), indices).into_dyn();
        Ok(vec![(input, Tensor::from_floats(&place, chosen, dtype)?)])
    };
    let made = network.run(values.len_of(Axis(0)), &inputs, &[output])?.remove(0);
    let shape = made.shape().to_vec();
    made.into_dimensionality::<Ix4>()
        .map_err(|_| no_images(network, output, &shape))
}

fn no_images(network: &Network, output: &str, shape: &[usize]) -> Error {
    let what = format!("gives {output} of shape {shape:?}, which is not what a VAE gives");
    Error::bad(
        network.place(),
        what,
        "Check that it is the VAE of a pipeline, exported by optimum.",
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::onnx::{Constant, Graph, TensorType, save};

    /// A pipeline folder whose decoder multiplies three of four latent channels by a number.
    fn decoder(folder: &Path, dtype: DType, factor: f64, precision: VaePrecision) -> VaeDecoder {
        let mut g = Graph::new("decoder", 17);
        let latent = g.add_input("latent_sample", TensorType::new(dtype, [1, 4, 2, 2]));
        let three = g.slice(latent, 1, 0, 3).unwrap();
        let factor = g.add_constant("factor", Constant::floats(dtype, &[1], &[factor]));
        let sample = g.mul(three, factor).unwrap();
        let sample = g.as_output(sample, "sample").unwrap();
        g.outputs.push(sample);
        std::fs::create_dir_all(folder.join("vae_decoder")).unwrap();
        save(&g, &folder.join("vae_decoder/model.onnx")).unwrap();
        std::fs::write(
            folder.join("vae_decoder/config.json"),
            r#"{"scaling_factor": 0.5, "shift_factor": 1.0}"#,
        )
        .unwrap();
        std::fs::write(
            folder.join("model_index.json"),
            r#"{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}"#,
        )
        .unwrap();
        let model = ModelFolder::open(folder).unwrap();
        VaeDecoder::load(&model, &SessionOptions::default(), precision).unwrap()
    }

    /// Two images of one value.
    fn decoded(dtype: DType, factor: f64, value: f32) -> Result<Vec<RgbImage>> {
        let folder = tempfile::tempdir().unwrap();
        let mut decoder = decoder(folder.path(), dtype, factor, VaePrecision::AsExported);
        decoder.decode(Array4::from_elem((2, 4, 2, 2), value).view())
    }

    #[test]
    fn in_single_precision_nothing_overflows() {
        let folder = tempfile::tempdir().unwrap();
        let decode = |factor: f64, value: f32| {
            let mut decoder = decoder(folder.path(), DType::F16, factor, VaePrecision::Single);
            decoder.decode(Array4::from_elem((2, 4, 2, 2), value).view())
        };
        // (1 / 0.5 + 1) · 60,000 is more than half precision holds, and white.
        assert!(
            decode(6e4, 1.0).unwrap()[0]
                .as_raw()
                .iter()
                .all(|byte| *byte == 255)
        );
        assert!(decode(-1.0, 1.0).is_ok());
        // The remedy is not to do what is done already.
        let error = decode(1.0, f32::NAN).unwrap_err().to_string();
        assert!(
            error.contains("computes in single precision") && !error.contains("--vae-fp32"),
            "{error}"
        );
    }

    #[test]
    fn latents_are_unscaled_and_values_become_bytes() {
        // (−0.25 / 0.5 + 1) · 0.5 = 0.25 is 0.625 of white: 159.4.
        let images = decoded(DType::F32, 0.5, -0.25).unwrap();
        assert_eq!(images.len(), 2);
        for image in &images {
            assert!(image.as_raw().iter().all(|byte| *byte == 159));
        }
        assert!(
            decoded(DType::F32, 9.0, 1.0).unwrap()[0]
                .as_raw()
                .iter()
                .all(|byte| *byte == 255)
        );
    }

    #[test]
    fn a_vae_that_overflows_in_half_precision_is_named() {
        for (factor, says) in [(6e4, "values that are no numbers"), (-1.0, "black all over")] {
            let error = decoded(DType::F16, factor, 1.0).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("--vae-fp32"), "{error}");
            assert!(error.contains("vae_decoder/model.onnx"), "{error}");
        }
        // Black can be meant; in single precision nothing overflows.
        assert!(decoded(DType::F32, -1.0, 1.0).is_ok());
    }
}
