//! TensorBoard event files: TFRecords of `Event` messages with scalars.
//!
//! A record is the length of its data (u64), the masked CRC-32C of these eight bytes, the data, and the data's masked
//! CRC-32C, all little-endian. The messages (tensorflow/core/util/event.proto, framework/summary.proto) are of three
//! kinds here and few fields, so their wire format is written by hand:
//!
//! ```text
//! Event      { 1: wall_time double, 2: step int64, 3: file_version string | 5: Summary | 7: SessionLog }
//! Summary    { 1: repeated Value { 1: tag string, 2: simple_value float } }
//! SessionLog { 1: status enum, START = 1 }
//! ```

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Event, Listener, Measured, StepReport};
use crate::{Error, Result};

/// A new event file of a run. TensorBoard reads all event files of a folder as one run.
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    file: File,
}

impl TensorBoard {
    /// Creates the file in `folder`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        let now = wall_time();
        let name = format!(
            "events.out.tfevents.{:010}.ortdpo.{}",
            now as u64,
            std::process::id()
        );
        let path = folder.join(name);
        let file = File::create(&path).map_err(Error::io(&path, "create"))?;
        let mut board = Self { path, file };
        board.write(&event(now, 0, &Content::FileVersion("brain.Event:2")))?;
        Ok(board)
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        self.file
            .write_all(&record(event))
            .map_err(Error::io(&self.path, "write"))
    }

    fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> Result<()> {
        match scalars {
            [] => Ok(()),
            _ => self.write(&event(wall_time(), step, &Content::Scalars(scalars))),
        }
    }

    /// Tells TensorBoard that nothing from `step` on counts that was written so far.
    fn restart(&mut self, step: u64) -> Result<()> {
        self.write(&event(wall_time(), step, &Content::SessionStart))
    }
}

impl Listener for TensorBoard {
    fn hear(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Started { done, initial, .. } => {
                if *done > 0 {
                    self.restart(done + 1)?;
                }
                match initial {
                    Some(measured) => self.scalars(0, &measured_scalars(measured)),
                    None => Ok(()),
                }
            }
            Event::Step(report) => self.scalars(report.step, &step_scalars(report)),
            Event::RolledBack { to, .. } => self.restart(to + 1),
            Event::Note(_) | Event::Finished => Ok(()),
        }
    }
}

fn step_scalars(report: &StepReport) -> Vec<(String, f64)> {
    let always = [
        ("train/loss", Some(report.loss)),
        ("train/acc", report.acc),
        ("train/margin", report.margin),
        ("train/lr", Some(report.lr)),
        ("train/grad_norm", Some(report.grad_norm)),
        ("train/grad_factor", report.grad_factor),
        ("train/loss_scale", report.loss_scale),
        ("train/weight_mean", Some(report.weight_mean)),
        ("train/seconds", Some(report.seconds)),
        ("error/e_w", Some(report.e_w)),
        ("error/e_l", report.e_l),
        ("error/ref_e_w", report.ref_e_w),
        ("error/ref_e_l", report.ref_e_l),
        ("reference/anchor_loss", report.anchor_loss),
        ("reference/anchor_grad_ratio", report.anchor_grad_ratio),
    ];
    let mut scalars = present(&always);
    scalars.extend(measured_scalars(&report.measured));
    scalars
}

fn measured_scalars(measured: &Measured) -> Vec<(String, f64)> {
    let mut scalars = present(&[
        ("heldout/acc_init", measured.acc_init),
        ("heldout/margin_init", measured.margin_init),
        ("heldout/acc_ref", measured.acc_ref),
        ("heldout/margin_ref", measured.margin_ref),
        ("reference/kl_ref_init", measured.kl_ref_init),
        ("reference/d_ref_init", measured.d_ref_init),
    ]);
    let pictures = measured.pictures.iter();
    scalars.extend(pictures.map(|(name, mean)| (name.replacen('.', "/", 1), *mean)));
    for (bin, report) in measured.bins.iter().flatten().enumerate() {
        let of_bin = [
            ("w", Some(report.w)),
            ("v", report.v),
            ("margin", report.margin),
            ("acc", report.acc),
        ];
        let named = of_bin
            .into_iter()
            .filter_map(|(key, value)| Some((format!("bin_{bin:02}/{key}"), value?)));
        scalars.extend(named);
    }
    scalars
}

fn present(scalars: &[(&str, Option<f64>)]) -> Vec<(String, f64)> {
    scalars
        .iter()
        .filter_map(|(tag, value)| Some(((*tag).to_owned(), (*value)?)))
        .collect()
}

fn wall_time() -> f64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.unwrap_or(Duration::ZERO).as_secs_f64()
}

enum Content<'a> {
    FileVersion(&'a str),
    Scalars(&'a [(String, f64)]),
    SessionStart,
}

fn event(wall_time: f64, step: u64, content: &Content<'_>) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, wall_time);
    if step > 0 {
        event.varint(2, step);
    }
    match content {
        Content::FileVersion(version) => event.bytes(3, version.as_bytes()),
        Content::Scalars(scalars) => {
            let mut summary = Message::default();
            for (tag, value) in *scalars {
                let mut scalar = Message::default();
                scalar.bytes(1, tag.as_bytes());
                scalar.float(2, *value as f32);
                summary.bytes(1, &scalar.0);
            }
            event.bytes(5, &summary.0);
        }
        Content::SessionStart => {
            let mut session = Message::default();
            session.varint(1, 1);
            event.bytes(7, &session.0);
        }
    }
    event.0
}

/// A message in the protocol buffers' wire format: fields as tag, which holds number and wire type, and value.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.raw_varint(field << 3);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.raw_varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.raw_varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// TFRecord's CRC, rotated and shifted so that data that hold their own CRC do not weaken it.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timestep::BinReport;

    /// Written by `scripts/fixtures/tensorboard_events.py` with the Python package `tensorboard`.
    #[test]
    fn records_are_those_of_the_reference_writer() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tensorboard.tfevents");
        let expected = std::fs::read(path).unwrap();
        let scalars = [
            ("train/loss".to_owned(), 0.625),
            ("heldout/acc_init".to_owned(), 0.5),
        ];
        let events = [
            event(1.7e9, 0, &Content::FileVersion("brain.Event:2")),
            event(1.7e9 + 0.25, 1, &Content::Scalars(&scalars)),
            event(1.7e9 + 1.0, 300, &Content::Scalars(&scalars[..1])),
            event(1.7e9 + 2.0, 200, &Content::SessionStart),
        ];
        let ours: Vec<u8> = events.iter().flat_map(|event| record(event)).collect();
        assert_eq!(ours, expected);
    }

    #[test]
    fn everything_measured_becomes_a_scalar() {
        let bin = BinReport {
            p: 0.5,
            w: 1.5,
            v: None,
            margin: Some(0.25),
            acc: None,
        };
        let report = StepReport {
            margin: Some(0.125),
            measured: Measured {
                d_ref_init: Some(0.01),
                bins: Some(vec![bin]),
                ..Measured::default()
            },
            ..StepReport::default()
        };
        let scalars = step_scalars(&report);
        let value = |tag: &str| {
            scalars
                .iter()
                .find(|(name, _)| name == tag)
                .map(|(_, value)| *value)
        };
        assert_eq!(value("train/margin"), Some(0.125));
        assert_eq!(value("train/acc"), None);
        assert_eq!(value("reference/d_ref_init"), Some(0.01));
        assert_eq!(
            (value("bin_00/w"), value("bin_00/v"), value("bin_00/margin")),
            (Some(1.5), None, Some(0.25))
        );
    }

    #[test]
    fn a_resumed_run_voids_what_came_later() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(folder.path()).unwrap();
        let started = Event::Started {
            done: 20,
            steps: 40,
            pairs_per_step: 1,
            initial: None,
        };
        board.hear(&started).unwrap();
        let bytes = std::fs::read(&board.path).unwrap();
        // The second record: step 21, session log with status START.
        let start = [0x10, 21, 0x3a, 2, 0x08, 1];
        assert!(bytes.windows(start.len()).any(|window| window == start));
        assert!(
            board
                .path
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("events.out.tfevents.")
        );
    }
}
