//! Which data set a command reads, and which splits of it.

use std::path::PathBuf;

use crate::Result;
use crate::config::data::DataKind;
use crate::data::{PairSource, import};
use crate::pairs::Choose;

/// A data set as a user names it.
#[derive(Debug, Clone)]
pub struct Input {
    /// File or folder.
    pub path: PathBuf,
    /// What it is; found out by its look if not given.
    pub kind: Option<DataKind>,
    /// Splits to read; all that there are if empty.
    pub splits: Vec<String>,
    /// Which pictures of a prompt meet where the data set ranks them.
    pub choose: Choose,
}

/// A split, ready to be read.
pub struct OpenSplit {
    /// Its name: `train` where the data set has no splits.
    pub name: String,
    /// Its rows.
    pub source: Box<dyn PairSource>,
}

/// A data set, ready to be read.
pub struct Opened {
    /// What it is.
    pub kind: DataKind,
    /// Its splits.
    pub splits: Vec<OpenSplit>,
    /// Lists of other things that lie between its own, and are not read.
    pub passed_over: Vec<PathBuf>,
}

impl Input {
    /// What the data set is, and its splits.
    ///
    /// # Errors
    /// It is of no known kind, or a split is missing or damaged.
    pub fn open(&self) -> Result<Opened> {
        let kind = match self.kind {
            Some(kind) => kind,
            None => import::detect(&self.path)?,
        };
        let mut names = self.splits.clone();
        let mut passed_over = Vec::new();
        if names.is_empty() {
            let found = import::splits(kind, &self.path)?;
            (names, passed_over) = (found.names, found.passed_over);
        }
        if names.is_empty() {
            names.push("train".to_owned());
        }
        let open = |name: String| {
            let source = import::open(kind, &self.path, &name, self.choose)?;
            Ok(OpenSplit { name, source })
        };
        Ok(Opened {
            kind,
            splits: names.into_iter().map(open).collect::<Result<_>>()?,
            passed_over,
        })
    }
}
