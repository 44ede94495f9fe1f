//! Identity of model files by their content, external weights included.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::{Error, Result};

/// Identity of a set of files by their content: 32 bytes of BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash(pub [u8; 32]);

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

/// A file and how to name it independently of where the model lies.
pub(super) struct FileBelow {
    /// Path below the folder asked for, with `/` whatever the system.
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
}

/// Files in a folder and its subfolders except hidden ones, sorted by name.
pub(super) fn files_below(folder: &Path) -> std::io::Result<Vec<FileBelow>> {
    let mut files = Vec::new();
    walk(folder, "", &mut files)?;
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<FileBelow>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let own_name = entry.file_name().to_string_lossy().into_owned();
        if own_name.starts_with('.') {
            continue;
        }
        let (name, path) = (format!("{prefix}{own_name}"), entry.path());
        // Follows links: model caches keep the content elsewhere.
        let metadata = fs::metadata(&path)?;
        if metadata.is_dir() {
            walk(&path, &format!("{name}/"), files)?;
        } else {
            files.push(FileBelow {
                name,
                path,
                bytes: metadata.len(),
            });
        }
    }
    Ok(())
}

/// BLAKE3 of one file.
pub(super) fn hash_file(path: &Path) -> Result<blake3::Hash> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(Error::io(path, "read"))?;
    Ok(hasher.finalize())
}

/// Hash over files and whole folders, each by the name it is given here and its content; where they lie makes no difference.
///
/// # Errors
/// A file cannot be read.
pub fn hash_named<'a>(parts: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Result<ContentHash> {
    let mut whole = blake3::Hasher::new();
    for (name, path) in parts {
        let files = match path.is_dir() {
            true => files_below(path).map_err(Error::io(path, "list the folder"))?,
            false => vec![FileBelow {
                name: String::new(),
                path: path.to_path_buf(),
                bytes: 0,
            }],
        };
        let hashes: Vec<blake3::Hash> = files
            .par_iter()
            .map(|f| hash_file(&f.path))
            .collect::<Result<_>>()?;
        whole.update(name.as_bytes()).update(&[0]);
        for (file, hash) in files.iter().zip(hashes) {
            whole
                .update(file.name.as_bytes())
                .update(&[0])
                .update(hash.as_bytes());
        }
    }
    Ok(ContentHash(*whole.finalize().as_bytes()))
}
