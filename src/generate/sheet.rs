//! The contact sheet: the first images at a glance, those of a prompt side by side.

use std::path::Path;

use image::RgbImage;

use super::record::ImageRecord;
use crate::picture::{Cell, Grid, write_png};
use crate::{Error, Result};

/// Most images on a sheet.
const IMAGES: usize = 96;

/// Most images in a row.
const COLUMNS: usize = 8;

/// Longest side of an image in memory, in pixels: a sheet shows no more.
const SIDE: u32 = 384;

/// Writes `contact-sheet.png` into `root`.
pub fn write(root: &Path, records: &[ImageRecord], images_per_prompt: usize) -> Result<()> {
    // Whole prompts in a row, as many as fit.
    let own = images_per_prompt.clamp(1, COLUMNS);
    let columns = (COLUMNS / own * own).min(records.len());
    let shown: Vec<&ImageRecord> = records
        .iter()
        .filter(|record| record.image_index < COLUMNS)
        .take(IMAGES)
        .collect();
    let images: Vec<RgbImage> = shown
        .iter()
        .map(|record| read(root, record))
        .collect::<Result<_>>()?;
    let cells: Vec<Cell> = images
        .iter()
        .zip(shown)
        .map(|(image, record)| Cell {
            image,
            // One caption is enough for the images of a prompt.
            caption: if images_per_prompt == 1 || record.image_index == 0 {
                &record.prompt
            } else {
                ""
            },
        })
        .collect();
    let sheet = Grid {
        cells,
        columns: columns.max(1),
        group: if own > 1 { own } else { 0 },
        ..Grid::default()
    };
    write_png(&root.join("contact-sheet.png"), &sheet.draw(), &[])
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
