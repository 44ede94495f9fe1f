//! The order in which pairs are visited.
//!
//! Where all images are of one size, epoch e visits every pair once, in the order that the stream of (seed, e) shuffles them
//! into, and e is the number of the visit. With several sizes, the pairs that are computed together, a part of a batch, have to
//! be of one size. Every size then has an endless sequence of visits of its own, shuffled anew each time round, which is
//! cut into parts; epoch e takes of each size the parts that are whole by then (`⌊(e+1)·N/p⌋ − ⌊e·N/p⌋` of them), and shuffles the
//! parts. No pair is left out for good, and none is visited again before all others of its size were.

use std::collections::BTreeMap;

use super::dataset::Dataset;
use crate::rng::{Streams, Visit};

/// A pair's turn: its index in the data set, and which visit it is.
pub type Turn = (u32, Visit);

/// Orders the pairs of a data set, epoch by epoch.
#[derive(Debug)]
pub struct Order {
    streams: Streams,
    pairs: u32,
    /// Pairs that are computed together.
    part: u64,
    /// Indices by size, where there are several.
    sizes: Vec<Vec<u32>>,
}

impl Order {
    /// The order of `dataset`'s pairs, in parts of `part` pairs.
    pub fn new(dataset: &Dataset, streams: Streams, part: usize) -> Self {
        let mut sizes: BTreeMap<[usize; 2], Vec<u32>> = BTreeMap::new();
        let pairs = dataset.pairs().len() as u32;
        for index in 0..pairs {
            sizes
                .entry(dataset.latent_size(index as usize))
                .or_default()
                .push(index);
        }
        Self {
            streams,
            pairs,
            part: part.max(1) as u64,
            sizes: sizes.into_values().collect(),
        }
    }

    /// The turns of an epoch; there can be none where parts are larger than the data set.
    pub fn epoch(&self, epoch: u64) -> Vec<Turn> {
        match self.sizes.len() {
            0 | 1 => {
                let turn = |index| (index, Visit(epoch));
                self.shuffled(epoch).into_iter().map(turn).collect()
            }
            _ => self.parts(epoch),
        }
    }

    /// All indices as they are shuffled for a visit.
    fn shuffled(&self, visit: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.pairs).collect();
        self.streams.epoch_order(visit).shuffle(&mut order);
        order
    }

    fn parts(&self, epoch: u64) -> Vec<Turn> {
        let mut visits: BTreeMap<u64, Vec<Vec<u32>>> = BTreeMap::new();
        let mut parts: Vec<Vec<Turn>> = Vec::new();
        for (size, members) in self.sizes.iter().enumerate() {
            let count = members.len() as u64;
            let [first, end] = [epoch, epoch + 1].map(|e| e * count / self.part);
            for part in first..end {
                let turns = (part * self.part..(part + 1) * self.part).map(|position| {
                    let visit = position / count;
                    let orders = visits.entry(visit).or_insert_with(|| self.by_size(visit));
                    (orders[size][(position % count) as usize], Visit(visit))
                });
                parts.push(turns.collect());
            }
        }
        self.streams.part_order(epoch).shuffle(&mut parts);
        parts.concat()
    }

    /// The indices of each size as they are shuffled for a visit.
    fn by_size(&self, visit: u64) -> Vec<Vec<u32>> {
        let mut size_of = vec![0; self.pairs as usize];
        for (size, members) in self.sizes.iter().enumerate() {
            members.iter().for_each(|index| size_of[*index as usize] = size);
        }
        let mut orders = vec![Vec::new(); self.sizes.len()];
        for index in self.shuffled(visit) {
            orders[size_of[index as usize]].push(index);
        }
        orders
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Sizes of these numbers of pairs, in turn.
    fn order(counts: &[u32], part: u64) -> Order {
        let mut next = 0;
        let sizes = counts.iter().map(|count| {
            next += count;
            (next - count..next).collect()
        });
        Order {
            streams: Streams::new(3),
            sizes: sizes.collect(),
            pairs: counts.iter().sum(),
            part,
        }
    }

    #[test]
    fn parts_are_of_one_size_and_every_pair_has_its_turns() {
        let counts = [7, 3, 1, 12];
        let order = order(&counts, 4);
        let size_of = |index: u32| order.sizes.iter().position(|s| s.contains(&index)).unwrap();
        let mut visits: HashMap<u32, Vec<u64>> = HashMap::new();
        for epoch in 0..8 {
            let turns = order.epoch(epoch);
            assert_eq!(turns, order.epoch(epoch));
            for part in turns.chunks(4) {
                assert_eq!(part.len(), 4);
                assert!(
                    part.iter()
                        .all(|(index, _)| size_of(*index) == size_of(part[0].0))
                );
            }
            for (index, visit) in turns {
                visits.entry(index).or_default().push(visit.0);
            }
        }
        // 8 epochs of 7, 3, 1 and 12 pairs are whole numbers of parts.
        for index in 0..23 {
            let mut own = visits.remove(&index).unwrap();
            own.sort_unstable();
            assert_eq!(own, (0..8).collect::<Vec<u64>>(), "pair {index}");
        }
        assert_ne!(order.epoch(0), order.epoch(1));
    }

    #[test]
    fn one_size_is_shuffled_whole() {
        let order = order(&[5], 4);
        let turns = order.epoch(2);
        assert!(turns.iter().all(|(_, visit)| *visit == Visit(2)));
        assert_eq!(turns.len(), 5);
    }
}
