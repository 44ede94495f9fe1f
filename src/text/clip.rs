//! CLIP's byte-pair encoding (Radford et al. 2021) from `vocab.json` and `merges.txt`.
//!
//! Text is composed (NFC), white space runs become one blank, and everything is lower-cased; words,
//! single digits, runs of other characters and English contractions are split apart; their UTF-8 bytes are
//! written as printable characters and merged by rank, the last piece of a word carrying `</w>`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use tokenizers::models::bpe::{BPE, Merges};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use super::{Settings, unusable};
use crate::{Error, Result};

/// What CLIP keeps of a text; the rest is white space.
const PIECES: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

const START: &str = "<|startoftext|>";
/// CLIP's end token, which also stands for unknown text and for padding.
pub(super) const END: &str = "<|endoftext|>";

/// Puts CLIP's tokenizer together, with the special tokens that `settings` name or CLIP's own.
///
/// # Errors
/// A file is missing or broken, or a special token is not in the vocabulary.
pub fn build(folder: &Path, settings: &Settings) -> Result<Tokenizer> {
    let vocabulary = read_vocabulary(&folder.join("vocab.json"))?;
    let merges = read_merges(&folder.join("merges.txt"))?;
    let special = |role: &str, default: &str| settings.token(role).unwrap_or_else(|| default.to_owned());
    let numbered = |token: String| match vocabulary.get(&token) {
        Some(&id) => Ok((token, id)),
        None => Err(unusable(&folder.join("vocab.json"), format!("it lacks {token}"))),
    };
    let start = numbered(special("bos_token", START))?;
    let end = numbered(special("eos_token", END))?;
    let added = added_tokens(settings, [&start.0, &end.0]);
    let model = BPE::builder()
        .vocab_and_merges(
            vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>(),
            merges,
        )
        .unk_token(special("unk_token", END))
        .end_of_word_suffix("</w>".into())
        .build()
        .map_err(|e| unusable(&folder.join("merges.txt"), e))?;
    let mut tokenizer = Tokenizer::new(model);
    let pattern = |text: &str| SplitPattern::Regex(text.into());
    let blank = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(|e| unusable(folder, e))?;
    let split = Split::new(pattern(PIECES), SplitDelimiterBehavior::Removed, true)
        .map_err(|e| unusable(folder, e))?;
    tokenizer
        .with_normalizer(Some(Normalizers::new(vec![
            NFC.into(),
            blank.into(),
            Lowercase.into(),
        ])))
        .with_pre_tokenizer(Some(PreTokenizers::new(vec![
            split.into(),
            ByteLevel::new(false, true, true).into(),
        ])))
        .with_post_processor(Some(
            RobertaProcessing::new(end, start)
                .trim_offsets(false)
                .add_prefix_space(false),
        ));
    tokenizer.add_special_tokens(&added);
    Ok(tokenizer)
}

/// Tokens that are recognised as such inside a prompt.
fn added_tokens(settings: &Settings, ends: [&String; 2]) -> Vec<AddedToken> {
    let listed: Vec<AddedToken> = settings
        .added_tokens()
        .into_iter()
        .filter_map(|entry| {
            let flag = |name: &str| entry.get(name).and_then(|v| v.as_bool()).unwrap_or(false);
            let token = AddedToken::from(entry.get("content")?.as_str()?, true);
            let token = token
                .single_word(flag("single_word"))
                .normalized(flag("normalized"));
            Some(token.lstrip(flag("lstrip")).rstrip(flag("rstrip")))
        })
        .collect();
    match listed.is_empty() {
        true => ends
            .map(|token| AddedToken::from(token.clone(), true).normalized(true))
            .into(),
        false => listed,
    }
}

fn read_vocabulary(path: &Path) -> Result<HashMap<String, u32>> {
    let text = fs::read(path).map_err(Error::io(path, "read"))?;
    serde_json::from_slice(&text).map_err(|e| unusable(path, e))
}

/// The first line is a version, then one merge a line in the order of rank.
fn read_merges(path: &Path) -> Result<Merges> {
    let text = fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    let lines = text.trim().lines().enumerate().skip(1);
    lines
        .map(
            |(number, line)| match line.split_whitespace().collect::<Vec<_>>()[..] {
                [left, right] => Ok((left.to_owned(), right.to_owned())),
                _ => Err(Error::bad(
                    format!("{}, line {}", path.display(), number + 1),
                    format!("is {line:?} instead of two pieces"),
                    "Copy the file anew from where the model came from.",
                )),
            },
        )
        .collect()
}
