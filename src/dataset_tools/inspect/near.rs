//! Pictures that look alike: saved anew, made smaller, or changed a little.
//!
//! A difference hash (N. Krawetz, "Kind of Like That", 2013) is 64 bits, one per pair of neighbours in a picture reduced to 9×8
//! greys: whether the right one is brighter, here by at least [`STEP`], or the noise of JPEG files would decide in flat parts of a
//! picture. Hashes that differ in at most [`NEAR`] bits count as alike. Of 64 bits cut into
//! four parts at least one is then equal, so that only hashes with an equal part have to be compared.

use std::collections::HashMap;

use image::RgbImage;
use image::imageops::{self, FilterType};

use crate::rng::PairId;

/// Bits by which hashes of pictures that look alike differ at most.
pub const NEAR: u32 = 3;

/// Steps of 255 that make a difference.
const STEP: u8 = 3;

/// Bits of a part; one more part than [`NEAR`] bits that differ.
const PART_BITS: u32 = 16;

/// Examples that are given.
const EXAMPLES: usize = 5;

/// The difference hash of a picture.
pub fn difference_hash(picture: &RgbImage) -> u64 {
    let grey = imageops::grayscale(picture);
    let small = imageops::resize(&grey, 9, 8, FilterType::Triangle);
    let mut hash = 0;
    for y in 0..8 {
        for x in 0..8 {
            let [left, right] = [x, x + 1].map(|x| small.get_pixel(x, y).0[0]);
            let is_brighter = right >= left.saturating_add(STEP);
            hash = hash << 1 | u64::from(is_brighter);
        }
    }
    hash
}

/// Hashes of different files.
#[derive(Default)]
pub(super) struct Near {
    /// How many pictures have a hash, and which was the first: pair and side.
    hashes: HashMap<u64, (u32, PairId, u8)>,
    /// Pictures whose hash an earlier one has.
    twins: Vec<[(PairId, u8); 2]>,
}

impl Near {
    pub fn add(&mut self, hash: u64, pair: PairId, side: usize) {
        let own = (pair, side as u8);
        let (count, first, first_side) = self.hashes.entry(hash).or_insert((0, own.0, own.1));
        *count += 1;
        if *count > 1 && self.twins.len() < EXAMPLES {
            self.twins.push([(*first, *first_side), own]);
        }
    }

    /// How many pictures look like another one, and examples.
    pub fn finish(self) -> (u64, Vec<String>) {
        let mut hashes: Vec<(u64, u32, PairId, u8)> = self
            .hashes
            .into_iter()
            .map(|(hash, (count, pair, side))| (hash, count, pair, side))
            .collect();
        let mut alike = vec![false; hashes.len()];
        let mut examples = self.twins;
        for part in 0..64 / PART_BITS {
            let of = |hash: u64| (hash >> (part * PART_BITS)) as u16;
            let mut order: Vec<u32> = (0..hashes.len() as u32).collect();
            order.sort_unstable_by_key(|&i| of(hashes[i as usize].0));
            for bucket in order.chunk_by(|&a, &b| of(hashes[a as usize].0) == of(hashes[b as usize].0)) {
                for (position, &a) in bucket.iter().enumerate() {
                    for &b in &bucket[position + 1..] {
                        let (one, other) = (hashes[a as usize], hashes[b as usize]);
                        if (one.0 ^ other.0).count_ones() > NEAR {
                            continue;
                        }
                        let is_new = !(alike[a as usize] && alike[b as usize]);
                        (alike[a as usize], alike[b as usize]) = (true, true);
                        if is_new && examples.len() < EXAMPLES {
                            examples.push([(one.2, one.3), (other.2, other.3)]);
                        }
                    }
                }
            }
        }
        let pictures = hashes.drain(..).zip(alike);
        let counted = pictures.filter(|((_, count, ..), alike)| *alike || *count > 1);
        let alike = counted.map(|((_, count, ..), _)| u64::from(count)).sum();
        (alike, examples.into_iter().map(example).collect())
    }
}

fn example([one, other]: [(PairId, u8); 2]) -> String {
    let name = |(pair, side): (PairId, u8)| {
        let which = ["first", "second"][usize::from(side)];
        format!("the {which} picture of row {}", pair.0)
    };
    format!("{} and {}", name(one), name(other))
}
