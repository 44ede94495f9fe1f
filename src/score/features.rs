//! Rows of features that were computed before, by content: the same picture under the same image tower is never
//! embedded twice, whatever its name and whichever rewards ask for it.

use std::path::{Path, PathBuf};

use ndarray::{Array1, ArrayView1, Ix1};

use crate::Result;
use crate::data::cache::{Key, Store};

/// New rows that are gathered before they are written: the lock is held shortly, and a crash loses little.
const ROWS_GATHERED: usize = 1024;

/// Rows as they were when this was opened, readable from any thread.
pub(super) struct KnownFeatures(Store);

impl KnownFeatures {
    /// A row, unless there is none or it is damaged.
    pub fn read(&self, key: Key) -> Option<Array1<f32>> {
        let row = self.0.read(key)?.into_iter().next()?;
        row.into_dimensionality::<Ix1>().ok()
    }
}

/// A folder of rows, and what is about to go there.
pub(super) struct FeatureCache {
    folder: PathBuf,
    gathered: Vec<(Key, Array1<f32>)>,
}

impl FeatureCache {
    /// A folder, which need not exist yet.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_path_buf(),
            gathered: Vec::new(),
        }
    }

    /// What is in the folder now.
    ///
    /// # Errors
    /// A file of it cannot be read.
    pub fn known(&self) -> Result<KnownFeatures> {
        Ok(KnownFeatures(Store::open(&self.folder)?))
    }

    /// Adds a row; it is on disk after the next [`FeatureCache::flush`].
    ///
    /// # Errors
    /// The disk is full or cannot be written to.
    pub fn add(&mut self, key: Key, row: ArrayView1<'_, f32>) -> Result<()> {
        self.gathered.push((key, row.to_owned()));
        match self.gathered.len() >= ROWS_GATHERED {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Writes what was gathered.
    ///
    /// # Errors
    /// The disk is full or cannot be written to.
    pub fn flush(&mut self) -> Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let mut store = Store::open(&self.folder)?;
        let mut writer = store.writer(|| {})?;
        for (key, row) in self.gathered.drain(..) {
            writer.append(key, &[row.view().into_dyn()])?;
        }
        writer.finish()
    }
}
