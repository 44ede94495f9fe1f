//! Preference pairs on their way from a data set to a training batch.
//!
//! ```text
//! files, folders  ─► importer ─► decode, resize, crop ─► VAE moments ─┐
//!                          └─► caption ─► text embedding ────────────┴► encoding cache ─► loader ─► batch
//! ```
//!
//! [`open`] finds a split, [`Dataset::prepare`] encodes it once and for all, [`Loader`] hands out batches.

mod buckets;
pub mod cache;
mod dataset;
#[cfg(test)]
mod dataset_tests;
mod decode;
mod encoder;
mod fill;
pub mod image;
pub mod import;
mod loader;
#[cfg(test)]
mod loader_tests;
mod onnx_encoders;
mod order;
mod pair;
pub(crate) mod parquet_file;
mod picture;
mod shard_files;
mod shards;
mod table;
#[cfg(test)]
mod testing;
mod views;

use crate::Result;
use crate::config::data::{DataConfig, DataKind, Ties};

pub use buckets::Buckets;
pub use dataset::Dataset;
pub use encoder::{CaptionEncoder, Encoders, Identity, ImageEncoder};
pub use fill::{EncodeOptions, OnProgress, Progress, Stage};
pub use import::{Images, ParquetPairs};
pub use loader::{BatchPair, Loader, LoaderState, PairBatch};
pub use onnx_encoders::OnnxEncoders;
pub use pair::{At, Content, Pair, PairSource, Pictures, Place, Preference, Row, Rows, SIDES, note_on_files};
pub use picture::Picture;
pub(crate) use shard_files::ShardFiles;
pub use table::{Counts, PairRow};
pub use views::Views;

/// Splits that serve as held-out ones, the best first.
const HELDOUT_SPLITS: [&str; 3] = ["heldout", "validation", "test"];

/// Which part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What is trained on.
    Train,
    /// What is evaluated on.
    Heldout,
}

/// Opens a part of the configured data set; `None` if no split serves as held-out one and none was named.
///
/// # Errors
/// The files are missing or are not what the format says.
pub fn open(config: &DataConfig, part: Part) -> Result<Option<Box<dyn PairSource>>> {
    let split = match part {
        Part::Train => Some(config.split.clone()),
        Part::Heldout if config.kind == DataKind::Rated => None,
        Part::Heldout => match &config.heldout_split {
            Some(split) => Some(split.clone()),
            None => {
                let there = import::splits(config.kind, &config.path)?.names;
                let found = HELDOUT_SPLITS
                    .iter()
                    .find(|split| there.iter().any(|s| s == *split));
                found.map(|split| (*split).to_owned())
            }
        },
    };
    let open = |split: String| import::open(config.kind, &config.path, &split, config.choose);
    split.map(open).transpose()
}

impl EncodeOptions {
    /// How the configuration wants a part encoded: held-out pairs have one view each and no ties.
    pub fn new(config: &DataConfig, part: Part) -> Self {
        let train = part == Part::Train;
        Self {
            resolution: config.resolution,
            buckets: config.buckets,
            micro_conditioning: config.micro_conditioning,
            views: match train {
                true => Views {
                    crops: config.crops,
                    flip: config.flip,
                },
                false => Views::default(),
            },
            independent_views: config.independent_views,
            keep_ties: train && config.ties != Ties::Drop,
            max_skipped_share: config.max_skipped_share,
            batch: config.encode_batch,
            verify: config.verify_cache,
        }
    }
}
