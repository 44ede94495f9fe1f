//! PNG files with texts in them.

use std::path::Path;

use image::RgbImage;

use crate::fsutil::write_atomically;
use crate::{Error, Result};

/// Writes `image` with `(keyword, text)` pairs, whole or not at all.
pub fn write(path: &Path, image: &RgbImage, texts: &[(&str, &str)]) -> Result<()> {
    let bytes = encode(image, texts).map_err(|error| {
        Error::bad(
            path.display().to_string(),
            format!("cannot be encoded as a PNG: {error}"),
            "Make images of another size.",
        )
    })?;
    write_atomically(path, &bytes)
}

fn encode(image: &RgbImage, texts: &[(&str, &str)]) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    for (keyword, text) in texts {
        // Latin-1 is what most readers look for; other scripts need the newer kind of chunk.
        match text.chars().all(|c| u32::from(c) < 0x100) {
            true => encoder.add_text_chunk((*keyword).to_owned(), (*text).to_owned())?,
            false => encoder.add_itxt_chunk((*keyword).to_owned(), (*text).to_owned())?,
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}
