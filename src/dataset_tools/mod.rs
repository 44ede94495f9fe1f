//! What `ortdpo data` does with preference data sets of any kind: look at them, check them, turn them into the parquet files
//! that training reads fastest, divide them, label them anew.
//!
//! ```text
//! Input ─► splits of any kind ─each_row: pictures read on all cores─► inspect, validate
//!                                                                 └─► convert, split, relabel ─► ShardWriter
//! ```
//!
//! Everything streams: memory holds a few dozen rows, and small fingerprints of what was seen.

mod convert;
mod input;
pub mod inspect;
mod relabel;
mod shard_writer;
#[cfg(test)]
mod tests;
mod validate;

use std::ops::ControlFlow;

use rayon::prelude::*;

use crate::data::cache::Key;
use crate::data::{PairSource, Row};
use crate::{Error, Result};

pub use crate::pairs::{HoldOut, normalised};
pub use convert::{Conversion, Converted, Outcome, convert};
pub use input::{Input, OpenSplit, Opened};
pub use relabel::{Relabelled, Vote, relabel};
pub use validate::{Problem, Validation, validate};

/// Rows whose pictures are read at once; at Pick-a-Pic's 0.2 MB a picture some 13 MB.
const ROWS_AT_ONCE: usize = 32;

/// Hears how many rows are done; `Break` stops the work.
pub type OnRows<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;

/// Streams the rows of a source: `look` sees each on some core, `take` what it made of them, in order.
///
/// # Errors
/// The source or `take` give one, or `progress` asked to stop.
fn each_row<T: Send>(
    source: &dyn PairSource,
    progress: &mut OnRows<'_>,
    look: impl Fn(Row) -> T + Sync,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let mut rows = source.rows()?;
    let mut done = 0;
    loop {
        let chunk: Vec<Row> = rows.by_ref().take(ROWS_AT_ONCE).collect::<Result<_>>()?;
        if chunk.is_empty() {
            return Ok(());
        }
        done += chunk.len() as u64;
        let seen: Vec<T> = chunk.into_par_iter().with_max_len(1).map(&look).collect();
        seen.into_iter().try_for_each(&mut take)?;
        if progress(done).is_break() {
            return Err(Error::Interrupted(format!(
                "{done} of {} rows were read",
                source.len()
            )));
        }
    }
}

/// A prompt's fingerprint, the same for prompts that are [`normalised`] to the same words.
fn prompt_key(prompt: &str) -> Key {
    Key::of(&[normalised(prompt).as_bytes()])
}
