//! How long the runs that are left will take, judging by those that are done.

use super::rows::{Phase, Row};
use crate::progress::clock;

/// Seconds of the runs so far.
#[derive(Debug, Default)]
pub(super) struct Estimate {
    seconds: Vec<(Phase, f64)>,
}

impl Estimate {
    /// Takes notice of finished runs.
    pub fn learn(&mut self, rows: &[Row]) {
        let finished = rows
            .iter()
            .filter(|row| row.run.is_some() && row.failure().is_none());
        self.seconds.extend(finished.map(|row| (row.phase, row.seconds)));
    }

    /// Words about `left` runs of a phase; nothing before a run has finished.
    pub fn of(&self, phase: Phase, left: usize) -> String {
        let alike = |(of, _): &&(Phase, f64)| *of == phase;
        let mut known: Vec<f64> = self.seconds.iter().filter(alike).map(|(_, s)| *s).collect();
        if known.is_empty() {
            known = self.seconds.iter().map(|(_, seconds)| *seconds).collect();
        }
        if known.is_empty() {
            return String::new();
        }
        let runs = if left == 1 { "run" } else { "runs" };
        let mean = known.iter().sum::<f64>() / known.len() as f64;
        format!("; about {} left for {left} {runs}", clock(mean * left as f64))
    }
}
