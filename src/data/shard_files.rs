//! Writing the parquet files of a data set: a few at a time, in their place only when all are whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use indexmap::IndexMap;
use parquet::arrow::ArrowWriter;
use tempfile::TempDir;

use crate::{Error, Result};

/// Writes `SPLIT-00000-of-00005.parquet` and so on. Nothing is in its place before all is written: [`ShardFiles::finish`] moves
/// the files there; dropped before that, it leaves nothing.
pub(crate) struct ShardFiles {
    folder: PathBuf,
    old: Vec<PathBuf>,
    schema: Arc<Schema>,
    rows_per_file: usize,
    splits: IndexMap<String, Split>,
    // Dropped in this order: the folder is empty again when it is looked at.
    staging: TempDir,
    _unless_empty: UnlessEmpty,
}

#[derive(Default)]
struct Split {
    finished: Vec<PathBuf>,
    open: Option<Open>,
    rows: u64,
}

struct Open {
    path: PathBuf,
    writer: ArrowWriter<File>,
    rows: usize,
}

/// Removes a folder that nothing was put into.
struct UnlessEmpty(PathBuf);

impl Drop for UnlessEmpty {
    fn drop(&mut self) {
        // Refused where there is something in it.
        fs::remove_dir(&self.0).ok();
    }
}

impl ShardFiles {
    /// Files of `schema` in `folder`.
    ///
    /// # Errors
    /// The folder holds such files and `replace` is not set, or it cannot be written to.
    pub fn new(folder: &Path, schema: Arc<Schema>, rows_per_file: usize, replace: bool) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
        let old = shards_in(folder)?;
        if let (Some(file), false) = (old.first(), replace) {
            return Err(Error::bad(
                file.display().to_string(),
                "is there already",
                "Choose another folder, or allow it with --replace.",
            ));
        }
        let staging = tempfile::Builder::new().prefix(".partial-").tempdir_in(folder);
        Ok(Self {
            folder: folder.to_path_buf(),
            staging: staging.map_err(Error::io(folder, "write to"))?,
            old,
            schema,
            rows_per_file,
            splits: IndexMap::new(),
            _unless_empty: UnlessEmpty(folder.to_path_buf()),
        })
    }

    /// Adds rows to a split, as a row group of their own.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&mut self, split: &str, mut batch: RecordBatch) -> Result<()> {
        let files = self.splits.entry(split.to_owned()).or_default();
        files.rows += batch.num_rows() as u64;
        while batch.num_rows() > 0 {
            let mut open = match files.open.take() {
                Some(open) => open,
                None => {
                    let name = format!("{split}-{}", files.finished.len());
                    Open::create(self.staging.path().join(name), &self.schema)?
                }
            };
            let room = (self.rows_per_file - open.rows).min(batch.num_rows());
            open.write(&batch.slice(0, room))?;
            batch = batch.slice(room, batch.num_rows() - room);
            match open.rows < self.rows_per_file {
                true => files.open = Some(open),
                false => files.finished.push(open.close()?),
            }
        }
        Ok(())
    }

    /// Puts the files in their place, in that of all such files that were there; how many rows each split has.
    ///
    /// # Errors
    /// The disk is full, or a file cannot be replaced.
    pub fn finish(mut self) -> Result<Vec<(String, u64)>> {
        let mut written = Vec::new();
        for (split, mut files) in std::mem::take(&mut self.splits) {
            if let Some(open) = files.open.take() {
                files.finished.push(open.close()?);
            }
            let count = files.finished.len();
            for (number, from) in files.finished.iter().enumerate() {
                let to = self
                    .folder
                    .join(format!("{split}-{number:05}-of-{count:05}.parquet"));
                fs::rename(from, &to).map_err(Error::io(&to, "write"))?;
                self.old.retain(|old| *old != to);
            }
            written.push((split, files.rows));
        }
        for path in &self.old {
            fs::remove_file(path).map_err(Error::io(path, "remove"))?;
        }
        Ok(written)
    }
}

impl Open {
    fn create(path: PathBuf, schema: &Arc<Schema>) -> Result<Self> {
        let file = File::create(&path).map_err(Error::io(&path, "create"))?;
        let writer = ArrowWriter::try_new(file, schema.clone(), None).map_err(unwritable(&path))?;
        Ok(Self {
            path,
            writer,
            rows: 0,
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows();
        let written = self.writer.write(batch).and_then(|()| self.writer.flush());
        written.map_err(unwritable(&self.path))
    }

    fn close(self) -> Result<PathBuf> {
        let file = self.writer.into_inner().map_err(unwritable(&self.path))?;
        file.sync_all().map_err(Error::io(&self.path, "write"))?;
        Ok(self.path)
    }
}

fn unwritable(path: &Path) -> impl Fn(parquet::errors::ParquetError) -> Error + use<> {
    let path = path.to_path_buf();
    move |e| Error::io(&path, "write")(e.into())
}

/// Files with names such as are written here.
fn shards_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = super::shards::entries(folder)?;
    found.retain(|path| {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        name.ends_with(".parquet") && name.contains("-of-")
    });
    Ok(found)
}
