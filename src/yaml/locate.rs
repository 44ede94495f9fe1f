//! Finds the line of a key in a YAML text, so that a complaint can point at it.
//!
//! The parsed value keeps no positions, but the parser gives one with every error. So the text is read once more,
//! and the visitor fails on purpose at the key that is looked for.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// Line (counted from 1) of the key at `path` in `text`.
pub fn line_of(text: &str, path: &[&str]) -> Option<usize> {
    let (key, rest) = path.split_first()?;
    let search = Mapping { key, rest };
    let found = search
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .err()?;
    (found.to_string().contains(FOUND)).then(|| found.location().map(|place| place.line()))?
}

/// Marks the error that means success.
const FOUND: &str = "\u{1}found";

/// Reads a mapping up to `key`, and goes on with the rest of the path in its value.
struct Mapping<'a> {
    key: &'a str,
    rest: &'a [&'a str],
}

impl<'de> DeserializeSeed<'de> for Mapping<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Mapping<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let is_last = self.rest.is_empty();
        while let Some(here) = map.next_key_seed(Key {
            wanted: self.key,
            fail: is_last,
        })? {
            match self.rest.split_first() {
                Some((key, rest)) if here => return map.next_value_seed(Mapping { key, rest }),
                _ => map.next_value::<IgnoredAny>()?,
            };
        }
        Ok(())
    }
}

/// Reads a key and says whether it is the wanted one; with `fail`, an error at its position says so.
struct Key<'a> {
    wanted: &'a str,
    fail: bool,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        match key == self.wanted {
            true if self.fail => Err(E::custom(FOUND)),
            same => Ok(same),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::line_of;

    const TEXT: &str = "\
model: somewhere   # line 1
objective: {kind: dpo, beta: 2000}

reference:
  update: ema
  anchor:
    kind: kl
    lambda:
      1.0
seed: 0
";

    #[test]
    fn keys_are_found_in_block_and_flow_style() {
        for (path, line) in [
            (&["model"][..], Some(1)),
            (&["objective", "beta"], Some(2)),
            (&["reference"], Some(4)),
            (&["reference", "anchor"], Some(6)),
            (&["reference", "anchor", "lambda"], Some(8)),
            (&["seed"], Some(10)),
            (&["lambda"], None),
            (&["model", "path"], None),
            (&["reference", "anchor", "fraction"], None),
        ] {
            assert_eq!(line_of(TEXT, path), line, "{path:?}");
        }
    }
}
