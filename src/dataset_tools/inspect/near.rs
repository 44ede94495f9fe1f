//! Pictures that look alike: saved anew, made smaller, or changed a little.
//!
//! A difference hash (N. Krawetz, "Kind of Like That", 2013) is 64 bits, one per pair of neighbours in a picture reduced to 9×8
//! greys: whether the right one is brighter, here by at least [`STEP`], or the noise of JPEG files would decide in flat parts of a
//! picture. Hashes that differ in at most [`NEAR`] bits count as alike. Of 64 bits cut into
//! four parts at least one is then equal, so that only hashes with an equal part have to be compared.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use image::RgbImage;
use image::imageops::{self, FilterType};

use crate::data::{Place, SIDES};

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

/// Where a picture was first seen.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    place: Place,
    side: u8,
}

impl Spot {
    pub fn new(place: Place, side: usize) -> Self {
        Self {
            place,
            side: side as u8,
        }
    }
}

impl std::fmt::Display for Spot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", SIDES[usize::from(self.side)], self.place)
    }
}

/// Hashes of the different files of a split.
#[derive(Default)]
pub(super) struct Near {
    /// How many pictures have a hash, and where the first was.
    hashes: HashMap<u64, (u32, Spot)>,
    /// Pictures whose hash an earlier one has.
    twins: Vec<[Spot; 2]>,
}

/// How many pictures look like another one, and examples.
pub(super) type Alike = (u64, Vec<String>);

impl Near {
    pub fn add(&mut self, hash: u64, spot: Spot) {
        match self.hashes.entry(hash) {
            Entry::Vacant(entry) => drop(entry.insert((1, spot))),
            Entry::Occupied(mut entry) => {
                let (count, first) = entry.get_mut();
                *count += 1;
                if self.twins.len() < EXAMPLES {
                    self.twins.push([first.clone(), spot]);
                }
            }
        }
    }

    /// Pictures that look like another one of the split.
    pub fn within(&self) -> Alike {
        let mut found = Found::new(self.hashes.len());
        found.examples.extend(self.twins.iter().map(example));
        let all: Vec<_> = self.hashes.iter().collect();
        let hashes: Vec<u64> = all.iter().map(|(hash, _)| **hash).collect();
        each_near(&hashes, |a, b| {
            found.add(a, b, || [all[a].1.1.clone(), all[b].1.1.clone()]);
        });
        let counted = all.iter().zip(&found.alike);
        let counted = counted.filter(|((_, (count, _)), alike)| **alike || *count > 1);
        let pictures = counted.map(|((_, (count, _)), _)| u64::from(*count)).sum();
        (pictures, found.examples)
    }
}

/// Pictures that look like one of another split; among them those that are in both.
pub(super) fn across(splits: &[Near]) -> Alike {
    let of_split = |(split, near): (usize, &'_ Near)| {
        let hashes = near.hashes.iter();
        hashes
            .map(|(hash, (count, spot))| (split, *hash, *count, spot.clone()))
            .collect::<Vec<_>>()
    };
    let all: Vec<_> = splits.iter().enumerate().flat_map(of_split).collect();
    let hashes: Vec<u64> = all.iter().map(|(_, hash, ..)| *hash).collect();
    let mut found = Found::new(all.len());
    each_near(&hashes, |a, b| {
        if all[a].0 != all[b].0 {
            let (a, b) = (a.min(b), a.max(b));
            found.add(a, b, || [all[a].3.clone(), all[b].3.clone()]);
        }
    });
    let counted = all.iter().zip(&found.alike).filter(|(_, alike)| **alike);
    let pictures = counted.map(|((_, _, count, _), _)| u64::from(*count)).sum();
    (pictures, found.examples)
}

/// Hashes that have one near them.
struct Found {
    alike: Vec<bool>,
    examples: Vec<String>,
}

impl Found {
    fn new(hashes: usize) -> Self {
        Self {
            alike: vec![false; hashes],
            examples: Vec::new(),
        }
    }

    fn add(&mut self, a: usize, b: usize, spots: impl Fn() -> [Spot; 2]) {
        let is_new = !(self.alike[a] && self.alike[b]);
        (self.alike[a], self.alike[b]) = (true, true);
        if is_new && self.examples.len() < EXAMPLES {
            self.examples.push(example(&spots()));
        }
    }
}

/// Calls `near` with the positions of every two hashes that differ in at most [`NEAR`] bits, once or several times.
fn each_near(hashes: &[u64], mut near: impl FnMut(usize, usize)) {
    for part in 0..64 / PART_BITS {
        let of = |i: u32| (hashes[i as usize] >> (part * PART_BITS)) as u16;
        let mut order: Vec<u32> = (0..hashes.len() as u32).collect();
        order.sort_unstable_by_key(|&i| of(i));
        for bucket in order.chunk_by(|&a, &b| of(a) == of(b)) {
            for (position, &a) in bucket.iter().enumerate() {
                for &b in &bucket[position + 1..] {
                    let (a, b) = (a as usize, b as usize);
                    if (hashes[a] ^ hashes[b]).count_ones() <= NEAR {
                        near(a, b);
                    }
                }
            }
        }
    }
}

fn example([one, other]: &[Spot; 2]) -> String {
    format!("{one} and {other}")
}
