//! Preference pairs on their way from a data set to a training batch.
//!
//! ```text
//! parquet shards ─► importer ─► decode, resize, crop ─► VAE moments ─┐
//!                          └─► caption ─► text embedding ────────────┴► encoding cache ─► loader ─► batch
//! ```

pub mod cache;
pub mod image;
mod pair;
mod pickapic;
mod shards;

pub use pair::{Pair, PairSource, Preference, Row, Rows};
pub use pickapic::PickAPic;
