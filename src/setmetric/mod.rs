//! Metrics of whole sets of pictures, from one row of features per picture.
//!
//! ```text
//! pictures ──reward::RewardModel (any with features of a picture)──► rows of features ──► FID, KID, Vendi, diversity
//!                                                    reference.npz ──► (FID, and KID where it holds features)
//! ```
//!
//! The features say what "different" means, so results carry the name and hash of the extractor. Each metric equals its
//! reference implementation on the same features: FID pytorch-fid and clean-fid, KID clean-fid and torch-fidelity, Vendi
//! the vendi-score package, the perceptual distance the lpips package.

mod diversity;
mod frechet;
mod kernel;
mod pictures;
mod reference;
mod statistics;
#[cfg(test)]
mod tests;

pub use diversity::{Distance, mean_pairwise, vendi_score};
pub use frechet::frechet_distance;
pub use kernel::{Kid, KidOptions, kid, kid_on_subsets};
pub use pictures::{SetFeatures, embed};
pub use reference::Reference;
pub use statistics::{Moments, Statistics};

use faer::{Mat, Side};
use ndarray::ArrayView2;

use crate::{Error, Result};

/// Eigenvalues and eigenvectors (columns) of a symmetric matrix.
fn eigen(matrix: &Mat<f64>, of: &str) -> Result<(Vec<f64>, Mat<f64>)> {
    let found = matrix
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| not_finite(of))?;
    let values = found.S().column_vector().iter().copied().collect();
    Ok((values, found.U().to_owned()))
}

/// Eigenvalues of a symmetric matrix.
fn eigenvalues(matrix: &Mat<f64>, of: &str) -> Result<Vec<f64>> {
    matrix
        .self_adjoint_eigenvalues(Side::Lower)
        .map_err(|_| not_finite(of))
}

fn not_finite(of: &str) -> Error {
    Error::bad(
        of,
        "has no eigenvalues: some of its numbers are not finite",
        "Check the feature extractor; export it with fp32 if it was fp16.",
    )
}

fn to_faer(matrix: ArrayView2<'_, f64>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[[i, j]])
}

/// Refuses features that are not numbers: eigenvalues and sums would hide where they come from.
fn finite(features: ArrayView2<'_, f32>) -> Result<()> {
    let bad = features.indexed_iter().find(|(_, value)| !value.is_finite());
    match bad {
        None => Ok(()),
        Some(((row, column), value)) => Err(Error::bad(
            "set metric",
            format!("was given {value} as feature {column} of picture {row}, which is no finite number"),
            "Check the feature extractor; export it with fp32 if it was fp16.",
        )),
    }
}

/// Refuses features of different lengths.
fn same_length(a: usize, b: usize) -> Result<()> {
    match a == b {
        true => Ok(()),
        false => Err(Error::bad(
            "set metric",
            format!("compares features of {a} and {b} values"),
            "Take both from the same feature extractor.",
        )),
    }
}
