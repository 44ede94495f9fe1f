//! The parallel half of filling the cache: rows are read, hashed and decoded while the model encodes.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use rayon::prelude::*;

use super::cache::Key;
use super::fill::view_key;
use super::image::{Prepared, decode};
use super::pair::{Pair, PairSource, Preference, Row};
use super::views::Views;
use crate::Result;
use crate::rng::PairId;

/// Rows that are decoded at once. With those waiting and being encoded, some 150 images are in memory.
const CHUNK: usize = 16;

/// Chunks that wait for the encoder.
pub(super) const CHUNKS_WAITING: usize = 2;

/// A row whose images are identified and, where the cache lacks them, decoded.
pub(super) enum Checked {
    Pair {
        pair: PairHead,
        images: [Key; 2],
        decoded: Vec<(Key, Result<Arc<Prepared>, String>)>,
    },
    Unlabelled(PairId),
    Damaged(PairId, String),
}

/// A pair without its image files.
pub(super) struct PairHead {
    pub id: PairId,
    pub caption: String,
    pub preference: Preference,
    pub scores: Option<[f32; 2]>,
}

/// Reads, hashes and decodes all rows in order and sends them in chunks.
pub(super) struct Decoder<'a> {
    pub source: &'a dyn PairSource,
    pub resolution: u32,
    pub keep_ties: bool,
    pub views: Views,
    /// Entries of the cache.
    pub present: HashSet<Key>,
    /// Images that were decoded in this pass.
    pub claimed: HashSet<Key>,
}

impl Decoder<'_> {
    /// Ends early, without a word, when nobody receives any more.
    pub fn run(mut self, send: &SyncSender<Result<Vec<Checked>>>) {
        let mut rows = match self.source.rows() {
            Ok(rows) => rows,
            Err(error) => return drop(send.send(Err(error))),
        };
        loop {
            let chunk: Result<Vec<Row>> = rows.by_ref().take(CHUNK).collect();
            let done = chunk.as_ref().map_or(true, Vec::is_empty);
            let checked = chunk.map(|rows| self.check(rows));
            if send.send(checked).is_err() || done {
                return;
            }
        }
    }

    fn check(&mut self, rows: Vec<Row>) -> Vec<Checked> {
        let hashed: Vec<(Row, Option<[Key; 2]>)> = rows
            .into_par_iter()
            .map(|row| match row {
                Row::Pair(pair) => {
                    let images = [0, 1].map(|i| Key::of(&[&pair.images[i]]));
                    (Row::Pair(pair), Some(images))
                }
                other => (other, None),
            })
            .collect();
        // One after the other, so that an image which several rows share is decoded once.
        let claimed: Vec<(Row, Option<[Key; 2]>, [bool; 2])> = hashed
            .into_iter()
            .map(|(row, images)| {
                let needed = matches!(&row, Row::Pair(pair) if self.needs(pair));
                let mut claim = |key| needed && self.lacks(key) && self.claimed.insert(key);
                let claim = images.map_or([false; 2], |keys| keys.map(&mut claim));
                (row, images, claim)
            })
            .collect();
        claimed
            .into_par_iter()
            .map(|(row, images, claim)| self.decode(row, images, claim))
            .collect()
    }

    fn needs(&self, pair: &Pair) -> bool {
        self.keep_ties || pair.preference != Preference::Tie
    }

    fn lacks(&self, image: Key) -> bool {
        self.views
            .all()
            .any(|view| !self.present.contains(&view_key(image, view)))
    }

    fn decode(&self, row: Row, images: Option<[Key; 2]>, claim: [bool; 2]) -> Checked {
        match (row, images) {
            (Row::Pair(pair), Some(images)) => {
                let claimed = (0..2).filter(|&i| claim[i]);
                let decoded = claimed.map(|i| {
                    let prepared = decode(&pair.images[i]).map(|rgb| Prepared::new(rgb, self.resolution));
                    let reason = |e| format!("the {} image {e}", ["first", "second"][i]);
                    (images[i], prepared.map(Arc::new).map_err(reason))
                });
                let decoded = decoded.collect();
                let Pair {
                    id,
                    caption,
                    preference,
                    scores,
                    ..
                } = pair;
                Checked::Pair {
                    pair: PairHead {
                        id,
                        caption,
                        preference,
                        scores,
                    },
                    images,
                    decoded,
                }
            }
            (Row::Pair(pair), None) => Checked::Damaged(pair.id, "has no images".into()),
            (Row::Unlabelled(id), _) => Checked::Unlabelled(id),
            (Row::Damaged(id, reason), _) => Checked::Damaged(id, reason),
        }
    }
}
