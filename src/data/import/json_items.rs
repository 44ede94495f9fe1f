//! The objects of a JSON array, or of JSON lines, one at a time: lists of preference data grow to hundreds of megabytes.

use std::io::{self, BufRead};

/// Hands out the text of one object after the other, with the line on which it begins, counted from 1.
///
/// Only as much of JSON is understood as it takes to find where an object ends; the text may still be no JSON.
pub(super) struct JsonItems<R> {
    input: R,
    line: u64,
    in_array: bool,
    is_over: bool,
}

impl<R: BufRead> JsonItems<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            line: 1,
            in_array: false,
            is_over: false,
        }
    }

    fn read_item(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        let mut item = Item::default();
        loop {
            let bytes = self.input.fill_buf()?;
            if bytes.is_empty() {
                return match item.text.is_empty() && !self.in_array {
                    true => Ok(None),
                    false => Err(damaged("ends in the middle of the list")),
                };
            }
            let mut used = 0;
            for &byte in bytes {
                used += 1;
                if byte == b'\n' {
                    self.line += 1;
                }
                if item.text.is_empty() {
                    match byte {
                        b'{' => item.line = self.line,
                        b'[' if !self.in_array => self.in_array = true,
                        b']' if self.in_array => self.in_array = false,
                        b',' | b' ' | b'\t' | b'\r' | b'\n' | 0xEF | 0xBB | 0xBF => {}
                        _ => {
                            return Err(damaged(&format!(
                                "holds no list of objects in line {}",
                                self.line
                            )));
                        }
                    }
                    if byte != b'{' {
                        continue;
                    }
                }
                if item.add(byte) {
                    self.input.consume(used);
                    return Ok(Some((item.line, item.text)));
                }
            }
            self.input.consume(used);
        }
    }
}

impl<R: BufRead> Iterator for JsonItems<R> {
    type Item = io::Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let item = self.read_item().transpose();
        self.is_over = !matches!(item, Some(Ok(_)));
        item
    }
}

#[derive(Default)]
struct Item {
    line: u64,
    text: Vec<u8>,
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Item {
    /// Adds a byte; whether the object is complete.
    fn add(&mut self, byte: u8) -> bool {
        self.text.push(byte);
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' if self.in_string => self.is_escaped = true,
            b'"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.depth == 0
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(text: &str, capacity: usize) -> io::Result<Vec<(u64, String)>> {
        let input = io::BufReader::with_capacity(capacity, text.as_bytes());
        let text = |(line, bytes)| (line, String::from_utf8(bytes).unwrap());
        JsonItems::new(input).map(|item| item.map(text)).collect()
    }

    #[test]
    fn arrays_and_lines_give_the_same_objects_whatever_the_buffer() {
        let objects = [
            r#"{"a": "}]{", "b": [1, {"c": 2}]}"#,
            r#"{"a": "\"}\\"}"#,
            r#"{"ü": {}}"#,
        ];
        let array = format!("[\n{}\n]\n", objects.join(",\n"));
        let lines = format!("{}\n\n", objects.join("\n"));
        for capacity in [1, 7, 1000] {
            let found = items(&array, capacity).unwrap();
            assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3, 4]);
            assert_eq!(found.iter().map(|(_, text)| &**text).collect::<Vec<_>>(), objects);
            let found = items(&lines, capacity).unwrap();
            assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2, 3]);
            assert_eq!(found.iter().map(|(_, text)| &**text).collect::<Vec<_>>(), objects);
        }
    }

    #[test]
    fn what_is_cut_off_or_no_list_is_an_error() {
        for text in [
            "[{\"a\": 1}",
            "[{\"a\": 1}, {\"a\"",
            "{\"a\": \"",
            "<html>",
            "[1, 2]",
        ] {
            assert!(items(text, 16).is_err(), "{text}");
        }
        assert_eq!(items("[]", 16).unwrap(), []);
        assert_eq!(items("", 16).unwrap(), []);
    }
}
