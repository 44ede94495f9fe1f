//! The objects of a JSON array, or of JSON lines, one at a time: lists of preference data grow to hundreds of megabytes.

use std::io::{self, BufRead};

/// Hands out the text of one object after the other, with the line on which it begins, counted from 1.
///
/// Only as much of JSON is understood as it takes to find where an object ends; the text may still be no JSON. Of JSON lines, a
/// line that holds no whole object is handed out as it is, and the next line is another object: a list that was cut off, or into
/// which two programs wrote at once, loses no more than that line. An object may take several lines if its brace has one of its
/// own.
pub(super) struct JsonItems<R> {
    input: R,
    line: u64,
    form: Option<Form>,
    /// Within the brackets of an array.
    in_array: bool,
    is_over: bool,
}

/// What the first character of a list says of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Array,
    Lines,
}

impl<R: BufRead> JsonItems<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            line: 1,
            form: None,
            in_array: false,
            is_over: false,
        }
    }

    fn read_item(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        let mut item = Item::default();
        loop {
            let bytes = self.input.fill_buf()?;
            if bytes.is_empty() {
                let line = self.line;
                return match (item.text.is_empty(), self.in_array) {
                    (true, false) => Ok(None),
                    // The last line was cut off.
                    (false, false) => Ok(Some((item.line, item.text))),
                    (_, true) => Err(damaged(&format!(
                        "ends in the middle of the list, in line {line}"
                    ))),
                };
            }
            let mut used = 0;
            for &byte in bytes {
                used += 1;
                self.line += u64::from(byte == b'\n');
                if item.text.is_empty() {
                    match byte {
                        b'{' => {
                            item.line = self.line;
                            self.form.get_or_insert(Form::Lines);
                        }
                        b'[' if !self.in_array && self.form != Some(Form::Lines) => {
                            self.in_array = true;
                            self.form = Some(Form::Array);
                        }
                        b']' if self.in_array => self.in_array = false,
                        b',' | b' ' | b'\t' | b'\r' | b'\n' | 0xEF | 0xBB | 0xBF => {}
                        // The rest of an object that was cut off before, or of something else.
                        _ if self.form == Some(Form::Lines) => {
                            item.line = self.line;
                            item.is_rest = true;
                            item.text.push(byte);
                            continue;
                        }
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
                let is_whole = item.add(byte);
                let is_cut_off = self.form == Some(Form::Lines) && byte == b'\n' && item.ends_with_its_line();
                if is_whole || is_cut_off {
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
    /// No object.
    is_rest: bool,
    /// Its brace has a line of its own.
    has_lines: bool,
}

impl Item {
    /// Whether the object, which is not complete, ends with the line that was just read: no text goes on in the next line.
    fn ends_with_its_line(&mut self) -> bool {
        self.has_lines |= self.text.trim_ascii() == b"{";
        self.is_rest || self.in_string || !self.has_lines
    }

    /// Adds a byte; whether the object is complete.
    fn add(&mut self, byte: u8) -> bool {
        self.text.push(byte);
        if self.is_rest {
            return false;
        }
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
    fn a_broken_line_costs_itself_only() {
        let text =
            "{\"a\": 1}\n{\"a\": \"cut o\n{\"a\": 2}\n{\"a\":\nrest}\n{\n  \"a\": {\n  }\n}\n{\"a\": 3";
        for capacity in [1, 5, 1000] {
            let found = items(text, capacity).unwrap();
            let expected = [
                (1, "{\"a\": 1}"),
                (2, "{\"a\": \"cut o\n"),
                (3, "{\"a\": 2}"),
                (4, "{\"a\":\n"),
                (5, "rest}\n"),
                (6, "{\n  \"a\": {\n  }\n}"),
                (10, "{\"a\": 3"),
            ];
            let found: Vec<(u64, &str)> = found.iter().map(|(line, text)| (*line, &**text)).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn an_array_that_is_cut_off_or_no_list_is_an_error() {
        for (text, what) in [
            ("[{\"a\": 1}\n", "ends in the middle of the list, in line 2"),
            ("[{\"a\": 1}, {\"a\"", "in line 1"),
            ("<html>", "holds no list of objects in line 1"),
            ("[1, 2]", "holds no list of objects in line 1"),
        ] {
            let error = items(text, 16).unwrap_err().to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
        assert_eq!(items("[]", 16).unwrap(), []);
        assert_eq!(items("", 16).unwrap(), []);
    }
}
