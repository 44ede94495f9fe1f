//! How different the pictures of one set are from each other.

use faer::Mat;
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use serde::{Deserialize, Serialize};

use super::{eigenvalues, to_faer};
use crate::Result;
use crate::reward::RewardModel;
use crate::reward::manifest::Scorer;

/// What "far apart" means for two rows of features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// 1 − cosine: for embeddings.
    Cosine,
    /// ‖a − b‖²: for features of kind `perceptual`, where it is the LPIPS distance.
    SquaredEuclidean,
}

impl Distance {
    /// That of a model's features.
    pub fn of(model: &RewardModel) -> Self {
        match model.manifest().scorer {
            Scorer::Perceptual { .. } => Self::SquaredEuclidean,
            _ => Self::Cosine,
        }
    }

    /// Between two rows of equal length.
    pub fn between(self, a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
        let pairs = || {
            a.iter()
                .zip(b.iter())
                .map(|(&a, &b)| (f64::from(a), f64::from(b)))
        };
        match self {
            Self::SquaredEuclidean => pairs().map(|(a, b)| (a - b) * (a - b)).sum(),
            Self::Cosine => {
                let (mut product, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
                for (a, b) in pairs() {
                    product += a * b;
                    of_a += a * a;
                    of_b += b * b;
                }
                1.0 - product / (of_a * of_b).sqrt()
            }
        }
    }
}

/// Mean distance over all pairs of rows: the diversity of the pictures of one prompt. None for fewer than two.
pub fn mean_pairwise(features: ArrayView2<'_, f32>, distance: Distance) -> Option<f64> {
    let n = features.nrows();
    if n < 2 {
        return None;
    }
    let pairs = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
    let distances = pairs.map(|(i, j)| distance.between(features.row(i), features.row(j)));
    Some(distances.sum::<f64>() / (n * (n - 1) / 2) as f64)
}

/// Vendi score (Friedman and Dieng 2023): exp(−Σ λ ln λ) with the eigenvalues λ of K/n, K the cosines of all pairs of rows.
/// Between 1, where all rows are the same, and n, where all are orthogonal.
///
/// # Errors
/// The features are not finite.
pub fn vendi_score(features: ArrayView2<'_, f32>) -> Result<f64> {
    super::finite(features)?;
    let (n, length) = features.dim();
    let mut rows = features.mapv(f64::from);
    for mut row in rows.axis_iter_mut(Axis(0)) {
        let norm = row.dot(&row).sqrt();
        // A row of zeros has no direction and stays as it is.
        row /= if norm > 0.0 { norm } else { 1.0 };
    }
    // The smaller of the two products has the same eigenvalues, up to zeros.
    let product: Array2<f64> = match n <= length {
        true => rows.dot(&rows.t()),
        false => rows.t().dot(&rows),
    };
    let scaled: Mat<f64> = to_faer((product / n as f64).view());
    let values = eigenvalues(&scaled, "matrix of similarities")?;
    let terms = values.iter().filter(|&&value| value > 0.0);
    Ok((-terms.map(|value| value * value.ln()).sum::<f64>()).exp())
}
