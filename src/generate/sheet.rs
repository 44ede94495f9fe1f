//! The contact sheet: the first images at a glance, a prompt to a row where it has several.

use std::path::Path;

use image::{RgbImage, imageops};

use super::png;
use super::record::ImageRecord;
use crate::{Error, Result};

/// Most images on a sheet.
const IMAGES: usize = 96;

/// Images in a row of prompts that have one each, and most in any row.
const COLUMNS: usize = 8;

/// Longest side of an image on the sheet, in pixels.
const SIDE: u32 = 256;

/// Pixels between images.
const GAP: u32 = 2;

/// Writes `contact-sheet.png` into `root`.
pub fn write(root: &Path, records: &[ImageRecord], images_per_prompt: usize) -> Result<()> {
    let columns = match images_per_prompt {
        1 => COLUMNS.min(records.len()),
        several => several.min(COLUMNS),
    };
    let shown = records.iter().filter(|r| r.image_index < COLUMNS).take(IMAGES);
    let images: Vec<RgbImage> = shown.map(|record| read(root, record)).collect::<Result<_>>()?;
    png::write(
        &root.join("contact-sheet.png"),
        &tiled(&images, columns.max(1)),
        &[],
    )
}

fn tiled(images: &[RgbImage], columns: usize) -> RgbImage {
    let widest = |side: fn(&RgbImage) -> u32| images.iter().map(side).max().unwrap_or(1) + GAP;
    let (width, height) = (widest(RgbImage::width), widest(RgbImage::height));
    let rows = images.len().div_ceil(columns);
    let mut sheet = RgbImage::from_pixel(
        width * columns as u32 + GAP,
        height * rows as u32 + GAP,
        image::Rgb([255; 3]),
    );
    for (i, image) in images.iter().enumerate() {
        let x = GAP + width * (i % columns) as u32;
        let y = GAP + height * (i / columns) as u32;
        imageops::replace(&mut sheet, image, x.into(), y.into());
    }
    sheet
}

fn read(root: &Path, record: &ImageRecord) -> Result<RgbImage> {
    let path = root.join(&record.file);
    let image = image::open(&path).map_err(|error| {
        Error::bad(
            path.display().to_string(),
            format!("is no image any more: {error}"),
            "Delete it; the same command makes it anew.",
        )
    })?;
    Ok(match image.width().max(image.height()) > SIDE {
        true => image.thumbnail(SIDE, SIDE).to_rgb8(),
        false => image.to_rgb8(),
    })
}
