//! From scored pictures to preference pairs: what `ortdpo pairs` does, and what `ortdpo train` reads afterwards.
//!
//! ```text
//! pictures ──rewards, columns──► Candidate ──by prompt──► select ──► PreferencePair ──write──► parquet (Pick-a-Pic's columns)
//! ```
//!
//! Two questions are kept apart: which pictures of a prompt meet ([`Choose`]), and who is preferred when they do
//! ([`Label`]).

mod hold_out;
mod report;
mod select;
#[cfg(test)]
mod tests;
mod write;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use hold_out::{HoldOut, normalised};
pub use report::{Agreement, agreement};
pub use select::{Selection, select};
pub(crate) use select::{majority, meet, order, overall};
pub use write::write;

/// A picture with its prompt and scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// How the picture is called.
    pub name: String,
    /// Its file.
    pub file: PathBuf,
    /// What it was made for.
    pub prompt: String,
    /// What it was made with, if its source says.
    pub model: String,
    /// One per score, those that vote first.
    pub scores: Vec<f64>,
}

/// Which pictures of a prompt become pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Choose {
    /// The one with the highest score and the one with the lowest.
    BestWorst,
    /// Every two.
    All,
    /// Those that follow each other in the order of scores.
    Adjacent,
}

/// Which picture of a pair is preferred.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Label {
    /// The one with the higher score.
    Score,
    /// The one that more of the voting scores prefer, whatever their scales (BalancedDPO, Tamboli et al. 2025).
    Majority,
    /// The first with probability 1 / (1 + exp(-(s₀ - s₁) / (temperature · σ))), σ the standard deviation of all pairs'
    /// differences (Bradley and Terry 1952). Held-out pairs get [`Label::Score`]: noise there would only hide progress.
    BradleyTerry {
        /// 0 is the plain order, large values toss a coin.
        temperature: f64,
    },
}

/// How pairs are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairPlan {
    /// How many of a candidate's scores vote; the others are only reported.
    pub voters: usize,
    /// Who meets.
    pub choose: Choose,
    /// Who wins.
    pub label: Label,
    /// Pairs whose scores differ by less are left out. With several voters in standard deviations, see [`select`].
    pub min_margin: f64,
    /// Ties become pairs of label ½; otherwise they are left out.
    pub keep_ties: bool,
    /// Share of the prompts that are held out: 0 to 1.
    pub held_out: f64,
    /// Of all draws.
    pub seed: u64,
}

/// A pair by the numbers of its candidates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PreferencePair {
    /// The two pictures, in random order.
    pub images: [usize; 2],
    /// 1: the first is preferred, 0: the second, ½: a tie.
    pub label: f64,
    /// Their overall scores.
    pub scores: [f64; 2],
    /// Of a prompt that training does not see.
    pub held_out: bool,
}
