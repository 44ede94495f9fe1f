//! Amounts of memory as people write them: `12GiB`, `900 MB`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Units, powers of two first.
const UNITS: [(&str, u64); 9] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TiB", 1 << 40),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("TB", 1_000_000_000_000),
    // Last: every other unit ends in it.
    ("B", 1),
];

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number_of = |(unit, size): &(&str, u64)| {
            let number: f64 = text.trim().strip_suffix(unit)?.trim_end().parse().ok()?;
            let bytes = number * *size as f64;
            (1.0..1e18).contains(&bytes).then_some(Self(bytes as u64))
        };
        UNITS.iter().find_map(number_of).ok_or_else(|| {
            format!("`{text}` is no amount of memory: write a number with its unit, such as 12GiB")
        })
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divides = |(_, size): &&(&str, u64)| self.0.is_multiple_of(*size);
        let exact = UNITS.iter().filter(divides).max_by_key(|(_, size)| *size);
        let (unit, size) = exact.expect("one byte divides every amount");
        write!(f, "{}{unit}", self.0 / size)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of bytes with its unit, such as 12GiB or 900MB.",
            "type": "string",
            "pattern": "^[0-9.]+ ?([KMGT]i?)?B$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_with_their_units() {
        for (text, bytes) in [
            ("12GiB", 12 << 30),
            ("1.5 GiB", 3 << 29),
            ("900MB", 900_000_000),
            ("64 KiB", 65_536),
            ("65536B", 65_536),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "12", "GiB", "-1GiB", "0GiB", "1e30GiB", "12 gib", "nanGB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_are_written_as_they_are_read() {
        for text in ["12GiB", "900MB", "64KiB", "1TiB", "1073741825B"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        let odd: ByteSize = "1.0000001GiB".parse().unwrap();
        assert_eq!(odd.to_string().parse(), Ok(odd));
    }
}
