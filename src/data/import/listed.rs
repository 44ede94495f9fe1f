//! A data set that some index lists: rows counted, places known, pictures read by whoever needs them.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::data::cache::Key;
use crate::data::pair::{Content, PairSource, Place, Row, Rows};
use crate::data::picture::Picture;
use crate::data::shards::stamp;
use crate::model_folder::ContentHash;
use crate::rng::PairId;
use crate::{Error, Result};

/// What one place of the index gives: nothing, one row, or several.
pub(super) struct Entry {
    pub place: Place,
    pub rows: Vec<Content>,
}

/// Entries in their fixed order.
pub(super) type Entries<'a> = Box<dyn Iterator<Item = Result<Entry>> + Send + 'a>;

/// An index that can be read any number of times.
pub(super) trait Index: Send + Sync {
    fn entries(&self) -> Result<Entries<'_>>;
}

/// What a user is told about a format.
pub(super) struct About {
    /// Name and whatever setting shapes the rows.
    pub salt: String,
    /// What to tell who gave something else.
    pub remedy: &'static str,
}

/// A data set behind an index.
pub(super) struct Listed {
    path: PathBuf,
    /// The files of the index itself.
    files: Vec<PathBuf>,
    salt: String,
    index: Box<dyn Index>,
    rows: u64,
}

/// Pictures whose files are looked at together.
const STAMPED_AT_ONCE: usize = 4096;

impl Listed {
    /// Reads the index through once.
    ///
    /// # Errors
    /// It cannot be read, is empty, or every row of it is damaged.
    pub fn open(path: &Path, files: Vec<PathBuf>, about: About, index: Box<dyn Index>) -> Result<Self> {
        let mut rows = 0;
        let mut sound = false;
        let mut damage = None;
        for entry in index.entries()? {
            let Entry { place, rows: found } = entry?;
            rows += found.len() as u64;
            for row in found {
                match row {
                    Content::Damaged(reason) if damage.is_none() => {
                        damage = Some((place.to_string(), reason));
                    }
                    Content::Damaged(_) => {}
                    _ => sound = true,
                }
            }
        }
        if !sound {
            let (place, what) =
                damage.unwrap_or_else(|| (path.display().to_string(), "holds no pairs".into()));
            return Err(Error::bad(place, what, about.remedy));
        }
        Ok(Self {
            path: path.to_path_buf(),
            files,
            salt: about.salt,
            index,
            rows,
        })
    }
}

impl PairSource for Listed {
    fn rows(&self) -> Result<Rows<'_>> {
        let mut next = 0;
        Ok(Box::new(self.index.entries()?.flat_map(move |entry| {
            let Entry { place, rows } = match entry {
                Ok(entry) => entry,
                Err(error) => return vec![Err(error)],
            };
            let row = |content| {
                let id = PairId(next);
                next += 1;
                Ok(Row {
                    id,
                    place: place.clone(),
                    content,
                })
            };
            rows.into_iter().map(row).collect()
        })))
    }

    fn len(&self) -> u64 {
        self.rows
    }

    /// Looks at the index and at every picture, since pictures may change while the index stays.
    fn stamp(&self) -> Result<ContentHash> {
        let mut hasher = blake3::Hasher::new();
        let index = stamp(&self.salt, self.files.iter().map(PathBuf::as_path))?;
        hasher.update(&index.0);
        let mut rows = self.rows()?;
        loop {
            let part: Vec<Row> = rows.by_ref().take(STAMPED_AT_ONCE).collect::<Result<_>>()?;
            if part.is_empty() {
                return Ok(ContentHash(*hasher.finalize().as_bytes()));
            }
            let stamps: Vec<Option<Key>> = part.par_iter().map(|row| pair_stamp(&row.content)).collect();
            for stamp in stamps.iter().flatten() {
                hasher.update(stamp.as_bytes());
            }
        }
    }

    fn files(&self) -> Vec<&Path> {
        self.files.iter().map(PathBuf::as_path).collect()
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}

/// Names, sizes and times of a pair's pictures, with what is said of them: captions may have files of their own. Parts of a
/// file belong to the index.
fn pair_stamp(content: &Content) -> Option<Key> {
    let Content::Pair(pair) = content else {
        return None;
    };
    let of = |picture: &Picture| match picture {
        Picture::File(path) => stamp("", std::iter::once(path.as_path())).map_or([0; 32], |hash| hash.0),
        Picture::Part { .. } | Picture::Bytes(_) => [0; 32],
    };
    let label = pair.preference.label().to_le_bytes();
    let [first, second] = [of(&pair.images[0]), of(&pair.images[1])];
    Some(Key::of(&[pair.caption.as_bytes(), &label, &first, &second]))
}
