//! The YAML file of a run: one struct per section, with defaults, documentation and checks.

pub mod optimizer;
pub mod reference;
pub mod timestep;

use crate::{Error, Result};

/// An error at the key `place` unless the condition holds.
fn require(holds: bool, place: &str, what: impl Into<String>, remedy: &str) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::bad(place, what, remedy))
    }
}
