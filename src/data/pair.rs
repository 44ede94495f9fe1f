//! What an importer delivers: rows of a preference data set, one at a time and in a fixed order.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::model_folder::ContentHash;
use crate::rng::PairId;

/// Which image of a pair people preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preference {
    /// The first image.
    First,
    /// The second image.
    Second,
    /// Neither.
    Tie,
}

/// One comparison of two images made for the same caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Row number over all files of the split, counted before anything is left out.
    pub id: PairId,
    /// The prompt both images were made for.
    pub caption: String,
    /// The two image files, undecoded, in the data set's order.
    pub images: [Vec<u8>; 2],
    /// What people said.
    pub preference: Preference,
    /// A scorer's values for the two images, where the data set has them.
    pub scores: Option<[f32; 2]>,
}

/// A row of the data set.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// A usable comparison; its images may still turn out not to decode.
    Pair(Pair),
    /// Nobody compared these images.
    Unlabelled(PairId),
    /// Something is wrong with the row: which, and what.
    Damaged(PairId, String),
}

/// The rows of a split, in order.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<Row>> + Send + 'a>;

/// A split of a preference data set. One implementation per data set format.
pub trait PairSource: Sync {
    /// Streams the rows in the order of their ids, which no setting changes.
    ///
    /// # Errors
    /// A file cannot be read or lacks what is needed.
    fn rows(&self) -> Result<Rows<'_>>;

    /// Rows of all files together.
    fn len(&self) -> u64;

    /// Whether there are no rows at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What tells quickly that nothing changed since the last time: names, sizes and times of the files.
    ///
    /// # Errors
    /// A file has gone.
    fn stamp(&self) -> Result<ContentHash>;

    /// Where a row lies, for messages: file and row within it.
    fn locate(&self, id: PairId) -> String;

    /// The folder or file that the user named.
    fn place(&self) -> String;
}
