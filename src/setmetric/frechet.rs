//! Fréchet distance of two normal distributions, which is FID on Inception's features (Heusel et al. 2017).

use faer::Mat;

use super::{Statistics, eigen, eigenvalues, same_length, to_faer};
use crate::Result;

/// ‖μ₁−μ₂‖² + Tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½).
///
/// The trace of (Σ₁Σ₂)^½ is that of (Σ₁^½ Σ₂ Σ₁^½)^½, which is symmetric: its eigenvalues are real, and where rounding makes
/// them negative they are zero. The reference implementations take the square root of the product itself, drop imaginary parts,
/// and add 1e-6 to the diagonals where it fails; at full rank the results agree.
///
/// # Errors
/// The features differ in length, or are not finite.
pub fn frechet_distance(a: &Statistics, b: &Statistics) -> Result<f64> {
    same_length(a.mean.len(), b.mean.len())?;
    let shift = &a.mean - &b.mean;
    let traces = a.covariance.diag().sum() + b.covariance.diag().sum();
    Ok(shift.dot(&shift) + traces - 2.0 * trace_of_root(a, b)?)
}

/// Tr (Σ₁^½ Σ₂ Σ₁^½)^½.
fn trace_of_root(a: &Statistics, b: &Statistics) -> Result<f64> {
    let (values, vectors) = eigen(&to_faer(a.covariance.view()), "covariance of the first set")?;
    // Σ₁^½ up to a rotation, which leaves the eigenvalues as they are: S^½ Uᵀ.
    let roots: Vec<f64> = values.iter().map(|value| value.max(0.0).sqrt()).collect();
    let half = Mat::from_fn(roots.len(), roots.len(), |i, j| roots[i] * vectors[(j, i)]);
    let inner = &half * to_faer(b.covariance.view()) * half.transpose();
    let values = eigenvalues(&inner, "covariance of the second set")?;
    Ok(values.iter().map(|value| value.max(0.0).sqrt()).sum())
}
