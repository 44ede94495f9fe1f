//! Finds the line of a key or a list's entry in a YAML text, so that a complaint can point at it.
//!
//! The parsed value keeps no positions, but the parser gives one with every error. So the text is read once more,
//! and the visitor fails on purpose at the place that is looked for.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A step on the way to a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// To the value of a mapping's key.
    Key(&'a str),
    /// To an entry of a list, counted from 0.
    Position(usize),
}

/// Line (counted from 1) of what is at `path` in `text`: of the key, or of where the list's entry begins.
pub fn line_of(text: &str, path: &[Step<'_>]) -> Option<usize> {
    if path.is_empty() {
        return None;
    }
    let found = Search(path)
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .err()?;
    (found.to_string().contains(FOUND)).then(|| found.location().map(|place| place.line()))?
}

/// Marks the error that means success.
const FOUND: &str = "\u{1}found";

/// Follows a path from here; fails with [`FOUND`] at its end.
struct Search<'a>(&'a [Step<'a>]);

impl<'de> DeserializeSeed<'de> for Search<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.0 {
            [] => deserializer.deserialize_any(Here),
            [Step::Key(key), rest @ ..] => deserializer.deserialize_map(Mapping { key, rest }),
            [Step::Position(position), rest @ ..] => deserializer.deserialize_seq(List {
                position: *position,
                rest,
            }),
        }
    }
}

/// Reads a mapping up to `key`, and goes on with the rest of the path in its value.
struct Mapping<'a> {
    key: &'a str,
    rest: &'a [Step<'a>],
}

impl<'de> Visitor<'de> for Mapping<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(here) = map.next_key_seed(Key {
            wanted: self.key,
            fail: self.rest.is_empty(),
        })? {
            match here {
                true => return map.next_value_seed(Search(self.rest)),
                false => map.next_value::<IgnoredAny>()?,
            };
        }
        Ok(())
    }
}

/// Reads a list up to a position, and goes on with the rest of the path in that entry.
struct List<'a> {
    position: usize,
    rest: &'a [Step<'a>],
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        for _ in 0..self.position {
            list.next_element::<IgnoredAny>()?;
        }
        list.next_element_seed(Search(self.rest)).map(|_| ())
    }
}

/// Fails with [`FOUND`] at whatever comes.
struct Here;

impl<'de> Visitor<'de> for Here {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(FOUND)
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
    use super::super::steps_of;
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
models:
- name: a
  adapters: [x, y]
-
  name: b
betas: [[1, 2],
  [3, 4]]
";

    #[test]
    fn keys_are_found_in_block_and_flow_style() {
        for (path, line) in [
            ("model", Some(1)),
            ("objective.beta", Some(2)),
            ("reference", Some(4)),
            ("reference.anchor", Some(6)),
            ("reference.anchor.lambda", Some(8)),
            ("seed", Some(10)),
            ("lambda", None),
            ("model.path", None),
            ("reference.anchor.fraction", None),
        ] {
            assert_eq!(line_of(TEXT, &steps_of(path)), line, "{path}");
        }
    }

    #[test]
    fn entries_of_lists_are_found() {
        for (path, line) in [
            ("models[0]", Some(12)),
            ("models[0].adapters[1]", Some(13)),
            ("models[1]", Some(15)),
            ("models[1].name", Some(15)),
            ("models[2]", None),
            ("models.name", None),
            ("betas[0][1]", Some(16)),
            ("betas[1][0]", Some(17)),
        ] {
            assert_eq!(line_of(TEXT, &steps_of(path)), line, "{path}");
        }
    }
}
