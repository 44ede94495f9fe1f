//! Reference statistics as files: the npz of pytorch-fid and clean-fid.
//!
//! Both keep `mu` (D) and `sigma` (D,D); clean-fid keeps features for KID in files of their own, as `feats` (N,D). This
//! program writes all of it into one file, which both read, with the number of pictures `n` and the hash of what made
//! the features `extractor` (32 bytes), so that a reference of another extractor is refused.

use std::fs::File;
use std::path::Path;

use ndarray::{Array1, Array2, ArrayBase, Dimension, Ix1, Ix2, OwnedRepr, arr0};
use ndarray_npy::{NpzReader, NpzWriter, ReadNpzError, ReadableElement};

use super::Statistics;
use crate::fsutil::write_atomically_with;
use crate::model_folder::ContentHash;
use crate::{Error, Result};

/// What a set of pictures is compared with.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// Mean and covariance.
    pub statistics: Statistics,
    /// Features (N,D), without which there is no KID.
    pub features: Option<Array2<f32>>,
    /// Identity of what made the features; unknown in files of other programs.
    pub extractor: Option<ContentHash>,
}

impl Reference {
    /// Reads a file of this program, pytorch-fid or clean-fid; single precision or double, compressed or not.
    ///
    /// # Errors
    /// The file is no npz, or holds neither `mu` and `sigma` nor `feats`.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let unreadable = |e: &dyn std::fmt::Display| {
            let remedy =
                "Give statistics as `ortdpo fid --save-statistics`, pytorch-fid or clean-fid write them.";
            Error::bad(path.display().to_string(), format!("cannot be read: {e}"), remedy)
        };
        let mut npz = NpzReader::new(file).map_err(|e| unreadable(&e))?;
        let mut arrays = Arrays {
            names: npz.names().map_err(|e| unreadable(&e))?,
            npz: &mut npz,
        };
        let features = arrays.floats::<Ix2>("feats").map_err(|e| unreadable(&e))?;
        let mean = arrays.floats::<Ix1>("mu").map_err(|e| unreadable(&e))?;
        let covariance = arrays.floats::<Ix2>("sigma").map_err(|e| unreadable(&e))?;
        let n = arrays.count().map_err(|e| unreadable(&e))?;
        let extractor = arrays.hash().map_err(|e| unreadable(&e))?;
        let features = features.map(|features| features.mapv(|value| value as f32));
        let statistics = match (mean, covariance, &features) {
            (Some(mean), Some(covariance), features) => Statistics {
                mean,
                covariance,
                n: n.or(features.as_ref().map(|rows| rows.nrows() as u64)),
            },
            (None, None, Some(features)) => Statistics::of(features.view())?,
            _ => return Err(unreadable(&format!("it holds {}", arrays.names.join(", ")))),
        };
        let length = statistics.mean.len();
        match statistics.covariance.dim() == (length, length) {
            true => Ok(Self {
                statistics,
                features,
                extractor,
            }),
            false => Err(unreadable(&format!(
                "mu has {length} values, sigma {:?}",
                statistics.covariance.dim()
            ))),
        }
    }

    /// Writes the file, compressed.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomically_with(path, |file| {
            let mut buffer = std::io::Cursor::new(Vec::new());
            let mut npz = NpzWriter::new_compressed(&mut buffer);
            let other = std::io::Error::other;
            npz.add_array("mu", &self.statistics.mean).map_err(other)?;
            npz.add_array("sigma", &self.statistics.covariance)
                .map_err(other)?;
            if let Some(n) = self.statistics.n {
                npz.add_array("n", &arr0(n as i64)).map_err(other)?;
            }
            if let Some(ContentHash(hash)) = &self.extractor {
                npz.add_array("extractor", &Array1::from(hash.to_vec()))
                    .map_err(other)?;
            }
            if let Some(features) = &self.features {
                npz.add_array("feats", features).map_err(other)?;
            }
            npz.finish().map_err(other)?;
            std::io::Write::write_all(file, buffer.get_ref())
        })
    }
}

/// The arrays of a file by their names.
struct Arrays<'a> {
    npz: &'a mut NpzReader<File>,
    names: Vec<String>,
}

impl Arrays<'_> {
    /// An array of floats, whichever their size.
    fn floats<D: Dimension>(
        &mut self,
        name: &str,
    ) -> Result<Option<ArrayBase<OwnedRepr<f64>, D>>, ReadNpzError> {
        match self.array::<f64, D>(name) {
            Err(ReadNpzError::Npy(_)) => {
                let single = self.array::<f32, D>(name)?;
                Ok(single.map(|array| array.mapv(f64::from)))
            }
            other => other,
        }
    }

    fn count(&mut self) -> Result<Option<u64>, ReadNpzError> {
        let array = self.array::<i64, ndarray::Ix0>("n")?;
        Ok(array.and_then(|n| u64::try_from(n.into_scalar()).ok()))
    }

    fn hash(&mut self) -> Result<Option<ContentHash>, ReadNpzError> {
        let array = self.array::<u8, Ix1>("extractor")?;
        Ok(array.and_then(|bytes| Some(ContentHash(bytes.as_slice()?.try_into().ok()?))))
    }

    fn array<T: ReadableElement, D: Dimension>(
        &mut self,
        name: &str,
    ) -> Result<Option<ArrayBase<OwnedRepr<T>, D>>, ReadNpzError> {
        match self.names.iter().any(|found| found == name) {
            true => self.npz.by_name::<OwnedRepr<T>, D>(name).map(Some),
            false => Ok(None),
        }
    }
}
