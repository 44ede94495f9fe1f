//! Index records: where an entry lies and what it must sum to. All numbers little-endian.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Name of an entry: the first 16 bytes of a BLAKE3 hash over everything that shaped it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 16]);

impl Key {
    /// Key over several parts; moving a byte from one part to the next gives another key.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let mut key = [0; 16];
        hasher.finalize_xof().fill(&mut key);
        Self(key)
    }

    /// The bytes, to derive further keys from.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let number = u128::from_str_radix(&text, 16).map_err(serde::de::Error::custom)?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// Where an entry lies in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub key: Key,
    pub offset: u64,
    pub len: u64,
    /// CRC-32C of the payload.
    pub checksum: u32,
}

impl Record {
    /// Key, offset, length, checksum of the payload, checksum of the record.
    pub const BYTES: usize = 16 + 8 + 8 + 4 + 4;

    /// First byte behind the payload.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.key.0);
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.len.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.checksum.to_le_bytes());
        let own = crc32c::crc32c(&bytes[..36]);
        bytes[36..].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    /// `None` if the record is damaged.
    fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let (key, rest) = bytes.split_first_chunk::<16>()?;
        let (offset, rest) = rest.split_first_chunk::<8>()?;
        let (len, rest) = rest.split_first_chunk::<8>()?;
        let (checksum, own) = rest.split_first_chunk::<4>()?;
        let record = Self {
            key: Key(*key),
            offset: u64::from_le_bytes(*offset),
            len: u64::from_le_bytes(*len),
            checksum: u32::from_le_bytes(*checksum),
        };
        (own == crc32c::crc32c(&bytes[..36]).to_le_bytes()).then_some(record)
    }
}

/// The sound records of an index file; a record cut off at its end is passed over.
pub(super) fn read_all(bytes: &[u8]) -> impl Iterator<Item = Record> {
    let (records, _) = bytes.as_chunks::<{ Record::BYTES }>();
    records.iter().filter_map(Record::from_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_anywhere_loses_one_record_only() {
        let record = |n: u64| Record {
            key: Key::of(&[b"x", &n.to_le_bytes()]),
            offset: n * 100,
            len: 100,
            checksum: 7,
        };
        let records = [record(0), record(1), record(2)];
        let bytes: Vec<u8> = records.iter().flat_map(|r| r.to_bytes()).collect();
        assert_eq!(read_all(&bytes).collect::<Vec<_>>(), records);
        for bit in 0..Record::BYTES * 8 {
            let mut damaged = bytes.clone();
            damaged[Record::BYTES + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                read_all(&damaged).collect::<Vec<_>>(),
                [records[0], records[2]],
                "bit {bit}"
            );
        }
    }

    #[test]
    fn keys_depend_on_where_parts_end_and_survive_json() {
        assert_ne!(Key::of(&[b"ab", b"c"]), Key::of(&[b"a", b"bc"]));
        for n in 0..50u8 {
            let key = Key::of(&[&[n]]);
            let text = serde_json::to_string(&key).unwrap();
            assert_eq!(text.len(), 34);
            assert_eq!(serde_json::from_str::<Key>(&text).unwrap(), key);
        }
        assert!(serde_json::from_str::<Key>("\"xyz\"").is_err());
    }
}
