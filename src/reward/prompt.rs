//! Prompts on their way into a network: token ids and mask.

use std::path::Path;

use ndarray::Array2;

use super::manifest::{Cleaning, PromptInput};
use super::network::{Network, Values};
use crate::text::Tokenizer;
use crate::{Error, Result};

/// The tokenizer of a reward model with the inputs it feeds.
pub struct PromptReader {
    input: PromptInput,
    tokenizer: Tokenizer,
}

/// Token ids of some prompts, and 1 where they are not padding; both (N,L).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRows {
    /// Token ids.
    pub ids: Array2<i64>,
    /// 1 for tokens, 0 for padding.
    pub mask: Array2<i64>,
}

impl PromptReader {
    /// Loads the tokenizer.
    ///
    /// # Errors
    /// It cannot be read, or stops before the length that the manifest asks for.
    pub fn open(folder: &Path, input: &PromptInput) -> Result<Self> {
        let place = folder.join(&input.tokenizer);
        let tokenizer = Tokenizer::from_folder(&place, Some(input.length))?;
        if tokenizer.context() != input.length {
            let what = format!(
                "stops at {} tokens, but the manifest asks for {}",
                tokenizer.context(),
                input.length
            );
            let remedy = "Mend \"model_max_length\" in tokenizer_config.json, or `length` in the manifest.";
            return Err(Error::bad(place.display().to_string(), what, remedy));
        }
        Ok(Self {
            input: input.clone(),
            tokenizer,
        })
    }

    /// Names of the inputs that are fed.
    pub fn inputs(&self) -> Vec<&str> {
        [Some(&self.input.ids), self.input.mask.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect()
    }

    /// Checks that a network takes what this gives.
    ///
    /// # Errors
    /// As [`Network::check_tokens`].
    pub fn check(&self, network: &Network) -> Result<()> {
        let inputs = self.inputs();
        inputs
            .into_iter()
            .try_for_each(|name| network.check_tokens(name, self.input.length))
    }

    /// Tokens of prompts.
    ///
    /// # Errors
    /// The vocabulary cannot write a prompt.
    pub fn read(&self, prompts: &[&str]) -> Result<TokenRows> {
        let shape = (prompts.len(), self.input.length);
        let mut rows = TokenRows {
            ids: Array2::from_elem(shape, self.input.pad_id),
            mask: Array2::zeros(shape),
        };
        for (row, prompt) in prompts.iter().enumerate() {
            let Cleaning::NoneV1 = self.input.cleaning;
            let tokens = self.tokenizer.encode(prompt)?;
            for (column, &id) in tokens.ids[..tokens.used].iter().enumerate() {
                rows.ids[[row, column]] = id;
                rows.mask[[row, column]] = 1;
            }
        }
        Ok(rows)
    }

    /// What the network is fed for `tokens`, by the inputs' names.
    pub fn values<'a>(&'a self, tokens: &'a TokenRows) -> Vec<(&'a str, Values<'a>)> {
        let sources = [
            (Some(&self.input.ids), &tokens.ids),
            (self.input.mask.as_ref(), &tokens.mask),
        ];
        let named = sources
            .into_iter()
            .filter_map(|(name, source)| Some((name?.as_str(), Values::Integers(source.view().into_dyn()))));
        named.collect()
    }
}
