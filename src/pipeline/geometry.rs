//! The shapes that a pipeline folder's configuration files declare, before any of its networks is loaded.

use super::denoiser::{Added, Geometry};
use super::micro::TIME_IDS;
use crate::model_folder::{Component, JsonFile, ModelFolder};
use crate::{Error, Result};

/// CLIP's context, for folders without a text encoder.
const CLIP_TOKENS: usize = 77;
/// Pixels per latent of Stable Diffusion's autoencoders, for folders without one.
const SD_PIXELS: usize = 8;

/// Shapes of `samples` samples with latents of `latent` (height, width), or of the size that the denoiser was made for.
///
/// # Errors
/// A configuration file lacks what Stable Diffusion's have.
pub fn declared(folder: &ModelFolder, samples: usize, latent: Option<[usize; 2]>) -> Result<Geometry> {
    let unet = folder.config(folder.denoiser()?)?;
    let latent = match (latent, unet.get("sample_size").and_then(|v| v.as_array())) {
        (Some(size), _) => size,
        (None, Some(sides)) => {
            let side = |i: usize| sides.get(i).and_then(|v| v.as_u64());
            match (side(0), side(1)) {
                (Some(height), Some(width)) => [height as usize, width as usize],
                _ => return Err(no_size(&unet)),
            }
        }
        (None, None) => [natural(&unet, "sample_size")?; 2],
    };
    let tokens = match folder.config(Component::TextEncoder) {
        Ok(config) => natural(&config, "max_position_embeddings")?,
        Err(_) => CLIP_TOKENS,
    };
    Ok(Geometry {
        samples,
        latent: [natural(&unet, "in_channels")?, latent[0], latent[1]],
        text: [tokens, natural(&unet, "cross_attention_dim")?],
        added: added(&unet, latent, pixels_per_latent(folder))?,
    })
}

/// Pixels along a side of one latent.
pub fn pixels_per_latent(folder: &ModelFolder) -> usize {
    let parts = [Component::VaeEncoder, Component::VaeDecoder];
    let config = parts.iter().find_map(|part| folder.config(*part).ok());
    let channels = config
        .as_ref()
        .and_then(|c| c.get("block_out_channels")?.as_array());
    channels.map_or(SD_PIXELS, |levels| 1 << levels.len().saturating_sub(1))
}

/// What SDXL's denoiser takes besides.
fn added(unet: &JsonFile, latent: [usize; 2], pixels: usize) -> Result<Option<Added>> {
    // Some exporters leave the type out; the width is there wherever such conditions are.
    let kind = unet.get("addition_embed_type").and_then(|v| v.as_str());
    let width = unet.get("projection_class_embeddings_input_dim");
    if !matches!(kind, None | Some("text_time")) || width.is_none_or(|w| w.is_null()) {
        return Ok(None);
    }
    let all = natural(unet, "projection_class_embeddings_input_dim")?;
    let ids = TIME_IDS * natural(unet, "addition_time_embed_dim")?;
    Ok(Some(Added {
        pooled: all.saturating_sub(ids),
        size: latent.map(|side| pixels * side),
    }))
}

fn natural(config: &JsonFile, key: &str) -> Result<usize> {
    let number = config.number(key)?;
    match number.fract() == 0.0 && number >= 1.0 {
        true => Ok(number as usize),
        false => Err(Error::bad(
            config.path().display().to_string(),
            format!("`{key}` is {number}"),
            "It must be a natural number.",
        )),
    }
}

fn no_size(config: &JsonFile) -> Error {
    Error::bad(
        config.path().display().to_string(),
        "`sample_size` is a list without height and width",
        "Write a number, or [height, width].",
    )
}
