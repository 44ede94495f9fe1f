//! Mean and covariance of features, gathered batch by batch.

use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::{Error, Result};

/// What FID knows of a set of pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Mean features (D).
    pub mean: Array1<f64>,
    /// Covariance (D,D) with divisor n-1, as `numpy.cov(features, rowvar=False)`.
    pub covariance: Array2<f64>,
    /// Number of pictures, where it is known.
    pub n: Option<u64>,
}

impl Statistics {
    /// Of all rows of `features` (N,D).
    ///
    /// # Errors
    /// There are fewer than two rows.
    pub fn of(features: ArrayView2<'_, f32>) -> Result<Self> {
        let mut moments = Moments::default();
        moments.add(features)?;
        moments.statistics()
    }

    /// Why the covariance cannot have full rank, if it cannot: FID then depends on the number of pictures more than on them.
    pub fn rank_warning(&self) -> Option<String> {
        let (n, length) = (self.n?, self.mean.len());
        (n <= length as u64).then(|| {
            format!(
                "{n} pictures give a covariance of {length} features no full rank: their FID is biased upwards, and only \
                 comparable with that of as many pictures. Take at least {} pictures, or KID, which has no such bias",
                length + 1
            )
        })
    }
}

/// Sums from which [`Statistics`] follow, in constant memory; batches are merged by the formula of Chan, Golub and LeVeque
/// (1979), which loses no digits where the mean is large.
#[derive(Debug, Clone, Default)]
pub struct Moments {
    n: u64,
    mean: Array1<f64>,
    /// Sum of (x - mean)(x - mean)ᵀ.
    scatter: Array2<f64>,
}

impl Moments {
    /// Adds rows of features (N,D).
    ///
    /// # Errors
    /// The rows have another length than those before, or are not finite.
    pub fn add(&mut self, features: ArrayView2<'_, f32>) -> Result<()> {
        super::finite(features)?;
        let rows = features.nrows();
        let Some(mean) = features.mapv(f64::from).mean_axis(Axis(0)) else {
            return Ok(());
        };
        let centred = features.mapv(f64::from) - &mean;
        let scatter = centred.t().dot(&centred);
        if self.n == 0 {
            (self.n, self.mean, self.scatter) = (rows as u64, mean, scatter);
            return Ok(());
        }
        super::same_length(self.mean.len(), mean.len())?;
        let (before, added) = (self.n as f64, rows as f64);
        let shift = (&mean - &self.mean).insert_axis(Axis(1));
        self.scatter += &scatter;
        self.scatter
            .scaled_add(before * added / (before + added), &shift.dot(&shift.t()));
        self.mean
            .scaled_add(added / (before + added), &shift.remove_axis(Axis(1)));
        self.n += rows as u64;
        Ok(())
    }

    /// Mean and covariance of what was added.
    ///
    /// # Errors
    /// There were fewer than two rows.
    pub fn statistics(&self) -> Result<Statistics> {
        match self.n {
            0 | 1 => Err(Error::bad(
                "set metric",
                format!("was given {} picture(s), which have no covariance", self.n),
                "Give at least two pictures; a stable FID needs more than there are features.",
            )),
            n => Ok(Statistics {
                mean: self.mean.clone(),
                covariance: &self.scatter / (n - 1) as f64,
                n: Some(n),
            }),
        }
    }
}
