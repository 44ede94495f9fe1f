//! Prompts for pictures whose source does not tell them: from a prompt file, or from the text in PNG files.

use serde_json::Value;

use super::source::{Picture, Record, Records, Source};
use crate::picture::{Parameters, read_png_text};
use crate::prompts::Prompt;
use crate::{Error, Result};

/// What `ortdpo generate` calls a prompt's position in its list.
const PROMPT_INDEX: &str = "prompt_index";

/// Gives every record its prompt of `prompts`, which come from the file `named`: by the record's `prompt_index` where it has
/// one, else in order, one picture a prompt. The prompts' other columns become fields, for grouping.
///
/// # Errors
/// There are more pictures than prompts, or fewer, or a picture was made for another prompt; the record that finds it says
/// which one.
pub fn pair(source: Source, prompts: Vec<Prompt>, named: &str) -> Source {
    let pairing = Pairing {
        records: source.records,
        prompts,
        named: named.to_owned(),
        place: 0,
        by_index: false,
        is_over: false,
    };
    Source {
        len: source.len,
        records: Box::new(pairing),
    }
}

struct Pairing {
    records: Records<'static>,
    prompts: Vec<Prompt>,
    named: String,
    /// Records seen.
    place: usize,
    /// Whether records say which prompt is theirs.
    by_index: bool,
    is_over: bool,
}

impl Iterator for Pairing {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let found = match self.records.next() {
            Some(record) => Some(record.and_then(|record| self.with_prompt(record))),
            None => self.left_over().map(Err),
        };
        self.is_over = !matches!(found, Some(Ok(_)));
        found
    }
}

impl Pairing {
    fn with_prompt(&mut self, mut record: Record) -> Result<Record> {
        let own = record.fields.get(PROMPT_INDEX).and_then(Value::as_u64);
        self.by_index |= own.is_some();
        let index = own.map_or(self.place, |index| index as usize);
        self.place += 1;
        let Some(prompt) = self.prompts.get(index) else {
            let what = format!(
                "has {} prompts, and {} would be number {}",
                self.prompts.len(),
                record.file,
                index + 1
            );
            return Err(Error::bad(
                &self.named,
                what,
                "Give one prompt per picture, in the order of the pictures' names.",
            ));
        };
        if let Some(own) = record.prompt.filter(|own| *own != prompt.text) {
            return Err(Error::bad(
                &self.named,
                format!(
                    "names the prompt {:?} for {}, which was made for {own:?}",
                    prompt.text, record.file
                ),
                "Give the prompts that the pictures were made for, or leave the file out.",
            ));
        }
        record.prompt = Some(prompt.text.clone());
        for (name, value) in &prompt.fields {
            record.fields.insert(name.clone(), Value::from(value.clone()));
        }
        Ok(record)
    }

    /// The first prompt without a picture, where pictures are paired in order.
    fn left_over(&self) -> Option<Error> {
        let prompt = self.prompts.get(self.place).filter(|_| !self.by_index)?;
        Some(Error::bad(
            &self.named,
            format!(
                "has {} prompts for {} pictures; the first without one is {:?}",
                self.prompts.len(),
                self.place,
                prompt.text
            ),
            "Give one prompt per picture, in the order of the pictures' names.",
        ))
    }
}

/// Looks for the prompt of records without one in the `parameters` text of their PNG files, where image tools write it.
pub fn from_pictures(source: Source) -> Source {
    let with_prompt = |record: Result<Record>| {
        record.map(|mut record| {
            if let (None, Picture::File(path)) = (&record.prompt, &record.picture) {
                let texts = read_png_text(path).unwrap_or_default();
                let parameters = texts
                    .into_iter()
                    .find(|(keyword, _)| keyword == Parameters::KEYWORD);
                record.prompt = parameters
                    .map(|(_, text)| Parameters::parse(&text).prompt)
                    .filter(|prompt| !prompt.is_empty());
            }
            record
        })
    };
    Source {
        len: source.len,
        records: Box::new(source.records.map(with_prompt)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(indices: &[Option<u64>]) -> Source {
        let record = |(place, index): (usize, &Option<u64>)| {
            Ok(Record {
                file: format!("{place}.png"),
                picture: Picture::Bytes(Vec::new()),
                prompt: None,
                fields: index
                    .map(|i| (PROMPT_INDEX.to_owned(), i.into()))
                    .into_iter()
                    .collect(),
            })
        };
        let records: Vec<_> = indices.iter().enumerate().map(record).collect();
        Source {
            len: Some(records.len()),
            records: Box::new(records.into_iter()),
        }
    }

    fn paired(indices: &[Option<u64>], prompts: &[&str]) -> Result<Vec<String>> {
        let prompts = prompts.iter().map(|text| Prompt::new(*text)).collect();
        let records = pair(source(indices), prompts, "prompts.txt").records;
        records.map(|r| Ok(r?.prompt.unwrap_or_default())).collect()
    }

    #[test]
    fn pictures_are_paired_in_order_or_by_their_own_index() {
        assert_eq!(paired(&[None, None], &["a", "b"]).unwrap(), ["a", "b"]);
        assert_eq!(
            paired(&[Some(1), Some(1), Some(0)], &["a", "b"]).unwrap(),
            ["b", "b", "a"]
        );
    }

    #[test]
    fn what_is_left_over_is_named() {
        let error = paired(&[None, None], &["a"]).unwrap_err().to_string();
        assert!(
            error.contains("prompts.txt: has 1 prompts, and 1.png would be number 2"),
            "{error}"
        );
        let error = paired(&[None], &["a", "b", "c"]).unwrap_err().to_string();
        assert!(
            error.contains("3 prompts for 1 pictures; the first without one is \"b\""),
            "{error}"
        );
    }
}
