//! How an image was made, as one text: the `parameters` of AUTOMATIC1111's web UI, which image tools read.
//!
//! ```text
//! a prompt, maybe of several lines
//! Negative prompt: what it should not be
//! Steps: 20, Sampler: ddim, CFG scale: 7.5, Seed: 1, Size: 64x64, Model: "one, two"
//! ```

use std::fmt;

const NEGATIVE: &str = "Negative prompt: ";
/// The last line counts as settings if it has at least this many.
const FEWEST_SETTINGS: usize = 3;

/// Prompt, negative prompt and settings of an image. `Display` writes the text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// What the image shows.
    pub prompt: String,
    /// What it was steered away from; may be empty.
    pub negative: String,
    /// `Steps`, `Sampler`, `CFG scale`, `Seed`, `Size`, `Model`, …; in this order by convention.
    pub settings: Vec<(String, String)>,
}

impl Parameters {
    /// The keyword of the PNG chunk that holds the text.
    pub const KEYWORD: &str = "parameters";

    /// Reads the text, by whomever it was written. What is not understood stays in the prompt.
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        let (rest, settings) = match text.rsplit_once('\n') {
            Some((rest, last)) => (rest, settings(last)),
            None => ("", settings(text)),
        };
        let (rest, settings) = match settings {
            Some(found) if found.len() >= FEWEST_SETTINGS => (rest, found),
            _ => (text, Vec::new()),
        };
        let start = if rest.starts_with(NEGATIVE) {
            Some(0)
        } else {
            rest.find(&format!("\n{NEGATIVE}"))
        };
        let (prompt, negative) = rest.split_at(start.unwrap_or(rest.len()));
        Self {
            prompt: prompt.trim().to_owned(),
            negative: negative
                .trim()
                .trim_start_matches(NEGATIVE.trim())
                .trim()
                .to_owned(),
            settings,
        }
    }

    /// The value of a setting.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.settings
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.prompt)?;
        if !self.negative.is_empty() {
            write!(f, "\n{NEGATIVE}{}", self.negative)?;
        }
        for (index, (key, value)) in self.settings.iter().enumerate() {
            let before = if index == 0 { "\n" } else { ", " };
            write!(f, "{before}{key}: {}", quoted(value))?;
        }
        Ok(())
    }
}

/// A value with separators in it stands in quotes, as JSON.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n', '"']) {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_owned()
    }
}

/// `Key: value, Key: "value"`; none if the line is something else.
fn settings(line: &str) -> Option<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (key, after) = rest.split_once(':')?;
        let plain = |letter: char| letter.is_alphanumeric() || " _-/".contains(letter);
        if key.is_empty() || !key.chars().all(plain) {
            return None;
        }
        let after = after.trim_start();
        let (value, next) = match after.starts_with('"').then(|| json_string(after)).flatten() {
            Some(quoted) => quoted,
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        found.push((key.trim().to_owned(), value));
        rest = next.trim_start().strip_prefix(',').unwrap_or(next).trim_start();
    }
    Some(found)
}

/// A JSON string at the start of `text`, and what follows it.
fn json_string(text: &str) -> Option<(String, &str)> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<String>();
    let value = stream.next()?.ok()?;
    Some((value, &text[stream.byte_offset()..]))
}
