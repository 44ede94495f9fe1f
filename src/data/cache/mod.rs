//! A content-addressed store of encoded tensors: a few append-only files instead of one per image.
//!
//! ```text
//! shard-0000.bin   payloads, one after the other
//! shard-0000.idx   40 bytes per payload: key, offset, length, checksums (see `record`)
//! lock             held by whoever writes
//! ```
//!
//! A payload counts once its index record is written, which happens after the payload itself: an interrupted
//! run leaves a tail that nobody refers to and the next writer cuts off. Nothing that is referred to is ever
//! changed or removed, so readers need no lock. A damaged entry is found by its checksum, forgotten, and made
//! again; the later of two records for a key holds.

mod index;
mod payload;
mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{ArrayD, ArrayViewD};
use rayon::prelude::*;

use crate::{Error, Result, fsutil};
use index::{Index, Location};
use record::Record;

pub use index::Snapshot;
pub use record::Key;

/// Size at which the next shard is begun.
const SHARD_BYTES: u64 = 1 << 30;

/// Shards whose files are open at a time: a cache may have more of them than a process may have files.
const OPEN_FILES: usize = 32;

#[derive(Debug)]
struct Shard {
    /// Where the last payload ends that any record refers to, replaced and forgotten ones included.
    end: u64,
}

/// The entries of a cache folder, readable from any thread.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    index: Index,
    shards: BTreeMap<u32, Shard>,
    /// The files read last, the latest first. They are read by position, not mapped: one that somebody cuts off is a damaged
    /// entry then, not the end of the process.
    open: Mutex<Vec<(u32, Arc<File>)>>,
}

impl Store {
    /// Opens a cache folder, which need not exist yet.
    ///
    /// # Errors
    /// A file of it cannot be read.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        let mut store = Self {
            folder,
            index: Index::default(),
            shards: BTreeMap::new(),
            open: Mutex::default(),
        };
        store.refresh()?;
        Ok(store)
    }

    /// Reads the index files and looks at the shards anew.
    fn refresh(&mut self) -> Result<()> {
        let mut found = Vec::new();
        self.index = Index::default();
        self.shards.clear();
        self.open
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        for shard in self.numbers()? {
            let (data, index) = (self.data_path(shard), self.index_path(shard));
            let len = fs::metadata(&data).map_err(Error::io(&data, "look at"))?.len();
            let bytes = fs::read(&index).map_err(Error::io(&index, "read"))?;
            let mut end = 0;
            for record in record::read_all(&bytes).filter(|record| record.end() <= len) {
                found.extend(Location::of(shard, &record).map(|location| (record.key, location)));
                end = record.end().max(end);
            }
            self.shards.insert(shard, Shard { end });
        }
        self.index = Index::of(found);
        Ok(())
    }

    /// The cache folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Numbers of the shards that have an index.
    fn numbers(&self) -> Result<Vec<u32>> {
        if !self.folder.is_dir() {
            return Ok(Vec::new());
        }
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(Error::io(&self.folder, "list the folder"))? {
            let name = entry
                .map_err(Error::io(&self.folder, "list the folder"))?
                .file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix("shard-")?.strip_suffix(".idx")?.parse().ok());
            numbers.extend(number.filter(|&number| self.data_path(number).is_file()));
        }
        // Of two records for a key the later one holds.
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn data_path(&self, shard: u32) -> PathBuf {
        self.folder.join(format!("shard-{shard:04}.bin"))
    }

    fn index_path(&self, shard: u32) -> PathBuf {
        self.folder.join(format!("shard-{shard:04}.idx"))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.index.len() == 0
    }

    /// Whether there is an entry; says nothing about its being sound.
    pub fn contains(&self, key: Key) -> bool {
        self.index.get(key).is_some()
    }

    /// What there is now.
    pub fn snapshot(&mut self) -> Snapshot {
        self.index.snapshot()
    }

    /// The file of an entry; the folder where there is no such entry.
    pub fn place(&self, key: Key) -> PathBuf {
        self.index
            .get(key)
            .map_or_else(|| self.folder.clone(), |location| self.data_path(location.shard))
    }

    /// A shard's file, if it can be opened.
    fn file(&self, shard: u32) -> Option<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, file) = match open.iter().position(|(number, _)| *number == shard) {
            Some(at) => open.remove(at),
            None => (shard, Arc::new(File::open(self.data_path(shard)).ok()?)),
        };
        open.truncate(OPEN_FILES - 1);
        open.insert(0, (number, file.clone()));
        Some(file)
    }

    fn bytes(&self, key: Key) -> Option<Vec<u8>> {
        let location = self.index.get(key)?;
        let file = self.file(location.shard)?;
        let range = location.range();
        let mut bytes = vec![0; range.end - range.start];
        fsutil::read_exact_at(&file, &mut bytes, range.start as u64).ok()?;
        (crc32c::crc32c(&bytes) == location.checksum).then_some(bytes)
    }

    /// Reads the tensors of an entry; `None` if there is none or it is damaged.
    pub fn read(&self, key: Key) -> Option<Vec<ArrayD<f32>>> {
        payload::decode(&self.bytes(key)?)
    }

    /// Which of these entries are there but damaged.
    pub fn damaged(&self, keys: &[Key]) -> Vec<Key> {
        let broken = |key: &&Key| self.contains(**key) && self.bytes(**key).is_none();
        keys.par_iter().filter(broken).copied().collect()
    }

    /// Treats entries as absent, so that they are made again.
    pub fn forget(&mut self, keys: &[Key]) {
        for key in keys {
            self.index.put(*key, None);
        }
    }

    /// Takes the write lock, calling `waiting` first if another process holds it, and catches up with what
    /// that process wrote.
    ///
    /// # Errors
    /// The folder cannot be made or written to.
    pub fn writer(&mut self, waiting: impl FnOnce()) -> Result<Writer<'_>> {
        self.writer_with(SHARD_BYTES, waiting)
    }

    fn writer_with(&mut self, shard_bytes: u64, waiting: impl FnOnce()) -> Result<Writer<'_>> {
        fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder, "create the folder"))?;
        let lock_path = self.folder.join("lock");
        let lock = File::create(&lock_path).map_err(Error::io(&lock_path, "create"))?;
        if lock.try_lock().is_err() {
            waiting();
            lock.lock().map_err(Error::io(&lock_path, "lock"))?;
        }
        self.refresh()?;
        Ok(Writer {
            store: self,
            shard_bytes,
            open: None,
            _lock: lock,
        })
    }
}

/// The shard being appended to.
#[derive(Debug)]
struct OpenShard {
    number: u32,
    data: BufWriter<File>,
    index: File,
    end: u64,
    /// Records whose payloads may not have reached the file yet.
    pending: Vec<Record>,
}

/// Appends entries. Holds the folder's write lock.
#[derive(Debug)]
pub struct Writer<'a> {
    store: &'a mut Store,
    shard_bytes: u64,
    open: Option<OpenShard>,
    _lock: File,
}

impl Writer<'_> {
    /// The store as it is, without entries that were not committed.
    pub fn store(&self) -> &Store {
        self.store
    }

    /// See [`Store::snapshot`].
    pub fn snapshot(&mut self) -> Snapshot {
        self.store.snapshot()
    }

    /// See [`Store::forget`].
    pub fn forget(&mut self, keys: &[Key]) {
        self.store.forget(keys);
    }

    /// Adds an entry; it counts after the next [`Writer::commit`].
    ///
    /// # Errors
    /// The disk is full or cannot be written to.
    pub fn append(&mut self, key: Key, tensors: &[ArrayViewD<f32>]) -> Result<()> {
        let bytes = payload::encode(tensors);
        let mut shard = match self.open.take() {
            Some(shard) if shard.end < self.shard_bytes => shard,
            Some(full) => {
                let next = full.number + 1;
                self.open = Some(full);
                self.commit()?;
                self.open_shard(next, 0)?
            }
            None => match self.store.shards.last_key_value() {
                Some((&last, shard)) if shard.end < self.shard_bytes => self.open_shard(last, shard.end)?,
                Some((&last, _)) => self.open_shard(last + 1, 0)?,
                None => self.open_shard(0, 0)?,
            },
        };
        let path = self.store.data_path(shard.number);
        shard.data.write_all(&bytes).map_err(Error::io(path, "write"))?;
        let (offset, len, checksum) = (shard.end, bytes.len() as u64, crc32c::crc32c(&bytes));
        shard.pending.push(Record {
            key,
            offset,
            len,
            checksum,
        });
        shard.end += len;
        self.open = Some(shard);
        Ok(())
    }

    /// Makes everything appended so far count, also for other processes and after a crash of this one.
    ///
    /// # Errors
    /// The disk is full or cannot be written to.
    pub fn commit(&mut self) -> Result<()> {
        let Some(shard) = &mut self.open else {
            return Ok(());
        };
        let (data_path, index_path) = (
            self.store.data_path(shard.number),
            self.store.index_path(shard.number),
        );
        shard.data.flush().map_err(Error::io(data_path, "write"))?;
        let records: Vec<u8> = shard
            .pending
            .iter()
            .flat_map(|record| record.to_bytes())
            .collect();
        shard
            .index
            .write_all(&records)
            .map_err(Error::io(index_path, "write"))?;
        for record in shard.pending.drain(..) {
            self.store
                .index
                .put(record.key, Location::of(shard.number, &record));
        }
        Ok(())
    }

    /// Commits, waits for the disk, and makes the entries readable.
    ///
    /// # Errors
    /// The disk is full or cannot be written to.
    pub fn finish(mut self) -> Result<()> {
        self.commit()?;
        if let Some(shard) = &self.open {
            let path = self.store.data_path(shard.number);
            shard
                .data
                .get_ref()
                .sync_all()
                .map_err(Error::io(path, "write"))?;
        }
        self.store.refresh()
    }

    /// Opens a shard to append at `end`; what lies behind is cut off, and so are records of what is no longer there: they would
    /// come to mean what is written in its place.
    fn open_shard(&self, number: u32, end: u64) -> Result<OpenShard> {
        let open = |path: &Path| {
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(path)
                .map_err(Error::io(path, "write"))
        };
        let (data_path, index_path) = (self.store.data_path(number), self.store.index_path(number));
        let records = sound_records(&index_path, end)?;
        let mut data = open(&data_path)?;
        let cut = |file: &mut File, len: u64| file.set_len(len).and_then(|()| file.seek(SeekFrom::End(0)));
        cut(&mut data, end).map_err(Error::io(&data_path, "write"))?;
        if let Some(records) = records {
            fsutil::write_atomically(&index_path, &records)?;
        }
        let mut index = open(&index_path)?;
        index
            .seek(SeekFrom::End(0))
            .map_err(Error::io(&index_path, "write"))?;
        Ok(OpenShard {
            number,
            data: BufWriter::with_capacity(1 << 20, data),
            index,
            end,
            pending: Vec::new(),
        })
    }
}

/// The records of payloads that end at `end` or before, where the index has anything else.
fn sound_records(index: &Path, end: u64) -> Result<Option<Vec<u8>>> {
    if !index.exists() {
        return Ok(None);
    }
    let bytes = fs::read(index).map_err(Error::io(index, "read"))?;
    let sound = record::read_all(&bytes).filter(|record| record.end() <= end);
    let sound: Vec<u8> = sound.flat_map(Record::to_bytes).collect();
    Ok((sound != bytes).then_some(sound))
}
