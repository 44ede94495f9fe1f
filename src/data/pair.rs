//! What an importer delivers: rows of a preference data set, one at a time and in a fixed order.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::picture::Picture;
use super::shards;
use crate::Result;
use crate::model_folder::ContentHash;
use crate::rng::PairId;

/// Which image of a pair people preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preference {
    /// The first image.
    First,
    /// The second image.
    Second,
    /// Neither.
    Tie,
}

impl Preference {
    /// From a label: 1 the first, 0 the second, ½ neither.
    pub fn of_label(label: f64) -> Option<Self> {
        match label {
            1.0 => Some(Self::First),
            0.0 => Some(Self::Second),
            0.5 => Some(Self::Tie),
            _ => None,
        }
    }

    /// 1 for the first, 0 for the second, ½ for neither.
    pub fn label(self) -> f64 {
        match self {
            Self::First => 1.0,
            Self::Second => 0.0,
            Self::Tie => 0.5,
        }
    }
}

/// One comparison of two images made for the same caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The prompt both images were made for.
    pub caption: String,
    /// The two image files, in the data set's order.
    pub images: [Picture; 2],
    /// What people said.
    pub preference: Preference,
    /// A scorer's values for the two images, where the data set has them.
    pub scores: Option<[f32; 2]>,
}

impl Pair {
    /// The bytes of both files, which the pair then has no more; what is wrong with the first that cannot be read.
    ///
    /// # Errors
    /// A whole shard is gone.
    pub fn take_files(&mut self) -> Result<Result<[Vec<u8>; 2], String>> {
        files(std::mem::replace(&mut self.images, EMPTY))
    }
}

const EMPTY: [Picture; 2] = [Picture::Bytes(Vec::new()), Picture::Bytes(Vec::new())];

/// What the images of a pair are called in messages.
pub const SIDES: [&str; 2] = ["the first picture", "the second picture"];

/// The bytes of both images, or why one of them cannot be read.
///
/// # Errors
/// A whole shard is gone.
pub fn files([first, second]: [Picture; 2]) -> Result<Result<[Vec<u8>; 2], String>> {
    let bytes = |picture, name: &str| match picture {
        Picture::Bytes(bytes) => Ok(Ok(bytes)),
        other => match other.read() {
            Ok(bytes) => Ok(Ok(bytes.into_owned())),
            Err(reason) => other.check_shard().map(|()| Err(format!("{name} {reason}"))),
        },
    };
    let (first, second) = (bytes(first, SIDES[0])?, bytes(second, SIDES[1])?);
    Ok(first.and_then(|first| Ok([first, second?])))
}

/// A row of the data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Row number over all files of the split, counted before anything is left out.
    pub id: PairId,
    /// Where it lies, for messages.
    pub place: Place,
    /// What it holds.
    pub content: Content,
}

/// What a row holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A usable comparison; its images may still turn out not to be there, or not to decode.
    Pair(Pair),
    /// Nobody compared these images; they are not given where the row has but one.
    Unlabelled(Option<Pictures>),
    /// Something is wrong with the row: what.
    Damaged(String),
}

/// Two images that nobody compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Pictures {
    /// The prompt both images were made for.
    pub caption: String,
    /// The two image files.
    pub images: [Picture; 2],
}

/// Where a row lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// File, or folder.
    pub file: Arc<Path>,
    /// Where in it.
    pub at: At,
}

/// Where in a file something lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// Row of a table, counted from 0.
    Row(u64),
    /// Line of a text file, counted from 1.
    Line(u64),
    /// What has a name.
    Name(Box<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match &self.at {
            At::Row(row) => write!(f, "{file}, row {row}"),
            At::Line(line) => write!(f, "{file}, line {line}"),
            At::Name(name) => write!(f, "{file}, {name}"),
        }
    }
}

/// The rows of a split, in order.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<Row>> + Send + 'a>;

/// A split of a preference data set.
pub trait PairSource: Sync {
    /// Streams the rows in the order of their ids, which no setting changes.
    ///
    /// # Errors
    /// A file cannot be read or lacks what is needed.
    fn rows(&self) -> Result<Rows<'_>>;

    /// Rows of all files together.
    fn len(&self) -> u64;

    /// Whether there are no rows at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What tells quickly that nothing changed since the last time: names, sizes and times of the files.
    ///
    /// # Errors
    /// A file has gone.
    fn stamp(&self) -> Result<ContentHash>;

    /// The folder or file that the user named.
    fn place(&self) -> String;

    /// The files that the rows are listed in.
    fn files(&self) -> Vec<&Path>;
}

/// What there is to say of a data set of which files are missing, by the names of the others. A file that was named by itself is whole.
pub fn note_on_files(source: &dyn PairSource) -> Option<String> {
    let place = source.place();
    if Path::new(&place).is_file() {
        return None;
    }
    let gaps = shards::gaps(source.files().into_iter());
    let first = gaps.first()?;
    let missing = gaps
        .iter()
        .fold(0usize, |sum, gap| sum.saturating_add(gap.missing));
    let count = gaps.iter().fold(0usize, |sum, gap| sum.saturating_add(gap.count));
    let others = match missing {
        1 => "is missing".to_owned(),
        _ => format!("and {} more are missing", missing - 1),
    };
    Some(format!(
        "{place}: {} {others}, of {count} files by their names; what is there is read",
        first.first
    ))
}
