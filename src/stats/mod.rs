//! What is said of many scores: means with their errors, percentiles, win rates, bootstrap intervals.
//!
//! Scores of a prompt's images are not independent of each other, so what is drawn again in a bootstrap is the prompt
//! with all its images ([`bootstrap`]). Where models were trained with several seeds, seeds are drawn too ([`seeds`]).

mod bootstrap;
mod seeds;
mod summary;
mod win_rate;

pub use bootstrap::{Bootstrap, Interval, Resampling};
pub use seeds::{PromptDraw, SeedTable};
pub use summary::{Summary, percentile};
pub use win_rate::{WinRate, outcome};
