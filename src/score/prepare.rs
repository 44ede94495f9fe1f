//! The parallel half of scoring: records are read, hashed, decoded and resized while the networks work.

use std::collections::HashSet;
use std::sync::mpsc::SyncSender;

use ndarray::Array1;
use rayon::prelude::*;

use super::features::KnownFeatures;
use super::source::{Picture, Record, Records};
use crate::Result;
use crate::data::cache::Key;
use crate::data::image::decode;
use crate::reward::Preprocessor;

/// Records that are prepared at once.
const CHUNK: usize = 32;

/// Chunks that wait for the networks.
pub(super) const CHUNKS_WAITING: usize = 2;

/// Records that go through the networks together.
pub(super) struct Chunk {
    pub records: Vec<Prepared>,
    /// Pixels for each kind of preprocessing.
    pub pixels: Vec<Pixels>,
}

/// A record that was looked at.
pub(super) struct Prepared {
    pub record: Record,
    /// Per tower its features, if they are known, and their name in the cache; nothing where there is a problem.
    pub features: Features,
    pub problem: Option<String>,
}

/// Pixels of those records of a chunk that need them (N,C,H,W).
#[derive(Default)]
pub(super) struct Pixels {
    pub values: Vec<f32>,
    /// Which records they belong to.
    rows: Vec<usize>,
}

impl Pixels {
    /// Pictures in here.
    pub fn slots(&self) -> usize {
        self.rows.len()
    }

    /// Which of the pictures belongs to a record.
    pub fn slot(&self, row: usize) -> Option<usize> {
        self.rows.binary_search(&row).ok()
    }
}

impl Chunk {
    /// The prompt of a record; empty where there is none.
    pub fn prompt(&self, row: usize) -> &str {
        self.records[row].record.prompt.as_deref().unwrap_or_default()
    }
}

/// Prepares records in order and sends them in chunks.
pub(super) struct Preparer {
    pub preprocessors: Vec<Preprocessor>,
    /// Content hash, preprocessor, and whether features belong to picture and prompt.
    pub towers: Vec<([u8; 32], usize, bool)>,
    /// Features that need not be computed.
    pub known: Option<KnownFeatures>,
}

type Features = Vec<(Key, Option<Array1<f32>>)>;

/// Pixels per preprocessor, where they are needed.
type Planes = Vec<Option<Vec<f32>>>;

impl Preparer {
    /// Ends early, without a word, when nobody receives any more.
    pub fn run(self, mut records: Records<'_>, send: &SyncSender<Result<Chunk>>) {
        loop {
            let batch: Result<Vec<Record>> = records.by_ref().take(CHUNK).collect();
            let chunk = match batch {
                Ok(batch) if batch.is_empty() => return,
                Ok(batch) => Ok(self.prepare(batch)),
                Err(error) => Err(error),
            };
            let ended = chunk.is_err();
            if send.send(chunk).is_err() || ended {
                return;
            }
        }
    }

    fn prepare(&self, batch: Vec<Record>) -> Chunk {
        let ones: Vec<(Prepared, Planes)> = batch
            .into_par_iter()
            .with_max_len(1)
            .map(|record| self.one(record))
            .collect();
        let mut chunk = Chunk {
            records: Vec::with_capacity(ones.len()),
            pixels: self.preprocessors.iter().map(|_| Pixels::default()).collect(),
        };
        for (row, (prepared, pixels)) in ones.into_iter().enumerate() {
            chunk.records.push(prepared);
            for (all, own) in chunk.pixels.iter_mut().zip(pixels) {
                if let Some(own) = own {
                    all.values.extend(own);
                    all.rows.push(row);
                }
            }
        }
        chunk
    }

    fn one(&self, mut record: Record) -> (Prepared, Planes) {
        let outcome = self.pixels(&record);
        if let Picture::Bytes(bytes) = &mut record.picture {
            // Nobody looks at them again.
            *bytes = Vec::new();
        }
        let (features, pixels, problem) = match outcome {
            Ok((features, pixels)) => (features, pixels, None),
            Err(problem) => (Vec::new(), vec![None; self.preprocessors.len()], Some(problem)),
        };
        let prepared = Prepared {
            record,
            features,
            problem,
        };
        (prepared, pixels)
    }

    fn pixels(&self, record: &Record) -> Result<(Features, Planes), String> {
        let bytes = record.picture.read()?;
        let content = Key::of(&[&bytes]);
        let prompt = record.prompt.as_deref().unwrap_or_default();
        let lookup = |(hash, _, reads_prompt): &([u8; 32], usize, bool)| {
            let prompt = if *reads_prompt { prompt } else { "" };
            let key = Key::of(&[b"features", hash, content.as_bytes(), prompt.as_bytes()]);
            (key, self.known.as_ref().and_then(|known| known.read(key)))
        };
        let features: Features = self.towers.iter().map(lookup).collect();
        let mut pixels = vec![None; self.preprocessors.len()];
        let missing = self
            .towers
            .iter()
            .zip(&features)
            .filter(|(_, (_, known))| known.is_none());
        let needed: HashSet<usize> = missing.map(|((_, preprocessor, _), _)| *preprocessor).collect();
        if needed.is_empty() {
            return Ok((features, pixels));
        }
        let image = decode(&bytes)?;
        for index in needed {
            let preprocessor = &self.preprocessors[index];
            let mut values = vec![0.0; preprocessor.len()];
            preprocessor.apply(&image, &mut values);
            pixels[index] = Some(values);
        }
        Ok((features, pixels))
    }
}
