//! Samples of several sizes, sorted into batches of one size each.

use std::collections::BTreeMap;

use super::engine::Samples;
use crate::pipeline::denoiser::Geometry;

/// Samples of one size, with their positions in the order in which they came.
pub struct Batch {
    /// As many as a run of the session has; the last ones may be there to fill it up.
    pub samples: Samples,
    /// Positions of those that count.
    pub positions: Vec<usize>,
}

/// Sorts samples as they come.
pub struct BySize {
    geometry: Geometry,
    open: BTreeMap<[usize; 2], Batch>,
    pushed: usize,
}

impl BySize {
    /// For batches of `geometry.samples`.
    pub fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            open: BTreeMap::new(),
            pushed: 0,
        }
    }

    /// Takes the next sample, which `add` puts into the batch of its size (height and width of the latent). Returns that batch
    /// if it is full now.
    pub fn push(&mut self, size: [usize; 2], add: impl FnOnce(&mut Samples)) -> Option<Batch> {
        let batch = self.open.entry(size).or_insert_with(|| Batch {
            samples: Samples::with_geometry(&self.geometry.with_latent_size(size)),
            positions: Vec::new(),
        });
        add(&mut batch.samples);
        batch.positions.push(self.pushed);
        self.pushed += 1;
        match batch.positions.len() == self.geometry.samples {
            true => self.open.remove(&size),
            false => None,
        }
    }

    /// What is left, each batch filled up with copies of its last sample.
    pub fn rest(self) -> impl Iterator<Item = Batch> {
        let samples = self.geometry.samples;
        self.open.into_values().map(move |mut batch| {
            batch.samples.pad_to(samples);
            batch
        })
    }
}
