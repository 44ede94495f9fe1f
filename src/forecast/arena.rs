//! How much memory ONNX Runtime's arena comes to hold for a sequence of values.
//!
//! Values that come and go leave gaps that later ones do not fit into, so that an arena holds more than ever lives in it. This
//! repeats what `BFCArena` does (onnxruntime/core/framework/bfc_arena.cc): sizes in steps of 256 bytes, the smallest free chunk that
//! fits, a rest that is split off if it is large, neighbours that are merged when they are freed, and regions that double in
//! size. Regions are only counted as far as something was ever written there: pages that nobody touched take no memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use crate::onnx::BufferEvent;
use crate::runtime;

/// Chunks are multiples of it, in bytes.
const STEP: u64 = 256;
/// Size of the first region, in bytes.
const FIRST_REGION: u64 = 1 << 20;
/// Size up to which the next region is twice the last one, in bytes.
const LARGEST_DOUBLING: u64 = runtime::LARGEST_DOUBLING as u64;
/// A rest as large as this is always split off a chunk, in bytes.
const LARGEST_REST: u64 = 128 << 20;
/// Unit in which touched memory is counted, in bytes.
const PAGE: u64 = 1 << 16;

/// An arena that only keeps books.
#[derive(Debug)]
pub(super) struct Arena {
    /// Size of each chunk by its address, in use or not.
    chunks: BTreeMap<u64, u64>,
    /// Free chunks by bin, size and address.
    free: BTreeSet<(u32, u64, u64)>,
    /// First addresses of regions: chunks are never merged across them.
    starts: BTreeSet<u64>,
    end: u64,
    next_region: u64,
    /// Whether regions are as large as what is asked for, instead of doubling.
    exact: bool,
    touched: Touched,
}

/// Memory that was written to: disjoint stretches, by where they begin.
#[derive(Debug, Default)]
struct Touched {
    ends: BTreeMap<u64, u64>,
    bytes: u64,
}

impl Touched {
    fn add(&mut self, mut new: Range<u64>) {
        // From behind: those that begin before the new one ends, until one ends before it begins.
        while let Some((&start, &end)) = self.ends.range(..=new.end).next_back()
            && end >= new.start
        {
            if start <= new.start && new.end <= end {
                return;
            }
            self.ends.remove(&start);
            self.bytes -= end - start;
            new = start.min(new.start)..end.max(new.end);
        }
        self.bytes += new.end - new.start;
        self.ends.insert(new.start, new.end);
    }
}

impl Default for Arena {
    fn default() -> Self {
        Self {
            chunks: BTreeMap::new(),
            free: BTreeSet::new(),
            starts: BTreeSet::new(),
            end: 0,
            next_region: FIRST_REGION,
            exact: false,
            touched: Touched::default(),
        }
    }
}

impl Arena {
    /// One whose regions are as large as what is asked for (`kSameAsRequested`), as those on devices are told to be.
    pub fn exact() -> Self {
        Self {
            exact: true,
            ..Self::default()
        }
    }

    /// Bytes of all regions, touched or not: on a device they are taken when they are reserved.
    pub fn reserved(&self) -> u64 {
        self.end
    }

    /// Goes through the values of a run.
    pub fn run(&mut self, events: &[BufferEvent]) {
        let mut places: HashMap<usize, u64> = HashMap::new();
        for event in events {
            match *event {
                BufferEvent::Take { buffer, bytes } => {
                    if bytes > 0 {
                        places.insert(buffer, self.take(bytes as u64));
                    }
                }
                BufferEvent::Free { buffer } => {
                    if let Some(address) = places.remove(&buffer) {
                        self.give_back(address);
                    }
                }
            }
        }
        // What is left, callers hold until the next run.
        places.into_values().for_each(|address| self.give_back(address));
    }

    /// Bytes that were ever written to.
    pub fn touched(&self) -> u64 {
        self.touched.bytes
    }

    fn take(&mut self, bytes: u64) -> u64 {
        let wanted = bytes.next_multiple_of(STEP);
        let fitting = |arena: &Self| {
            let first = (bin(wanted), wanted, 0);
            arena
                .free
                .range(first..)
                .find(|(_, size, _)| *size >= wanted)
                .copied()
        };
        let found = match fitting(self) {
            Some(found) => found,
            None => self.extend(wanted),
        };
        self.free.remove(&found);
        let (_, size, address) = found;
        if size >= 2 * wanted || size - wanted >= LARGEST_REST {
            self.chunks.insert(address, wanted);
            self.add_free(address + wanted, size - wanted);
        }
        // What nobody asked for is not written to.
        self.touched
            .add(address / PAGE * PAGE..(address + bytes).next_multiple_of(PAGE));
        address
    }

    fn extend(&mut self, wanted: u64) -> (u32, u64, u64) {
        if self.exact {
            return self.add_region(wanted);
        }
        let grew = wanted > self.next_region;
        while wanted > self.next_region {
            self.next_region *= 2;
        }
        let size = self.next_region;
        if !grew && size < LARGEST_DOUBLING {
            self.next_region *= 2;
        }
        self.add_region(size)
    }

    fn add_region(&mut self, size: u64) -> (u32, u64, u64) {
        let address = self.end;
        self.starts.insert(address);
        self.end += size;
        self.add_free(address, size);
        (bin(size), size, address)
    }

    fn add_free(&mut self, address: u64, size: u64) {
        self.chunks.insert(address, size);
        self.free.insert((bin(size), size, address));
    }

    fn give_back(&mut self, mut address: u64) {
        let Some(mut size) = self.chunks.remove(&address) else {
            return;
        };
        let next = address + size;
        if let Some(&after) = self.chunks.get(&next).filter(|_| !self.starts.contains(&next))
            && self.free.remove(&(bin(after), after, next))
        {
            self.chunks.remove(&next);
            size += after;
        }
        let before = self.chunks.range(..address).next_back().map(|(a, s)| (*a, *s));
        if let Some((start, before)) = before.filter(|_| !self.starts.contains(&address))
            && self.free.remove(&(bin(before), before, start))
        {
            self.chunks.remove(&start);
            (address, size) = (start, before + size);
        }
        self.add_free(address, size);
    }
}

/// Chunks are looked for from the bin of the wanted size on: powers of two from 256 bytes.
fn bin(size: u64) -> u32 {
    (size / STEP).max(1).ilog2().min(20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(buffer: usize, bytes: usize) -> BufferEvent {
        BufferEvent::Take { buffer, bytes }
    }

    fn free(buffer: usize) -> BufferEvent {
        BufferEvent::Free { buffer }
    }

    const MB: usize = 1 << 20;

    #[test]
    fn stretches_that_meet_are_one() {
        let mut touched = Touched::default();
        for (range, bytes) in [
            (10..20, 10),
            (30..40, 20),
            (12..18, 20),
            (40..50, 30),
            (0..5, 35),
            (5..10, 40),
            (15..35, 50),
            (0..60, 60),
            (0..60, 60),
        ] {
            touched.add(range.clone());
            assert_eq!(touched.bytes, bytes, "{range:?}");
        }
        assert_eq!(touched.ends.len(), 1);
    }

    /// Page by page this took a minute and a half.
    #[test]
    fn terabytes_are_gone_through_at_once() {
        let started = std::time::Instant::now();
        let mut arena = Arena::default();
        let events: Vec<_> = (0..1000)
            .flat_map(|i| [take(2 * i, 1 << 40), take(2 * i + 1, 1 << 38), free(2 * i)])
            .collect();
        arena.run(&events);
        assert!(arena.touched() > 1 << 46);
        assert!(started.elapsed().as_secs() < 5);
    }

    #[test]
    fn exact_regions_are_as_large_as_what_is_asked_for() {
        let mut arena = Arena::exact();
        arena.run(&[take(0, 3 * MB), take(1, 5 * MB), free(0), take(2, 2 * MB)]);
        // The last one fits where the first was, and gets all of it.
        assert_eq!(arena.reserved(), 8 << 20);
    }

    #[test]
    fn freed_neighbours_make_room_for_something_larger() {
        let mut arena = Arena::default();
        let events = [
            take(0, 8 * MB),
            take(1, 4 * MB),
            take(2, 4 * MB),
            free(1),
            free(2),
            take(3, 8 * MB),
        ];
        arena.run(&events);
        // A region of 8 MB, then one of 8 MB for both small ones, which the last one fits into.
        assert_eq!(arena.touched(), 16 << 20);
    }

    #[test]
    fn what_is_left_between_values_is_a_gap() {
        let mut arena = Arena::default();
        let events = [
            take(0, 4 * MB),
            take(1, 2 * MB),
            take(2, 2 * MB),
            free(1),
            // Does not fit where the second value was.
            take(3, 3 * MB),
        ];
        arena.run(&events);
        assert_eq!(arena.touched(), 11 << 20);
        // The same again takes no more.
        let again = arena.touched();
        arena.run(&events);
        assert_eq!(arena.touched(), again);
    }

    #[test]
    fn a_chunk_is_handed_out_whole_unless_half_of_it_is_left() {
        let mut arena = Arena::default();
        arena.run(&[take(0, 16 * MB), free(0), take(1, 9 * MB), take(2, 6 * MB)]);
        // The rest of 7 MB stays with the second value, so that the third gets a region.
        assert_eq!(arena.touched(), 22 << 20);
    }
}
