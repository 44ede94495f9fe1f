//! Picture files in a folder, or those that a glob matches, in the order of their names.

use std::path::{Path, PathBuf};

use super::{Picture, Record, Source, listed};
use crate::{Error, Result};

const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Every picture in `folder` and below, but in no hidden folder. Those in subfolders carry the field `folder`, so that
/// `STYLE/00001.jpg` can be grouped by style.
pub(super) fn folder(folder: &Path) -> Result<Source> {
    let mut paths = Vec::new();
    walk(folder, &mut paths)?;
    paths.sort();
    Ok(listed(
        paths.into_iter().map(|path| record(path, Some(folder))).collect(),
    ))
}

/// Every picture that a glob matches.
pub(super) fn glob(pattern: &str) -> Result<Source> {
    let unusable = |e: &dyn std::fmt::Display| {
        Error::bad(
            pattern,
            format!("is no usable glob: {e}"),
            "Write one such as 'out/*.png'.",
        )
    };
    let mut paths = Vec::new();
    for path in glob::glob(pattern).map_err(|e| unusable(&e))? {
        let path = path.map_err(|e| unusable(&e))?;
        if path.is_file() && is_picture(&path) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(listed(paths.into_iter().map(|path| record(path, None)).collect()))
}

/// One picture, whatever its name.
pub(super) fn one(path: &Path) -> Source {
    listed(vec![record(path.to_path_buf(), None)])
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| EXTENSIONS.iter().any(|known| e.eq_ignore_ascii_case(known)))
}

fn walk(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "list the folder"))? {
        let entry = entry.map_err(Error::io(folder, "list the folder"))?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        match path.is_dir() {
            true => walk(&path, paths)?,
            false if is_picture(&path) => paths.push(path),
            false => {}
        }
    }
    Ok(())
}

fn record(path: PathBuf, root: Option<&Path>) -> Record {
    let below = root.and_then(|root| path.parent()?.strip_prefix(root).ok());
    let subfolder = below
        .map(|folder| folder.to_string_lossy().into_owned())
        .filter(|name| !name.is_empty());
    Record {
        file: path.display().to_string(),
        prompt: None,
        fields: subfolder
            .map(|name| ("folder".to_owned(), name.into()))
            .into_iter()
            .collect(),
        picture: Picture::File(path),
    }
}
