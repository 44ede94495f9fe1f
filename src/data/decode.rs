//! The parallel half of filling the cache: rows are read, hashed and decoded while the model encodes.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use rayon::prelude::*;

use super::buckets::Buckets;
use super::cache::{Key, Snapshot};
use super::fill::view_key;
use super::image::{Prepared, Size, decode, upright_size};
use super::pair::{Content, Pair, PairSource, Place, Preference, Row, SIDES, files};
use super::views::Views;
use crate::Result;
use crate::rng::PairId;

/// Rows that are decoded at once. With those waiting and being encoded, some 150 images are in memory.
const CHUNK: usize = 16;

/// Chunks that wait for the encoder.
pub(super) const CHUNKS_WAITING: usize = 2;

/// A row that was looked at.
pub(super) struct Checked {
    pub id: PairId,
    pub place: Place,
    pub finding: Finding,
}

/// What a row turned out to be.
pub(super) enum Finding {
    /// Images are identified and, where the cache lacks them, decoded.
    Pair {
        pair: PairHead,
        images: [Key; 2],
        /// Of the images as they are in their files, upright.
        originals: [Size; 2],
        decoded: Vec<(Key, Result<Arc<Prepared>, String>)>,
    },
    Unlabelled,
    Damaged(String),
}

/// A pair without its image files.
pub(super) struct PairHead {
    pub caption: String,
    pub preference: Preference,
    pub scores: Option<[f32; 2]>,
}

/// Reads, hashes and decodes all rows in order and sends them in chunks.
pub(super) struct Decoder<'a> {
    pub source: &'a dyn PairSource,
    pub buckets: &'a Buckets,
    pub keep_ties: bool,
    pub views: Views,
    /// Entries that the cache had at the beginning.
    pub present: Snapshot,
    /// Images that were decoded in this pass, and for which size.
    pub claimed: HashSet<(Key, Size)>,
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
            let checked = chunk.and_then(|rows| self.check(rows));
            if send.send(checked).is_err() || done {
                return;
            }
        }
    }

    fn check(&mut self, rows: Vec<Row>) -> Result<Vec<Checked>> {
        let read: Vec<(PairId, Place, Read)> = rows
            .into_par_iter()
            .map(|row| Ok((row.id, row.place, read(row.content)?)))
            .collect::<Result<_>>()?;
        // One after the other, so that an image which several rows share is decoded once.
        let claimed: Vec<_> = read
            .into_iter()
            .map(|(id, place, read)| {
                let buckets = self.buckets;
                let mut claim = |head: &PairHead, key, size| {
                    self.needs(head) && self.lacks(key, size) && self.claimed.insert((key, size))
                };
                let claim = match &read {
                    Read::Pair {
                        head,
                        images,
                        originals,
                        ..
                    } => {
                        let size = buckets.of_pair(*originals);
                        images.map(|key| claim(head, key, size))
                    }
                    Read::Other(_) => [false; 2],
                };
                (id, place, read, claim)
            })
            .collect();
        let decoded = claimed.into_par_iter().map(|(id, place, read, claim)| Checked {
            id,
            place,
            finding: self.decode(read, claim),
        });
        Ok(decoded.collect())
    }

    fn needs(&self, pair: &PairHead) -> bool {
        self.keep_ties || pair.preference != Preference::Tie
    }

    fn lacks(&self, image: Key, size: Size) -> bool {
        self.views
            .all()
            .any(|view| !self.present.contains(view_key(image, size, view)))
    }

    fn decode(&self, read: Read, claim: [bool; 2]) -> Finding {
        let (head, images, originals, files) = match read {
            Read::Pair {
                head,
                images,
                originals,
                files,
            } => (head, images, originals, files),
            Read::Other(finding) => return finding,
        };
        let size = self.buckets.of_pair(originals);
        let claimed = (0..2).filter(|&i| claim[i]);
        let decoded = claimed.map(|i| {
            let prepared = decode(&files[i]).map(|rgb| Prepared::new(rgb, size));
            let reason = |e| format!("{} {e}", SIDES[i]);
            (images[i], prepared.map(Arc::new).map_err(reason))
        });
        Finding::Pair {
            decoded: decoded.collect(),
            pair: head,
            images,
            originals,
        }
    }
}

/// A row whose image files were read.
enum Read {
    Pair {
        head: PairHead,
        images: [Key; 2],
        originals: [Size; 2],
        files: [Vec<u8>; 2],
    },
    Other(Finding),
}

/// An error only where a whole shard is gone.
fn read(content: Content) -> Result<Read> {
    let pair = match content {
        Content::Pair(pair) => pair,
        Content::Unlabelled(_) => return Ok(Read::Other(Finding::Unlabelled)),
        Content::Damaged(reason) => return Ok(Read::Other(Finding::Damaged(reason))),
    };
    let Pair {
        caption,
        images,
        preference,
        scores,
    } = pair;
    Ok(match files(images)? {
        Ok(files) => Read::Pair {
            head: PairHead {
                caption,
                preference,
                scores,
            },
            images: [0, 1].map(|i| Key::of(&[&files[i]])),
            originals: [0, 1].map(|i| upright_size(&files[i])),
            files,
        },
        Err(reason) => Read::Other(Finding::Damaged(reason)),
    })
}
