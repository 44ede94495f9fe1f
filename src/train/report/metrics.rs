//! `metrics.jsonl`: a JSON object a line, a line a step.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Event, Listener};
use crate::{Error, Result};

/// The file, open for appending.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens or creates the file, keeping the lines of the first `steps` steps: 0 for a new run, the checkpoint's
    /// step when one is resumed. What a run that was cut off wrote after its checkpoint is done again.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(path: &Path, steps: u64) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(Error::io(path, "open"))?;
        let mut metrics = Self {
            path: path.to_path_buf(),
            file,
        };
        metrics.keep(steps)?;
        Ok(metrics)
    }

    /// Cuts the file behind the last whole line of a step up to `steps`.
    fn keep(&mut self, steps: u64) -> Result<()> {
        let end = self.end_of(steps).map_err(Error::io(&self.path, "read"))?;
        let mut cut = || {
            self.file.set_len(end)?;
            self.file.seek(SeekFrom::Start(end))
        };
        cut().map(drop).map_err(Error::io(&self.path, "cut"))
    }

    fn end_of(&mut self, steps: u64) -> std::io::Result<u64> {
        #[derive(Deserialize)]
        struct Line {
            step: u64,
        }
        self.file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::new(&self.file);
        let (mut end, mut line) = (0, Vec::new());
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)? as u64;
            let counts = line.ends_with(b"\n")
                && serde_json::from_slice::<Line>(&line).is_ok_and(|parsed| parsed.step <= steps);
            if !counts {
                return Ok(end);
            }
            end += length;
        }
    }
}

impl Listener for MetricsFile {
    fn hear(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Step(report) => {
                let mut line = serde_json::to_vec(report).expect("a report is plain data with text keys");
                line.push(b'\n');
                self.file.write_all(&line).map_err(Error::io(&self.path, "write"))
            }
            Event::RolledBack { to, .. } => self.keep(*to),
            Event::Started { .. } | Event::Note(_) | Event::Finished => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Measured, StepReport};
    use super::*;

    fn report(step: u64) -> StepReport {
        StepReport {
            step,
            loss: 0.1 + 0.2,
            acc: Some(0.5),
            ..StepReport::default()
        }
    }

    fn write(metrics: &mut MetricsFile, steps: std::ops::RangeInclusive<u64>) {
        for step in steps {
            metrics.hear(&Event::Step(&report(step))).unwrap();
        }
    }

    fn steps(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64();
        text.lines().map(|line| step(line).unwrap()).collect()
    }

    #[test]
    fn a_line_holds_every_field_and_only_what_was_measured() {
        let mut full = report(3);
        let line = serde_json::to_string(&full).unwrap();
        let expected = r#"{"step":3,"loss":0.30000000000000004,"lr":0.0,"acc":0.5,"margin":null,"e_w":0.0,"e_l":null,"ref_e_w":null,"ref_e_l":null,"grad_norm":0.0,"grad_factor":null,"weight_mean":0.0,"seconds":0.0}"#;
        assert_eq!(line, expected);
        full.measured = Measured {
            acc_init: Some(0.75),
            bins: Some(Vec::new()),
            ..Measured::default()
        };
        full.beta_effective = Some(1000.0);
        let line = serde_json::to_string(&full).unwrap();
        assert!(
            line.ends_with(r#""seconds":0.0,"beta_effective":1000.0,"acc_init":0.75,"bins":[]}"#),
            "{line}"
        );
    }

    #[test]
    fn a_resumed_run_continues_behind_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        write(&mut MetricsFile::open(&path, 0).unwrap(), 1..=5);
        // The run was cut off in the middle of a line.
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"step\":6,\"lo").unwrap();
        write(&mut MetricsFile::open(&path, 3).unwrap(), 4..=6);
        assert_eq!(steps(&path), [1, 2, 3, 4, 5, 6]);

        let mut metrics = MetricsFile::open(&path, 6).unwrap();
        metrics.hear(&Event::RolledBack { to: 2, reason: "" }).unwrap();
        write(&mut metrics, 3..=3);
        assert_eq!(steps(&path), [1, 2, 3]);

        MetricsFile::open(&path, 0).unwrap();
        assert_eq!(steps(&path), [0; 0]);
    }
}
