//! Which prompts are held out: one rule for pairs that are made and for data sets that are divided, so that a prompt is in
//! the same part of both.

use crate::rng::{Purpose, Streams};

/// Which prompts are held out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HoldOut {
    /// Share of the prompts, 0 to 1.
    pub share: f64,
    /// Of the draw; the same prompts are held out whatever else the data set holds.
    pub seed: u64,
}

impl HoldOut {
    /// Whether a prompt is held out. Prompts that are [`normalised`] to the same words are together.
    pub fn holds_out(self, prompt: &str) -> bool {
        let mut stream = Streams::new(self.seed).named(Purpose::Split, &normalised(prompt));
        stream.chance(self.share)
    }

    /// The split of a prompt.
    pub fn split(self, prompt: &str) -> &'static str {
        match self.holds_out(prompt) {
            true => "heldout",
            false => "train",
        }
    }
}

/// A prompt without what does not make it another one: case, and how words are spaced.
pub fn normalised(prompt: &str) -> String {
    let words: Vec<String> = prompt.split_whitespace().map(str::to_lowercase).collect();
    words.join(" ")
}
