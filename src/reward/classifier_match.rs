//! How far a classifier finds in a picture what the prompt names.
//!
//! The right label of each output follows from the prompt by the manifest's rules; labels are found in the prompt as whole
//! words, lower case, longer labels before shorter ones ("tropical fish" before "fish").

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayView4, Axis, concatenate, s};

use super::manifest::{ClassifierHead, ClassifierTower, Expect, Measure};
use super::network::{Network, Values};
use super::{Networks, PromptUse};
use crate::runtime::SessionOptions;
use crate::yaml::nearest;
use crate::{Error, Result};

struct ClassifierMatch {
    network: Network,
    input: String,
    heads: Vec<Head>,
    measure: Measure,
}

struct Head {
    output: String,
    labels: Vec<String>,
    rule: Rule,
    /// Where its logits lie in a row of features.
    columns: Range<usize>,
}

/// [`Expect`] with labels by their position.
enum Rule {
    Mentioned { nth: usize, otherwise: Option<usize> },
    Always(usize),
}

/// Loads the classifier and its labels.
pub(super) fn open(
    folder: &Path,
    options: &SessionOptions,
    shape: [usize; 3],
    spec: &ClassifierTower,
    labels: &str,
    heads: &[ClassifierHead],
    measure: Measure,
) -> Result<Box<dyn Networks>> {
    let network = Network::open(&folder.join(&spec.model), options)?;
    let outputs: Vec<&str> = heads.iter().map(|head| head.output.as_str()).collect();
    network.check(&[&spec.input], &outputs)?;
    network.check_pictures(&spec.input, shape)?;
    let labels = Labels::read(&folder.join(labels))?;
    let mut start = 0;
    let heads = heads.iter().enumerate().map(|(index, head)| {
        let head = Head::new(index, head, &labels, start)?;
        start = head.columns.end;
        Ok(head)
    });
    Ok(Box::new(ClassifierMatch {
        heads: heads.collect::<Result<_>>()?,
        network,
        input: spec.input.clone(),
        measure,
    }))
}

/// The labels of every output.
struct Labels {
    place: String,
    by_output: HashMap<String, Vec<String>>,
}

impl Labels {
    fn read(path: &Path) -> Result<Self> {
        let place = path.display().to_string();
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let by_output = serde_json::from_slice(&bytes).map_err(|e| {
            let remedy = "Write {\"output\": [\"label\", …], …}, labels in the order of the logits.";
            Error::bad(&place, format!("is not a list of labels per output: {e}"), remedy)
        })?;
        Ok(Self { place, by_output })
    }

    fn of(&self, output: &str) -> Result<&Vec<String>> {
        self.by_output.get(output).ok_or_else(|| {
            let what = format!("has no labels for the output `{output}`");
            Error::bad(&self.place, what, "Add them, in the order of the logits.")
        })
    }
}

impl Head {
    fn new(index: usize, head: &ClassifierHead, labels: &Labels, start: usize) -> Result<Self> {
        let labels = labels.of(&head.output)?;
        let position = |label: &str| {
            labels.iter().position(|known| known == label).ok_or_else(|| {
                let known: Vec<&str> = labels.iter().map(String::as_str).collect();
                let guess =
                    nearest(label, &known).map_or(String::new(), |near| format!("Did you mean {near}? "));
                Error::bad(
                    format!("scorer.heads[{index}].expect"),
                    format!("names the label {label:?}, which output `{}` lacks", head.output),
                    format!("{guess}Its labels are {}.", known.join(", ")),
                )
            })
        };
        let rule = match &head.expect {
            Expect::Always { label } => Rule::Always(position(label)?),
            Expect::Mentioned { nth, otherwise } => Rule::Mentioned {
                nth: *nth,
                otherwise: otherwise.as_deref().map(position).transpose()?,
            },
        };
        Ok(Self {
            output: head.output.clone(),
            columns: start..start + labels.len(),
            labels: labels.clone(),
            rule,
        })
    }

    /// Position of the label that is right for `prompt`.
    fn expected(&self, prompt: &str) -> Result<usize> {
        let (nth, otherwise) = match self.rule {
            Rule::Always(label) => return Ok(label),
            Rule::Mentioned { nth, otherwise } => (nth, otherwise),
        };
        mentions(prompt, &self.labels)
            .get(nth - 1)
            .copied()
            .or(otherwise)
            .ok_or_else(|| {
                Error::bad(
                    format!("prompt {prompt:?}"),
                    format!("mentions fewer than {nth} of what output `{}` knows", self.output),
                    format!("It knows {}.", self.labels.join(", ")),
                )
            })
    }
}

impl Networks for ClassifierMatch {
    fn prompt_use(&self) -> PromptUse {
        PromptUse::Afterwards
    }

    /// The logits of all heads side by side.
    fn features(&mut self, pixels: ArrayView4<'_, f32>, _: &[&str]) -> Result<Array2<f32>> {
        let input = (self.input.as_str(), Values::Floats(pixels.into_dyn()));
        let outputs: Vec<&str> = self.heads.iter().map(|head| head.output.as_str()).collect();
        let logits = self.network.run(&[input], &[], &outputs)?;
        for (head, logits) in self.heads.iter().zip(&logits) {
            if logits.ncols() != head.columns.len() {
                return Err(Error::bad(
                    "scorer.labels",
                    format!(
                        "lists {} labels for `{}`, which gives {} logits",
                        head.columns.len(),
                        head.output,
                        logits.ncols()
                    ),
                    "List every label, in the order of the logits.",
                ));
            }
        }
        let views: Vec<_> = logits.iter().map(|logits| logits.view()).collect();
        Ok(concatenate(Axis(1), &views).expect("outputs have one row per picture"))
    }

    fn scores(&mut self, features: ArrayView2<'_, f32>, prompts: &[&str]) -> Result<Vec<f64>> {
        let rows = features.outer_iter().zip(prompts);
        rows.map(|(row, prompt)| self.score(row, prompt)).collect()
    }
}

impl ClassifierMatch {
    fn score(&self, row: ArrayView1<f32>, prompt: &str) -> Result<f64> {
        let (mut log_probability, mut right) = (0.0, 0);
        for head in &self.heads {
            let logits = row.slice(s![head.columns.clone()]);
            let label = head.expected(prompt)?;
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|&l| f64::from(l - most).exp()).sum();
            log_probability += f64::from(logits[label] - most) - sum.ln();
            right += usize::from(logits[label] == most);
        }
        Ok(match self.measure {
            Measure::Probability => log_probability.exp(),
            Measure::LogProbability => log_probability,
            Measure::ShareRight => right as f64 / self.heads.len() as f64,
        })
    }
}

/// Positions of the labels that stand in a text, in the order in which they stand there.
fn mentions(text: &str, labels: &[String]) -> Vec<usize> {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let labels: Vec<Vec<String>> = labels
        .iter()
        .map(|label| {
            label
                .to_lowercase()
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        })
        .collect();
    let mut found = Vec::new();
    let mut rest = &words[..];
    while !rest.is_empty() {
        let stands_here = |label: &&Vec<String>| {
            !label.is_empty() && rest.len() >= label.len() && rest.iter().zip(*label).all(|(a, b)| a == b)
        };
        let longest = labels.iter().filter(stands_here).max_by_key(|label| label.len());
        let step = match longest {
            Some(label) => {
                found.extend(labels.iter().position(|other| other == label));
                label.len()
            }
            None => 1,
        };
        rest = &rest[step..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_whole_words_in_the_order_of_the_text() {
        let labels = ["fish", "tropical fish", "car", "cat", "none"].map(str::to_owned);
        let found = |text: &str| -> Vec<&str> {
            mentions(text, &labels)
                .iter()
                .map(|&i| labels[i].as_str())
                .collect()
        };
        assert_eq!(
            found("a cat and a Tropical Fish, on a green car-park"),
            ["cat", "tropical fish", "car"]
        );
        assert_eq!(found("a carton of fishes"), [""; 0]);
        assert_eq!(found("fish tropical"), ["fish"]);
        assert_eq!(found(""), [""; 0]);
    }
}
