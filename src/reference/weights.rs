//! Where the reference's weights are between their uses.

use std::borrow::Cow;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use half::bf16;
use memmap2::MmapMut;
use rayon::prelude::*;

use super::Blend;
use crate::params::ParamSet;
use crate::rng::{Purpose, Streams};
use crate::{Error, Result};

/// Values per parallel task, which is also what one stream of random numbers rounds: part of what makes runs repeatable.
const CHUNK: usize = 1 << 14;

/// The reference's weights.
#[derive(Debug)]
pub enum ReferenceWeights {
    /// In memory; the same memory as the initial policy's until they move.
    Resident(ParamSet),
    /// In a file.
    Mapped(MappedDifference),
}

/// What the reference differs from the initial policy, in bfloat16, in a memory-mapped file that goes with this value.
///
/// The difference is rounded, not the weights: it is small beside them, and a reference that has not moved is the initial
/// policy bit for bit. Rounding is stochastic, up or down with a probability that makes the expected value exact. Rounding to
/// the nearest would stop a moving average: its steps of a share α of the way are smaller than bfloat16's spacing of 2⁻⁸ as
/// soon as a fraction 2⁻⁹/α of the way is left.
#[derive(Debug)]
pub struct MappedDifference {
    map: MmapMut,
    path: PathBuf,
    streams: Streams,
}

impl ReferenceWeights {
    /// A reference equal to the initial policy.
    pub fn resident(initial: &ParamSet) -> Self {
        Self::Resident(initial.clone())
    }

    /// A reference equal to the initial policy, whose difference from it is kept in a new file at `path`. `streams` are the
    /// run's.
    ///
    /// # Errors
    /// The file cannot be written or mapped.
    pub fn mapped(path: &Path, initial: &ParamSet, streams: Streams) -> Result<Self> {
        let bytes = (initial.values().len() * size_of::<bf16>()) as u64;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(Error::io(path, "create"))?;
        file.set_len(bytes).map_err(Error::io(path, "write"))?;
        // SAFETY: the file is this run's own; nothing else writes to it.
        let map = unsafe { MmapMut::map_mut(&file) }.map_err(Error::io(path, "map"))?;
        Ok(Self::Mapped(MappedDifference {
            map,
            path: path.to_owned(),
            streams,
        }))
    }

    /// The weights.
    pub fn read(&self, initial: &ParamSet) -> Cow<'_, ParamSet> {
        match self {
            Self::Resident(weights) => Cow::Borrowed(weights),
            Self::Mapped(mapped) => {
                let mut weights = initial.clone();
                let difference = mapped.values();
                if difference.par_iter().any(|d| *d != bf16::ZERO) {
                    weights
                        .values_mut()
                        .par_iter_mut()
                        .zip(difference)
                        .for_each(|(weight, d)| *weight += d.to_f32());
                }
                Cow::Owned(weights)
            }
        }
    }

    /// Moves the weights after optimizer step `step`.
    pub fn follow(&mut self, blend: Blend, policy: &ParamSet, initial: &ParamSet, step: u64) {
        match self {
            Self::Resident(weights) => blend.apply(weights, policy, initial),
            Self::Mapped(mapped) => mapped.change(initial, step, |from, difference, range| {
                let initial = &initial.values()[range.clone()];
                let policy: Vec<f32> = policy.values()[range]
                    .iter()
                    .zip(initial)
                    .map(|(p, i)| p - i)
                    .collect();
                let zero = vec![0.0; difference.len()];
                difference.copy_from_slice(from);
                blend.apply_block(difference, &policy, blend.pulls().then_some(&zero));
            }),
        }
    }

    /// Takes over `candidate`, the weights after optimizer step `step`; it may get the former ones.
    pub fn become_candidate(&mut self, candidate: &mut ParamSet, initial: &ParamSet, step: u64) {
        match self {
            Self::Resident(weights) => std::mem::swap(weights, candidate),
            Self::Mapped(mapped) => mapped.change(initial, step, |_, difference, range| {
                let initial = &initial.values()[range.clone()];
                for ((d, c), i) in difference.iter_mut().zip(&candidate.values()[range]).zip(initial) {
                    *d = c - i;
                }
            }),
        }
    }

    /// Becomes the initial policy again.
    pub fn reset(&mut self, initial: &ParamSet) {
        match self {
            Self::Resident(weights) => weights.copy_from(initial),
            Self::Mapped(mapped) => mapped.values_mut().fill(bf16::ZERO),
        }
    }

    /// What a checkpoint keeps: the weights, or exactly the difference that is in the file.
    pub fn kept(&self, initial: &ParamSet) -> Cow<'_, ParamSet> {
        match self {
            Self::Resident(weights) => Cow::Borrowed(weights),
            Self::Mapped(mapped) => {
                let mut kept = ParamSet::zeros(initial.layout());
                kept.values_mut()
                    .par_iter_mut()
                    .zip(mapped.values())
                    .for_each(|(value, d)| *value = d.to_f32());
                Cow::Owned(kept)
            }
        }
    }

    /// Takes over what [`ReferenceWeights::kept`] gave.
    pub fn restore(&mut self, kept: ParamSet, initial: &ParamSet) {
        match self {
            Self::Resident(weights) => {
                *weights = kept;
                weights.share_equal(initial);
            }
            Self::Mapped(mapped) => mapped
                .values_mut()
                .par_iter_mut()
                .zip(kept.values())
                .for_each(|(d, value)| *d = bf16::from_f32(*value)),
        }
    }
}

impl MappedDifference {
    fn values(&self) -> &[bf16] {
        bytemuck::cast_slice(&self.map)
    }

    fn values_mut(&mut self) -> &mut [bf16] {
        bytemuck::cast_slice_mut(&mut self.map)
    }

    /// Replaces every block of the difference: `new(block, out, range)` is given the block in f32, fills `out`, and what it
    /// filled is rounded.
    fn change(
        &mut self,
        initial: &ParamSet,
        step: u64,
        new: impl Fn(&[f32], &mut [f32], std::ops::Range<usize>) + Sync,
    ) {
        debug_assert_eq!(self.values().len(), initial.values().len());
        let streams = self.streams;
        self.values_mut()
            .par_chunks_mut(CHUNK)
            .enumerate()
            .for_each(|(index, block)| {
                let from: Vec<f32> = block.iter().map(|d| d.to_f32()).collect();
                let mut out = vec![0.0; block.len()];
                let start = index * CHUNK;
                new(&from, &mut out, start..start + block.len());
                let mut stream = streams.image(Purpose::Rounding, step, index as u64);
                let mut noise = vec![0u8; 2 * block.len()];
                stream.fill_bytes(&mut noise);
                for ((d, value), noise) in block.iter_mut().zip(out).zip(noise.chunks_exact(2)) {
                    *d = round(value, u16::from_le_bytes([noise[0], noise[1]]));
                }
            });
    }
}

impl Drop for MappedDifference {
    fn drop(&mut self) {
        // Left behind by a killed run it is overwritten by the next one: nothing reads it.
        fs::remove_file(&self.path).ok();
    }
}

/// One of the two bfloat16 numbers around `value`: the one farther from zero with the probability that `noise`, uniform in all
/// of u16, exceeds what is missing to it. A value that bfloat16 has stays.
fn round(value: f32, noise: u16) -> bf16 {
    if !value.is_finite() {
        return bf16::from_f32(value);
    }
    bf16::from_bits((value.to_bits().saturating_add(u32::from(noise)) >> 16) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Layout;

    const LEN: usize = 40_000;

    fn set(name: &str, scale: f32) -> ParamSet {
        let mut set = ParamSet::zeros(&Layout::new([("w".to_owned(), vec![LEN])]).unwrap());
        let mut stream = Streams::new(3).named(Purpose::Noise, name);
        stream.fill_normal(set.values_mut());
        set.values_mut().iter_mut().for_each(|value| *value *= scale);
        set
    }

    fn plus(a: &ParamSet, b: &ParamSet) -> ParamSet {
        let mut sum = a.clone();
        sum.values_mut()
            .iter_mut()
            .zip(b.values())
            .for_each(|(a, b)| *a += b);
        sum
    }

    /// How far `found` is from `expected`, as a share of what `expected` differs from `initial`.
    fn off(found: &ParamSet, expected: &ParamSet, initial: &ParamSet) -> f64 {
        let square = |a: &ParamSet, b: &ParamSet| -> f64 {
            let differences = a.values().iter().zip(b.values());
            differences.map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        (square(found, expected) / square(expected, initial)).sqrt()
    }

    #[test]
    fn rounding_is_to_a_neighbour_and_exact_on_average() {
        for value in [1.0f32, -3.0, 1.0 + 2.0f32.powi(-10), -1e-5, 3.3e-7, 123.4] {
            let sum: f64 = (0..=u16::MAX).map(|noise| f64::from(round(value, noise))).sum();
            let mean = sum / 65536.0;
            assert!(
                (mean - f64::from(value)).abs() <= f64::from(value.abs()) * 1e-7,
                "{value} {mean}"
            );
            let spacing = value.abs() * 2.0f32.powi(-7);
            assert!((0..=u16::MAX).all(|noise| (f32::from(round(value, noise)) - value).abs() < spacing));
        }
        assert_eq!(round(-2.5, u16::MAX), bf16::from_f32(-2.5));
        assert!(round(f32::NAN, 7).is_nan());
        assert!(round(f32::INFINITY, 7).is_infinite());
    }

    #[test]
    fn a_mapped_average_gets_where_the_resident_one_gets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reference.bf16");
        let initial = set("initial", 0.1);
        let policy = plus(&initial, &set("way", 1e-4));
        let mut resident = ReferenceWeights::resident(&initial);
        let mut mapped = ReferenceWeights::mapped(&path, &initial, Streams::new(0)).unwrap();
        assert_eq!(*mapped.read(&initial), initial);
        let blend = Blend::new(0.003, 0.0);
        for step in 1..=600 {
            resident.follow(blend, &policy, &initial, step);
            mapped.follow(blend, &policy, &initial, step);
        }
        let expected = resident.read(&initial).into_owned();
        // The average has gone 84 % of the way. Rounded to the nearest, its steps would have ended at a third of it.
        let gone = 1.0 - off(&expected, &policy, &initial);
        assert!((gone - 0.835).abs() < 0.01, "{gone}");
        let error = off(&mapped.read(&initial), &expected, &initial);
        assert!(error < 0.04, "{error}");
        let mean = |set: &ParamSet| -> f64 {
            let ways = set.values().iter().zip(initial.values()).zip(policy.values());
            let along = ways.map(|((r, i), p)| f64::from(r - i) * f64::from(p - i));
            along.sum()
        };
        let bias = mean(&mapped.read(&initial)) / mean(&expected) - 1.0;
        assert!(bias.abs() < 2e-3, "{bias}");

        // A checkpoint holds exactly what is in the file.
        let kept = mapped.kept(&initial).into_owned();
        let mut restored =
            ReferenceWeights::mapped(&folder.path().join("second.bf16"), &initial, Streams::new(0)).unwrap();
        restored.restore(kept.clone(), &initial);
        assert_eq!(*restored.kept(&initial), kept);
        mapped.follow(blend, &policy, &initial, 601);
        restored.follow(blend, &policy, &initial, 601);
        assert_eq!(restored.read(&initial), mapped.read(&initial));

        mapped.reset(&initial);
        assert_eq!(*mapped.read(&initial), initial);
        drop(mapped);
        assert!(!path.exists());
    }

    #[test]
    fn a_candidate_is_taken_over_within_a_rounding() {
        let folder = tempfile::tempdir().unwrap();
        let initial = set("initial", 0.1);
        let policy = plus(&initial, &set("way", 1e-4));
        let path = folder.path().join("reference.bf16");
        let mut mapped = ReferenceWeights::mapped(&path, &initial, Streams::new(0)).unwrap();
        mapped.become_candidate(&mut policy.clone(), &initial, 5);
        let error = off(&mapped.read(&initial), &policy, &initial);
        assert!(error < 4e-3, "{error}");
        let mut resident = ReferenceWeights::resident(&initial);
        resident.become_candidate(&mut policy.clone(), &initial, 5);
        assert_eq!(*resident.read(&initial), policy);
        // The `pull` anchor is part of the blend: one update goes where the resident reference goes.
        let blend = Blend::new(0.5, 0.3);
        resident.follow(blend, &initial, &initial, 6);
        mapped.follow(blend, &initial, &initial, 6);
        let error = off(&mapped.read(&initial), &resident.read(&initial), &initial);
        assert!(error < 8e-3, "{error}");
    }
}
