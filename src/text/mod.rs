//! Prompts to token ids, exactly as the pipeline's own tokenizer reads them.
//!
//! A tokenizer folder holds either `tokenizer.json`, or what most Stable Diffusion exports hold: CLIP's
//! `vocab.json` and `merges.txt`, from which the same pipeline is put together (see [`clip`]).
//!
//! Results equal transformers' `CLIPTokenizerFast`. The slow `CLIPTokenizer` without `ftfy` reads some text
//! otherwise: it drops control, format and private-use characters, sets CJK ideographs apart as words of
//! their own, and lower-cases a final Σ to ς.

pub mod clip;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::{TruncationParams, TruncationStrategy};

use crate::model_folder::JsonFile;
use crate::{Error, Result};

/// Changes whenever the same tokenizer folder would give other ids; part of every cache key.
pub const TOKENIZER_VERSION: u32 = 1;

/// transformers writes 10³⁰ where a tokenizer has no limit of its own.
const NO_LIMIT: f64 = 1e6;

/// Token ids of one prompt, filled up to the context length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// As many ids as the context is long.
    pub ids: Vec<i64>,
    /// How many of them are not padding.
    pub used: usize,
    /// Whether the prompt was too long and lost its end.
    pub truncated: bool,
}

/// A tokenizer with its padding and its context length.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    folder: PathBuf,
    inner: tokenizers::Tokenizer,
    pad: u32,
    context: usize,
}

impl Tokenizer {
    /// Loads a tokenizer folder. Prompts are filled or cut to the tokenizer's own length, and to
    /// `encoder_positions` (the text encoder's `max_position_embeddings`) where that is shorter.
    ///
    /// # Errors
    /// A file is missing or broken, no padding token is named, or neither side limits the length.
    pub fn from_folder(folder: &Path, encoder_positions: Option<usize>) -> Result<Self> {
        let place = folder.display().to_string();
        let settings = Settings::read(folder)?;
        let json = folder.join("tokenizer.json");
        let mut inner = match json.is_file() {
            true => read_tokenizer_json(&json)?,
            false => clip::build(folder, &settings)?,
        };
        let limits = [settings.max_length, encoder_positions];
        let context = limits.into_iter().flatten().min().ok_or_else(|| {
            let remedy = "Add \"model_max_length\" to tokenizer_config.json.";
            Error::bad(&place, "says nowhere how long a prompt may be", remedy)
        })?;
        let pad_token = settings.pad_token(&inner);
        let pad = inner.token_to_id(&pad_token).ok_or_else(|| {
            let remedy = "Mend \"pad_token\" in tokenizer_config.json or special_tokens_map.json.";
            let what = format!("pads with pad_token {pad_token}, which is not in its vocabulary");
            Error::bad(&place, what, remedy)
        })?;
        inner.with_padding(None);
        let truncation = TruncationParams {
            max_length: context,
            strategy: TruncationStrategy::LongestFirst,
            ..Default::default()
        };
        inner
            .with_truncation(Some(truncation))
            .map_err(|e| unusable(folder, e))?;
        Ok(Self {
            folder: folder.to_path_buf(),
            inner,
            pad,
            context,
        })
    }

    /// Length of every [`Tokens`].
    pub fn context(&self) -> usize {
        self.context
    }

    /// Token ids of a prompt: start token, text, end token, padding.
    ///
    /// # Errors
    /// The vocabulary has no token for some of the text and none for unknown text either.
    pub fn encode(&self, prompt: &str) -> Result<Tokens> {
        let encoding = self
            .inner
            .encode(prompt, true)
            .map_err(|e| unusable(&self.folder, e))?;
        let mut ids: Vec<i64> = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
        let used = ids.len();
        ids.resize(self.context, i64::from(self.pad));
        Ok(Tokens {
            ids,
            used,
            truncated: !encoding.get_overflowing().is_empty(),
        })
    }
}

fn read_tokenizer_json(path: &Path) -> Result<tokenizers::Tokenizer> {
    let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
    tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| unusable(path, e))
}

fn unusable(place: &Path, error: impl std::fmt::Display) -> Error {
    Error::bad(
        place.display().to_string(),
        format!("is not a usable tokenizer: {error}"),
        "Copy the tokenizer's files anew from where the model came from.",
    )
}

/// What `tokenizer_config.json` and `special_tokens_map.json` say; either may be missing.
#[derive(Debug, Default)]
pub struct Settings {
    /// `model_max_length`, if it is a real limit.
    max_length: Option<usize>,
    sources: Vec<JsonFile>,
}

impl Settings {
    fn read(folder: &Path) -> Result<Self> {
        let paths = ["tokenizer_config.json", "special_tokens_map.json"].map(|name| folder.join(name));
        let present = paths.into_iter().filter(|path| path.is_file());
        let sources: Vec<JsonFile> = present.map(JsonFile::read).collect::<Result<_>>()?;
        let max_length = sources
            .iter()
            .find_map(|file| file.get("model_max_length")?.as_f64());
        let max_length = max_length
            .filter(|&n| (1.0..NO_LIMIT).contains(&n))
            .map(|n| n as usize);
        Ok(Self { max_length, sources })
    }

    /// A special token by its role, written as a string or as an object with its `content`.
    fn token(&self, role: &str) -> Option<String> {
        let value = self.sources.iter().find_map(|file| file.get(role))?;
        value
            .as_str()
            .or_else(|| value.get("content")?.as_str())
            .map(str::to_owned)
    }

    /// Entries of `added_tokens_decoder`: tokens that are found in the text before it is split.
    fn added_tokens(&self) -> Vec<&Value> {
        let decoder = self
            .sources
            .iter()
            .find_map(|file| file.get("added_tokens_decoder")?.as_object());
        decoder.into_iter().flat_map(|entries| entries.values()).collect()
    }

    /// Padding that is named nowhere is CLIP's end token, as in transformers.
    fn pad_token(&self, tokenizer: &tokenizers::Tokenizer) -> String {
        let own = || tokenizer.get_padding().map(|padding| padding.pad_token.clone());
        self.token("pad_token")
            .or_else(own)
            .unwrap_or_else(|| clip::END.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/tokenizers")
            .join(name)
    }

    fn prompts() -> (usize, Vec<Value>) {
        let file: Value = serde_json::from_slice(&fs::read(fixture("prompts.json")).unwrap()).unwrap();
        let context = file["context"].as_u64().unwrap() as usize;
        (context, file["cases"].as_array().unwrap().clone())
    }

    fn expected(case: &Value, kind: &str) -> Vec<i64> {
        case[kind]["fast"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_i64().unwrap())
            .collect()
    }

    /// Text that the slow tokenizer reads otherwise, by the three reasons the module names.
    fn slow_reads_otherwise(text: &str) -> bool {
        let invisible = |c: char| {
            let format =
                matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{feff}');
            let private = matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{fffd}');
            format || private || c.is_control() && !matches!(c, '\t' | '\n' | '\r')
        };
        let ideograph = |c: char| matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{20000}'..='\u{2a6df}');
        let final_sigma = text.ends_with('Σ');
        text.chars().any(|c| invisible(c) || ideograph(c)) || final_sigma
    }

    #[test]
    fn equals_transformers_on_odd_prompts() {
        let (context, cases) = prompts();
        assert!(cases.len() >= 200, "{}", cases.len());
        let tokenizers = ["full", "small"].map(|kind| {
            let tokenizer = Tokenizer::from_folder(&fixture(kind), None).unwrap();
            assert_eq!(tokenizer.context(), context);
            (kind, tokenizer)
        });
        let mut wrong = Vec::new();
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            for (kind, tokenizer) in &tokenizers {
                let ours = tokenizer.encode(text).unwrap().ids;
                if ours != expected(case, kind) {
                    wrong.push(format!(
                        "{kind} {text:?}\n  {ours:?}\n  {:?}",
                        expected(case, kind)
                    ));
                }
            }
            let differs = case["full"].get("slow").is_some();
            assert!(
                !differs || slow_reads_otherwise(text),
                "{text:?} differs for another reason"
            );
        }
        assert!(
            wrong.is_empty(),
            "{} of {}:\n{}",
            wrong.len(),
            cases.len(),
            wrong.join("\n")
        );
    }

    #[test]
    fn a_tokenizer_json_reads_the_same() {
        let tokenizer = Tokenizer::from_folder(&fixture("json"), None).unwrap();
        for case in prompts().1 {
            let text = case["text"].as_str().unwrap();
            assert_eq!(
                tokenizer.encode(text).unwrap().ids,
                expected(&case, "full"),
                "{text:?}"
            );
        }
    }

    #[test]
    fn each_pads_with_its_own_token_and_cuts_are_reported() {
        let full = Tokenizer::from_folder(&fixture("full"), None).unwrap();
        let small = Tokenizer::from_folder(&fixture("small"), None).unwrap();
        let tokens = full.encode("cat").unwrap();
        assert!(!tokens.truncated);
        let end = tokens.ids[tokens.used - 1];
        assert!(tokens.ids[tokens.used..].iter().all(|&id| id == end));
        assert_eq!(small.encode("cat").unwrap().ids.last(), Some(&0));
        let long = full.encode(&"word ".repeat(100)).unwrap();
        assert!(long.truncated && long.used == full.context() && long.ids.last() == Some(&end));
        let fitting = "a ".repeat(full.context() - 2);
        assert!(!full.encode(&fitting).unwrap().truncated);
        assert!(full.encode(&format!("{fitting} a")).unwrap().truncated);
    }

    #[test]
    fn the_shorter_of_both_lengths_counts() {
        let short = Tokenizer::from_folder(&fixture("full"), Some(8)).unwrap();
        assert_eq!(
            short
                .encode("a small apple on a blue background")
                .unwrap()
                .ids
                .len(),
            8
        );
        assert_eq!(
            Tokenizer::from_folder(&fixture("full"), Some(999))
                .unwrap()
                .context(),
            24
        );
    }

    #[test]
    fn broken_folders_say_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let copy = |name: &str| fs::copy(fixture("full").join(name), dir.path().join(name)).unwrap();
        let error = || {
            Tokenizer::from_folder(dir.path(), Some(8))
                .unwrap_err()
                .to_string()
        };
        assert!(error().contains("vocab.json"), "{}", error());
        copy("vocab.json");
        assert!(error().contains("merges.txt"), "{}", error());
        copy("merges.txt");
        fs::write(
            dir.path().join("tokenizer_config.json"),
            r#"{"pad_token": "<none>"}"#,
        )
        .unwrap();
        assert!(error().contains("pad_token"), "{}", error());
        fs::write(dir.path().join("tokenizer_config.json"), "{}").unwrap();
        assert!(
            Tokenizer::from_folder(dir.path(), Some(8)).is_ok(),
            "CLIP's own tokens are the default"
        );
        let unlimited = Tokenizer::from_folder(dir.path(), None).unwrap_err().to_string();
        assert!(unlimited.contains("model_max_length"), "{unlimited}");
        fs::write(dir.path().join("merges.txt"), "#version: 0.2\na b c d\n").unwrap();
        assert!(error().contains("merges.txt, line 2"), "{}", error());
        fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        assert!(error().contains("tokenizer.json"), "{}", error());
    }
}
