//! Changing the size of pictures exactly as the reference implementations do.
//!
//! Scores and set metrics depend on how a picture was shrunk more than on most other choices, and every library does
//! it a little differently. Each file here follows one of them: [`pillow`] to the last bit, [`torch`] to rounding.

pub mod pillow;
pub mod torch;

use std::ops::Range;

/// Source positions that make up one target position, and their weights, which sum to 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Taps<W> {
    /// First source position.
    pub start: usize,
    /// One weight per source position from `start` on.
    pub weights: Vec<W>,
}

/// A kernel by its support (half width) at scale 1 and its value at a distance.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    pub support: f64,
    pub value: fn(f64) -> f64,
}

/// For each position in `wanted` of `target` ones its window in `source` positions, the kernel widened when shrinking:
/// Pillow's `precompute_coeffs`, which PyTorch's antialiased interpolation follows.
pub(crate) fn antialiased(source: u32, target: u32, wanted: Range<u32>, kernel: Kernel) -> Vec<Taps<f64>> {
    assert!(wanted.end <= target, "a part of the target");
    let scale = f64::from(source) / f64::from(target);
    let widened = scale.max(1.0);
    let support = kernel.support * widened;
    let taps = |i: u32| {
        let center = (f64::from(i) + 0.5) * scale;
        // Truncation toward zero before the lower bound, as the C code does.
        let start = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(source as usize);
        let value = |x: usize| (kernel.value)((x as f64 - center + 0.5) / widened);
        let mut weights: Vec<f64> = (start..end).map(value).collect();
        let sum: f64 = weights.iter().sum();
        if sum != 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        Taps { start, weights }
    };
    wanted.map(taps).collect()
}

/// The cubic convolution kernel of Keys (1981) with parameter `a` at distance `x`.
pub(crate) fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}
