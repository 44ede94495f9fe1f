//! What is known of a split once it was read through: which rows are usable, and the cache keys of what they
//! need. Kept beside the cache, so that a second run reads neither images nor captions again.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cache::Key;
use super::image::Size;
use super::pair::{Place, Preference};
use crate::fsutil::write_atomically;
use crate::rng::PairId;
use crate::{Error, Result};

/// Changes whenever the same files would give another table; part of its name.
pub(super) const IMPORTER_VERSION: u32 = 2;

/// Damaged rows that are described one by one.
const EXAMPLES: usize = 5;

/// How many rows there were, and what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Rows of all files.
    pub rows: u64,
    /// Pairs to train or evaluate on.
    pub pairs: u64,
    /// Rows whose images were found equally good, whether or not they are among the pairs.
    pub ties: u64,
    /// Rows that nobody labelled.
    pub unlabelled: u64,
    /// Rows left out because an image, the caption or the label is damaged.
    pub skipped: u64,
    /// Different captions of the pairs.
    pub captions: u64,
    /// Those of them that the tokenizer had to cut.
    pub truncated_captions: u64,
}

/// A usable pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairRow {
    /// Row number over all files of the split.
    pub id: PairId,
    /// Which image is preferred.
    pub preference: Preference,
    /// Index into [`Table::captions`].
    pub caption: u32,
    /// A scorer's values for the two images.
    pub scores: Option<[f32; 2]>,
    /// Hashes of the two image files.
    pub(super) images: [Key; 2],
    /// Sizes of the two images in their files, upright.
    pub originals: [Size; 2],
}

/// A split that was read through.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Table {
    /// Hash over captions, labels and image files of all rows, in hexadecimal.
    pub hash: String,
    pub counts: Counts,
    /// Why rows were skipped, for the first few.
    pub examples: Vec<String>,
    pub captions: Vec<String>,
    /// In the order of their ids.
    pub pairs: Vec<PairRow>,
}

impl Table {
    /// Counts a row that cannot be used.
    pub fn skip(&mut self, place: &Place, reason: &str) {
        self.counts.skipped += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(format!("{place}: {reason}"));
        }
    }

    /// Reads a table; `None` if there is none or it is damaged, since it can be made again.
    pub fn load(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
        let text = serde_json::to_vec(self).map_err(|e| Error::io(path, "write")(e.into()))?;
        write_atomically(path, &text)
    }
}
