//! `metrics.jsonl` by columns. Reads what any version of the program wrote: a key that is missing or `null` in a line
//! leaves a gap, a key that is not known here is a column like the others.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Points (step, value) of one quantity.
pub type Column = Vec<(f64, f64)>;

/// The log of a run.
#[derive(Debug, Default)]
pub struct Metrics {
    /// By key; those of objects in the log, such as rewards, as `object.key`.
    pub columns: IndexMap<String, Column>,
    /// State of the timestep bins after a step, where it was logged.
    pub bins: Vec<(u64, Vec<Bin>)>,
    /// Last step of the log.
    pub steps: u64,
    /// Whether the last line is cut off: the run is being written, or was killed.
    pub torn: bool,
}

/// One timestep bin, the noisiest first. See [`crate::timestep::BinReport`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Bin {
    /// Probability of being drawn.
    pub p: Option<f64>,
    /// Mean loss weight.
    pub w: Option<f64>,
    /// Variance of the reward signal.
    pub v: Option<f64>,
    /// Mean held-out margin.
    pub margin: Option<f64>,
    /// Held-out implicit accuracy.
    pub acc: Option<f64>,
}

impl Metrics {
    /// Reads the file line by line.
    ///
    /// # Errors
    /// It cannot be read, or a line other than the last is not a JSON object with a `step`.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "read"))?;
        let mut reader = BufReader::new(file);
        let mut metrics = Self::default();
        let (mut line, mut number) = (Vec::new(), 0);
        loop {
            line.clear();
            let length = reader
                .read_until(b'\n', &mut line)
                .map_err(Error::io(path, "read"))?;
            if length == 0 {
                return Ok(metrics);
            }
            number += 1;
            match serde_json::from_slice(&line) {
                Ok(Value::Object(fields)) if fields.contains_key("step") => metrics.add(fields),
                _ if !line.ends_with(b"\n") => metrics.torn = true,
                _ => {
                    return Err(Error::bad(
                        format!("{}:{number}", path.display()),
                        "is not a JSON object with a step",
                        "Mend or delete the line.",
                    ));
                }
            }
        }
    }

    fn add(&mut self, fields: Map<String, Value>) {
        let Some(step) = fields["step"].as_u64() else {
            return;
        };
        self.steps = self.steps.max(step);
        for (key, value) in fields {
            match (key.as_str(), value) {
                ("step", _) => {}
                ("bins", value) => {
                    if let Ok(bins) = Vec::deserialize(value) {
                        self.bins.push((step, bins));
                    }
                }
                (_, Value::Object(inner)) => {
                    for (name, value) in &inner {
                        self.push(format!("{key}.{name}"), step, value);
                    }
                }
                (_, value) => self.push(key, step, &value),
            }
        }
    }

    fn push(&mut self, key: String, step: u64, value: &Value) {
        if let Some(value) = value.as_f64() {
            self.columns.entry(key).or_default().push((step as f64, value));
        }
    }

    /// One quantity; empty if it was never logged.
    pub fn column(&self, key: &str) -> &[(f64, f64)] {
        self.columns.get(key).map_or(&[], Vec::as_slice)
    }

    /// `key` minus `other`, where both were logged.
    pub fn difference(&self, key: &str, other: &str) -> Column {
        let mut others = self.column(other).iter().peekable();
        let mut difference = Vec::new();
        for &(step, value) in self.column(key) {
            while others.next_if(|o| o.0 < step).is_some() {}
            if let Some(o) = others.next_if(|o| o.0 == step) {
                difference.push((step, value - o.1));
            }
        }
        difference
    }
}
