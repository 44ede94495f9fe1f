//! KID: squared maximum mean discrepancy under the cubic kernel (x·y/D + 1)³, averaged over random subsets
//! (Bińkowski et al. 2018), with the estimator of clean-fid and torch-fidelity: unbiased within the sets.

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{finite, same_length};
use crate::rng::{PairId, Purpose, Stream, Streams, Visit};
use crate::{Error, Result};

/// Which subsets are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KidOptions {
    /// Number of subsets.
    pub subsets: usize,
    /// Pictures of a subset, or all where a set has fewer.
    pub subset_size: usize,
    /// Of the draws.
    pub seed: u64,
}

impl Default for KidOptions {
    /// As published.
    fn default() -> Self {
        Self {
            subsets: 100,
            subset_size: 1000,
            seed: 0,
        }
    }
}

/// Kernel inception distance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Kid {
    /// Mean over subsets.
    pub mean: f64,
    /// Standard deviation over subsets (divisor n), as torch-fidelity reports it.
    pub std: f64,
}

/// KID of two sets of features (N,D) and (M,D), over random subsets without replacement.
///
/// # Errors
/// The features differ in length, or a set has fewer than two pictures.
pub fn kid(x: ArrayView2<'_, f32>, y: ArrayView2<'_, f32>, options: &KidOptions) -> Result<Kid> {
    let size = options.subset_size.min(x.nrows()).min(y.nrows());
    let streams = Streams::new(options.seed);
    let subsets = (0..options.subsets as u64).map(|index| {
        let mut stream = streams.pair(Purpose::Subset, PairId(index), Visit(0));
        let of_x = draw(x.nrows(), size, &mut stream);
        (of_x, draw(y.nrows(), size, &mut stream))
    });
    kid_on_subsets(x, y, &subsets.collect::<Vec<_>>())
}

/// `size` different numbers below `n`, all choices equally likely.
fn draw(n: usize, size: usize, stream: &mut Stream) -> Vec<usize> {
    let mut all: Vec<usize> = (0..n).collect();
    for i in 0..size {
        let other = i + stream.below((n - i) as u64) as usize;
        all.swap(i, other);
    }
    all.truncate(size);
    all
}

/// KID over given subsets: rows of `x` and as many of `y` each.
///
/// # Errors
/// As [`kid`], or there is no subset.
pub fn kid_on_subsets(
    x: ArrayView2<'_, f32>,
    y: ArrayView2<'_, f32>,
    subsets: &[(Vec<usize>, Vec<usize>)],
) -> Result<Kid> {
    same_length(x.ncols(), y.ncols())?;
    finite(x)?;
    finite(y)?;
    let smallest = subsets.iter().map(|(of_x, of_y)| of_x.len().min(of_y.len()));
    if smallest.min().unwrap_or(0) < 2 {
        return Err(Error::bad(
            "KID",
            format!(
                "needs two pictures in each set, not {} and {}",
                x.nrows(),
                y.nrows()
            ),
            "Give more pictures.",
        ));
    }
    let (x, y) = (x.mapv(f64::from), y.mapv(f64::from));
    let values: Vec<f64> = subsets
        .par_iter()
        .map(|(of_x, of_y)| discrepancy(&x.select(Axis(0), of_x), &y.select(Axis(0), of_y)))
        .collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
    Ok(Kid {
        mean,
        std: variance.sqrt(),
    })
}

/// Σ_{i≠j} k(xᵢ,xⱼ)/(m(m−1)) + the same of y − 2 Σ k(xᵢ,yⱼ)/m².
fn discrepancy(x: &Array2<f64>, y: &Array2<f64>) -> f64 {
    let kernel = |a: &Array2<f64>, b: &Array2<f64>| {
        let scale = 1.0 / a.ncols() as f64;
        a.dot(&b.t()).mapv_into(|product| (product * scale + 1.0).powi(3))
    };
    let within = |a: &Array2<f64>| {
        let (all, m) = (kernel(a, a), a.nrows() as f64);
        (all.sum() - all.diag().sum()) / (m * (m - 1.0))
    };
    within(x) + within(y) - 2.0 * kernel(x, y).mean().unwrap_or(0.0)
}
