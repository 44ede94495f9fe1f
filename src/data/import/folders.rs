//! Pairs told by where they are, as users of kohya's scripts propose them (kohya-ss/sd-scripts issue 1040 and pull request
//! 1427): preferred pictures in `w/` and the others in `l/` under the same name, or `NAME_w.png` beside `NAME_l.png`; the
//! prompt in `NAME.txt` or `NAME.caption`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ONLY_SPLIT;
use super::listed::{About, Entries, Entry, Index, Listed};
use crate::data::pair::{At, Content, Pair, Place, Preference};
use crate::data::picture::Picture;
use crate::data::shards::entries;
use crate::{Error, Result};

/// Names of the two folders, the preferred pictures' first.
const FOLDERS: [[&str; 2]; 3] = [["w", "l"], ["win", "lose"], ["chosen", "rejected"]];
/// How names end in a folder that holds both.
const SUFFIXES: [&str; 2] = ["_w", "_l"];
const PICTURES: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
const CAPTIONS: [&str; 2] = ["txt", "caption"];

const REMEDY: &str = "Put preferred pictures into w/ and the others into l/ under the same names, or name them NAME_w.png and NAME_l.png; \
     write each prompt into NAME.txt.";

/// Whether a folder holds pairs.
pub(super) fn is_one(folder: &Path) -> bool {
    subfolders(folder).is_some() || has_suffixes(folder)
}

fn subfolders(folder: &Path) -> Option<[PathBuf; 2]> {
    let places = FOLDERS.map(|names| names.map(|name| folder.join(name)));
    places
        .into_iter()
        .find(|places| places.iter().all(|place| place.is_dir()))
}

fn has_suffixes(folder: &Path) -> bool {
    let paths = entries(folder).unwrap_or_default();
    paths
        .iter()
        .filter(|path| is_picture(path))
        .any(|path| SUFFIXES.iter().any(|suffix| stem(path).ends_with(suffix)))
}

/// Opens a folder, or the one in it that is called as the split.
pub(super) fn open(path: &Path, split: &str) -> Result<Listed> {
    let below = path.join(split);
    let folder = match is_one(&below) {
        true => below,
        false if split == ONLY_SPLIT && is_one(path) => path.to_path_buf(),
        false => {
            let what =
                format!("holds neither w/ and l/ nor NAME_w and NAME_l, and neither does {split}/ in it");
            return Err(Error::bad(path.display().to_string(), what, REMEDY));
        }
    };
    let pairs = match subfolders(&folder) {
        Some(places) => from_folders(&places)?,
        None => from_suffixes(&folder)?,
    };
    let about = About {
        salt: "folders".into(),
        remedy: REMEDY,
    };
    let index = Named {
        folder: folder.as_path().into(),
        pairs,
    };
    Listed::open(path, Vec::new(), about, Box::new(index))
}

/// Pictures by the name they share: the preferred one and the other.
type ByName = BTreeMap<Box<str>, [Option<PathBuf>; 2]>;

fn from_folders(places: &[PathBuf; 2]) -> Result<ByName> {
    let mut pairs = ByName::new();
    for (side, place) in places.iter().enumerate() {
        for path in entries(place)?.into_iter().filter(|path| is_picture(path)) {
            let name = stem(&path).into();
            pairs.entry(name).or_default()[side] = Some(path);
        }
    }
    Ok(pairs)
}

fn from_suffixes(folder: &Path) -> Result<ByName> {
    let mut pairs = ByName::new();
    for path in entries(folder)?.into_iter().filter(|path| is_picture(path)) {
        for (side, suffix) in SUFFIXES.iter().enumerate() {
            if let Some(name) = stem(&path).strip_suffix(suffix) {
                pairs.entry(name.into()).or_default()[side] = Some(path.clone());
            }
        }
    }
    Ok(pairs)
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|x| x.to_str()).unwrap_or_default();
    PICTURES.contains(&extension.to_ascii_lowercase().as_str())
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|s| s.to_str()).unwrap_or_default()
}

struct Named {
    folder: Arc<Path>,
    pairs: ByName,
}

impl Index for Named {
    fn entries(&self) -> Result<Entries<'_>> {
        Ok(Box::new(self.pairs.iter().map(|(name, images)| {
            let place = Place {
                file: self.folder.clone(),
                at: At::Name(name.clone()),
            };
            let content = self.content(name, images).unwrap_or_else(Content::Damaged);
            Ok(Entry {
                place,
                rows: vec![content],
            })
        })))
    }
}

impl Named {
    fn content(&self, name: &str, images: &[Option<PathBuf>; 2]) -> Result<Content, String> {
        let [Some(preferred), Some(other)] = images else {
            let present = images.iter().flatten().next();
            let present = present.map(|path| path.display().to_string()).unwrap_or_default();
            return Err(format!("{present} has no counterpart of the same name"));
        };
        Ok(Content::Pair(Pair {
            caption: self.caption(name, [preferred, other])?,
            images: [preferred.clone(), other.clone()].map(Picture::File),
            preference: Preference::First,
            scores: None,
        }))
    }

    /// The text beside either picture, or in the folder above both.
    fn caption(&self, name: &str, images: [&PathBuf; 2]) -> Result<String, String> {
        let shared = self.folder.join(name);
        // A name may hold dots: the ending is put behind it, not in the place of something.
        let with = |base: &Path, ending: &str| PathBuf::from(format!("{}.{ending}", base.display()));
        let bases = images.map(|path| path.with_file_name(stem(path)));
        for base in std::iter::once(&shared).chain(&bases) {
            for ending in CAPTIONS {
                let path = with(base, ending);
                if path.is_file() {
                    let text = fs::read_to_string(&path)
                        .map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
                    return Ok(text.trim().to_owned());
                }
            }
        }
        Err(format!("has no prompt: there is no {name}.txt"))
    }
}
