//! Images to files, one thread beside the one that makes them.

use std::sync::mpsc::Receiver;

use image::RgbImage;
use rayon::prelude::*;

use super::folder::OutputFolder;
use super::plan::Settings;
use super::record::ImageRecord;
use crate::Result;
use crate::picture::{Parameters, write_png};

/// An image with its record.
pub struct Done {
    pub record: ImageRecord,
    pub image: RgbImage,
}

/// Writes what comes until no more comes. A record is noted when its image is on the disk.
pub fn write_all(receive: Receiver<Vec<Done>>, folder: &mut OutputFolder, settings: &Settings) -> Result<()> {
    for batch in receive {
        let root = folder.root().to_path_buf();
        batch.par_iter().try_for_each(|done| {
            let parameters = done
                .record
                .parameters(settings, done.image.dimensions())
                .to_string();
            let path = root.join(&done.record.file);
            write_png(&path, &done.image, &[(Parameters::KEYWORD, &parameters)])
        })?;
        for done in batch {
            folder.add(done.record)?;
        }
    }
    Ok(())
}
