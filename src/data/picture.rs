//! Where the bytes of a picture's file are: read when they are needed, not before.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A picture's file, undecoded.
#[derive(Debug, Clone, PartialEq)]
pub enum Picture {
    /// A file on disk.
    File(PathBuf),
    /// A part of a larger file, such as an archive.
    Part {
        /// The larger file.
        file: Arc<Path>,
        /// Where the part begins, in bytes.
        offset: u64,
        /// Bytes of it.
        len: u64,
    },
    /// In memory.
    Bytes(Vec<u8>),
}

impl Picture {
    /// The bytes of the file; why it cannot be read otherwise.
    pub fn read(&self) -> Result<Cow<'_, [u8]>, String> {
        let unreadable = |path: &Path, e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => format!("is missing: there is no {}", path.display()),
            _ => format!("{} cannot be read: {e}", path.display()),
        };
        match self {
            Self::File(path) => std::fs::read(path)
                .map(Into::into)
                .map_err(|e| unreadable(path, e)),
            Self::Part { file, offset, len } => read_part(file, *offset, *len)
                .map(Into::into)
                .map_err(|e| unreadable(file, e)),
            Self::Bytes(bytes) => Ok(bytes.into()),
        }
    }
}

impl Picture {
    /// Refuses a part of a file that is gone or no longer as long as when the part was found in it. Other pictures that cannot
    /// be read are damaged rows; this is a whole shard, with rows that would silently be missing.
    pub fn check_shard(&self) -> crate::Result<()> {
        let Self::Part { file, offset, len } = self else {
            return Ok(());
        };
        let what = match std::fs::metadata(file) {
            Err(e) => format!("can no longer be read ({e})"),
            Ok(now) if now.len() < offset + len => {
                format!("was cut off while it was read: it has {} bytes now", now.len())
            }
            Ok(_) => return Ok(()),
        };
        let remedy = "Put the whole file back and run the same command again.";
        Err(crate::Error::bad(file.display().to_string(), what, remedy))
    }
}

fn read_part(path: &Path, offset: u64, len: u64) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes)?;
    match bytes.len() as u64 == len {
        true => Ok(bytes),
        false => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}
