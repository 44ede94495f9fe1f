//! A contact sheet: pairs drawn at random, the preferred picture to the left.

use std::collections::BTreeMap;

use image::RgbImage;

use crate::data::image::decode;
use crate::data::{Pair, Preference};
use crate::picture::{Cell, Grid};
use crate::rng::{PairId, Purpose, Streams, Visit};

/// Pairs side by side.
const PAIRS_ABREAST: usize = 3;

/// Draws pairs while they pass.
pub struct Sheet {
    streams: Streams,
    pairs: usize,
    /// Pairs that passed.
    offered: u64,
    /// By a random number: those with the smallest stay.
    drawn: BTreeMap<[u8; 8], (Pair, [Vec<u8>; 2])>,
}

impl Sheet {
    /// A sheet of so many pairs; the same ones for the same seed.
    pub fn new(pairs: usize, seed: u64) -> Self {
        Self {
            streams: Streams::new(seed),
            pairs,
            offered: 0,
            drawn: BTreeMap::new(),
        }
    }

    pub(super) fn offer(&mut self, pair: Pair, mut files: [Vec<u8>; 2]) {
        let mut number = [0; 8];
        let id = PairId(self.offered);
        self.offered += 1;
        self.streams
            .pair(Purpose::Examples, id, Visit(0))
            .fill_bytes(&mut number);
        if self.drawn.len() >= self.pairs
            && self
                .drawn
                .last_key_value()
                .is_some_and(|(last, _)| number >= *last)
        {
            return;
        }
        if pair.preference == Preference::Second {
            files.swap(0, 1);
        }
        self.drawn.insert(number, (pair, files));
        if self.drawn.len() > self.pairs {
            self.drawn.pop_last();
        }
    }

    /// The sheet; `None` if no pair decodes.
    pub fn draw(&self, title: &str) -> Option<RgbImage> {
        let decoded = |(pair, files): &(Pair, [Vec<u8>; 2])| {
            let pictures = [decode(&files[0]).ok()?, decode(&files[1]).ok()?];
            Some((pair.caption.clone(), pair.preference, pictures))
        };
        let pairs: Vec<(String, Preference, [RgbImage; 2])> =
            self.drawn.values().filter_map(decoded).collect();
        if pairs.is_empty() {
            return None;
        }
        let mut cells = Vec::new();
        for (caption, preference, pictures) in &pairs {
            let other = if *preference == Preference::Tie {
                "(a tie: neither is preferred)"
            } else {
                ""
            };
            cells.push(Cell {
                image: &pictures[0],
                caption,
            });
            cells.push(Cell {
                image: &pictures[1],
                caption: other,
            });
        }
        let abreast = pairs.len().min(PAIRS_ABREAST);
        let grid = Grid {
            title,
            headings: ["preferred", "other"].repeat(abreast),
            cells,
            columns: 2 * abreast,
            group: 2,
        };
        Some(grid.draw())
    }
}
