//! PNG files with text in them.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use image::RgbImage;

use crate::fsutil::write_atomically_with;
use crate::{Error, Result};

/// Writes an 8-bit RGB file with `(keyword, text)` pairs, whole or not at all.
///
/// Text that Latin-1 has no letters for goes into the UTF-8 kind of chunk (`iTXt`), other into `tEXt`, as Pillow does.
///
/// # Errors
/// The file cannot be written.
///
/// # Panics
/// If the image has no pixels, or a keyword is not 1 to 79 characters of Latin-1: the caller's mistakes.
pub fn write_png(path: &Path, image: &RgbImage, text: &[(&str, &str)]) -> Result<()> {
    assert!(image.width() > 0 && image.height() > 0, "an image has pixels");
    write_atomically_with(path, |file| {
        encode(file, image, text).map_err(|error| match error {
            png::EncodingError::IoError(error) => error,
            other => panic!("an RGB image with short keywords can be encoded: {other}"),
        })
    })
}

fn encode(
    file: impl std::io::Write,
    image: &RgbImage,
    text: &[(&str, &str)],
) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(file, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    for (keyword, text) in text {
        // The byte that ends a chunk's keyword cannot be text.
        let (keyword, text) = ((*keyword).to_owned(), text.replace('\0', "\u{fffd}"));
        if text.chars().all(|letter| u32::from(letter) < 0x100) {
            encoder.add_text_chunk(keyword, text)?;
        } else {
            encoder.add_itxt_chunk(keyword, text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()
}

/// The `(keyword, text)` pairs of a PNG file, of all three kinds of chunk, wherever they stand in it.
///
/// # Errors
/// The file cannot be read, or is no PNG file.
pub fn read_png_text(path: &Path) -> Result<Vec<(String, String)>> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let damaged = |error: png::DecodingError| {
        Error::bad(
            path.display().to_string(),
            format!("cannot be read as a PNG file: {error}"),
            "It may be incomplete or of another format: copy or make it again.",
        )
    };
    let mut reader = png::Decoder::new(BufReader::new(file))
        .read_info()
        .map_err(damaged)?;
    reader.finish().map_err(damaged)?;
    let info = reader.info();
    let mut pairs = Vec::new();
    for chunk in &info.uncompressed_latin1_text {
        pairs.push((chunk.keyword.clone(), chunk.text.clone()));
    }
    for chunk in &info.compressed_latin1_text {
        pairs.push((chunk.keyword.clone(), chunk.get_text().map_err(damaged)?));
    }
    for chunk in &info.utf8_text {
        pairs.push((chunk.keyword.clone(), chunk.get_text().map_err(damaged)?));
    }
    Ok(pairs)
}
