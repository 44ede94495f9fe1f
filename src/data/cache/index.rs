//! Where entries lie, in as little memory as that takes: millions of images have several entries each.

use std::collections::HashMap;
use std::sync::Arc;

use super::record::{Key, Record};

/// Where an entry lies, and what it must sum to. Shards end soon after 1 GiB, so that 32 bits are enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    pub shard: u32,
    offset: u32,
    len: u32,
    /// CRC-32C of the payload.
    pub checksum: u32,
}

impl Location {
    /// `None` for what no shard of ours holds.
    pub fn of(shard: u32, record: &Record) -> Option<Self> {
        Some(Self {
            shard,
            offset: u32::try_from(record.offset).ok()?,
            len: u32::try_from(record.len).ok()?,
            checksum: record.checksum,
        })
    }

    /// Its bytes in the shard.
    pub fn range(self) -> std::ops::Range<usize> {
        let start = self.offset as usize;
        start..start.saturating_add(self.len as usize)
    }
}

/// Entries that came or went since the others were put in order, before they are put in order as well.
const RECENT: usize = 1 << 16;

/// Locations by key.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// In the order of keys, each once.
    sorted: Arc<Vec<(Key, Location)>>,
    /// What is not in there yet; `None` for what is to be forgotten.
    recent: HashMap<Key, Option<Location>>,
    len: usize,
}

/// The entries of an index at one time. It takes no memory of its own.
#[derive(Debug, Clone, Default)]
pub struct Snapshot(Arc<Vec<(Key, Location)>>);

impl Snapshot {
    /// Whether there was an entry.
    pub fn contains(&self, key: Key) -> bool {
        find(&self.0, key).is_some()
    }

    /// Keys of the entries.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.0.iter().map(|(key, _)| *key)
    }
}

fn find(sorted: &[(Key, Location)], key: Key) -> Option<Location> {
    let found = sorted.binary_search_by_key(&key, |(key, _)| *key).ok()?;
    Some(sorted[found].1)
}

impl Index {
    /// The index of these entries, of which the later of two of one key holds.
    pub fn of(mut entries: Vec<(Key, Location)>) -> Self {
        // Stable, so that the last of equal keys is the latest.
        entries.sort_by_key(|(key, _)| *key);
        entries.reverse();
        entries.dedup_by_key(|(key, _)| *key);
        entries.reverse();
        entries.shrink_to_fit();
        Self {
            len: entries.len(),
            sorted: Arc::new(entries),
            recent: HashMap::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, key: Key) -> Option<Location> {
        match self.recent.get(&key) {
            Some(recent) => *recent,
            None => find(&self.sorted, key),
        }
    }

    /// Puts or, with `None`, removes an entry.
    pub fn put(&mut self, key: Key, location: Option<Location>) {
        let was = self.get(key).is_some();
        self.len = self.len + usize::from(location.is_some()) - usize::from(was);
        self.recent.insert(key, location);
        if self.recent.len() > RECENT.max(self.sorted.len() / 8) {
            self.settle();
        }
    }

    /// The entries as they are.
    pub fn snapshot(&mut self) -> Snapshot {
        if !self.recent.is_empty() {
            self.settle();
        }
        Snapshot(self.sorted.clone())
    }

    fn settle(&mut self) {
        let recent = std::mem::take(&mut self.recent);
        let kept = self.sorted.iter().filter(|(key, _)| !recent.contains_key(key));
        let mut all: Vec<(Key, Location)> = Vec::with_capacity(self.len);
        all.extend(kept);
        all.extend(
            recent
                .iter()
                .filter_map(|(key, location)| Some((*key, (*location)?))),
        );
        all.sort_unstable_by_key(|(key, _)| *key);
        self.sorted = Arc::new(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u32, checksum: u32) -> (Key, Location) {
        let record = Record {
            key: Key::of(&[&n.to_le_bytes()]),
            offset: u64::from(n),
            len: 3,
            checksum,
        };
        (record.key, Location::of(7, &record).unwrap())
    }

    /// What an entry takes once all are in order; four million take 128 MB.
    #[test]
    fn an_entry_takes_32_bytes() {
        assert_eq!(size_of::<(Key, Location)>(), 32);
        let index = Index::of((0..1000).map(|n| entry(n, 0)).collect());
        assert_eq!((index.sorted.capacity(), index.recent.capacity()), (1000, 0));
    }

    #[test]
    fn the_later_of_two_entries_holds_and_what_is_forgotten_is_gone() {
        let mut index = Index::of(
            (0..50)
                .chain(0..25)
                .map(|n| entry(n, n % 2))
                .chain([entry(3, 9)])
                .collect(),
        );
        assert_eq!(index.len(), 50);
        assert_eq!(index.get(entry(3, 0).0).unwrap().checksum, 9);
        let before = index.snapshot();
        index.put(entry(3, 0).0, None);
        index.put(entry(60, 4).0, Some(entry(60, 4).1));
        index.put(entry(60, 5).0, Some(entry(60, 5).1));
        for settled in [false, true] {
            if settled {
                index.settle();
            }
            assert_eq!(index.len(), 50);
            assert!(index.get(entry(3, 0).0).is_none());
            assert_eq!(index.get(entry(60, 0).0), Some(entry(60, 5).1));
        }
        assert!(before.contains(entry(3, 0).0) && !before.contains(entry(60, 0).0));
        assert!(index.snapshot().contains(entry(60, 0).0));
        for n in 100..100 + 2 * RECENT as u32 {
            index.put(entry(n, 1).0, Some(entry(n, 1).1));
        }
        assert_eq!(index.len(), 50 + 2 * RECENT);
        assert!(index.recent.len() <= RECENT);
    }
}
