//! Lists whose records each give comparisons of pictures by file name: what HPDv2, HPDv3, JSON lines and rated lists share.

use std::path::{Path, PathBuf};

use super::listed::{About, Entries, Entry, Index, Listed};
use super::records::{Fields, Record, records};
use crate::Result;
use crate::data::pair::{Content, Pair, Pictures, Preference};
use crate::data::picture::Picture;
use crate::pairs::Choose;

/// A comparison by the names of its pictures' files.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Comparison<'a> {
    pub caption: &'a str,
    pub images: [&'a str; 2],
    /// `None` if nobody compared them.
    pub preference: Option<Preference>,
    pub scores: Option<[f32; 2]>,
}

/// How records become comparisons.
pub(super) struct Format {
    /// As in `data.kind`.
    pub name: &'static str,
    /// What to tell who gave something else.
    pub remedy: &'static str,
    /// Which of ranked pictures meet, where there are any.
    pub choose: Choose,
    /// The comparisons of a record, or what is wrong with it.
    pub read: for<'a> fn(&'a Fields, Choose) -> Result<Vec<Comparison<'a>>, String>,
}

/// Opens lists. Names of pictures are relative to their list, to a folder beside it called as the split, or to `images`.
///
/// # Errors
/// A list cannot be read, or is of another format.
pub(super) fn open(path: &Path, files: Vec<PathBuf>, split: &str, format: Format) -> Result<Listed> {
    let about = About {
        salt: format!("{} {:?}", format.name, format.choose),
        remedy: format.remedy,
    };
    let lists = files.iter().map(|file| {
        let base = base(file, split, &format)?;
        Ok((file.clone(), base))
    });
    let lists = lists.collect::<Result<_>>()?;
    Listed::open(path, files, about, Box::new(Lists { lists, format }))
}

struct Lists {
    /// Files and where the names in them begin.
    lists: Vec<(PathBuf, PathBuf)>,
    format: Format,
}

impl Index for Lists {
    fn entries(&self) -> Result<Entries<'_>> {
        Ok(Box::new(self.lists.iter().flat_map(
            |(file, base)| -> Entries<'_> {
                match records(file) {
                    Ok(records) => Box::new(records.map(|record| Ok(self.entry(record?, base)))),
                    Err(error) => Box::new(std::iter::once(Err(error))),
                }
            },
        )))
    }
}

impl Lists {
    fn entry(&self, record: Record, base: &Path) -> Entry {
        let Record { place, fields } = record;
        let rows = match &fields {
            Ok(fields) => match (self.format.read)(fields, self.format.choose) {
                Ok(found) => found.into_iter().map(|c| content(c, base)).collect(),
                Err(reason) => vec![Content::Damaged(reason)],
            },
            Err(reason) => vec![Content::Damaged(reason.clone())],
        };
        Entry { place, rows }
    }
}

fn content(comparison: Comparison, base: &Path) -> Content {
    let caption = comparison.caption.to_owned();
    let images = comparison.images.map(|name| Picture::File(base.join(name)));
    match comparison.preference {
        None => Content::Unlabelled(Some(Pictures { caption, images })),
        Some(preference) => Content::Pair(Pair {
            caption,
            images,
            preference,
            scores: comparison.scores,
        }),
    }
}

/// The first folder in which a picture of the list is; the list's own if it is in none.
fn base(file: &Path, split: &str, format: &Format) -> Result<PathBuf> {
    let own = file.parent().unwrap_or(Path::new(""));
    for record in records(file)? {
        let Ok(fields) = record?.fields else { continue };
        if let Ok([first, ..]) = (format.read)(&fields, format.choose).as_deref() {
            return Ok(base_of(own, split, first.images[0]));
        }
    }
    Ok(own.to_path_buf())
}

/// The first of the folders where pictures are kept in which `name` is.
pub(super) fn base_of(own: &Path, split: &str, name: &str) -> PathBuf {
    let candidates = [own.to_path_buf(), own.join(split), own.join("images")];
    let found = candidates.iter().find(|folder| folder.join(name).is_file());
    found.unwrap_or(&candidates[0]).clone()
}
