//! Ranked pictures: lists with a line per picture, in which a prompt's pictures need not stand together.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;

use super::listed::{About, Entries, Entry, Index, Listed};
use super::records::{Fields, Record, records};
use crate::Result;
use crate::data::pair::{At, Content, Pair, Place, Preference};
use crate::data::picture::Picture;
use crate::pairs::{Choose, meet};

/// A picture by the name of its file.
pub(super) struct Ranked<'a> {
    pub prompt: &'a str,
    /// What tells prompts of the same words apart; the words themselves if nothing does.
    pub group: &'a str,
    pub image: &'a str,
    /// Higher is better.
    pub score: f64,
}

/// How records become ranked pictures.
pub(super) type Read = for<'a> fn(&'a Fields) -> Result<Ranked<'a>, String>;

/// A prompt and its pictures.
struct Group {
    place: Place,
    prompt: Box<str>,
    /// Folder by number, name in it, score.
    images: Vec<(u32, Box<str>, f64)>,
    damage: Vec<(Place, String)>,
}

/// All prompts, in the order in which they come first.
struct Groups {
    folders: Vec<PathBuf>,
    groups: Vec<Group>,
    choose: Choose,
}

/// Reads lists with the folders in which their pictures are.
///
/// # Errors
/// A list cannot be read, or is of another format.
pub(super) fn open(
    path: &Path,
    lists: Vec<(PathBuf, PathBuf)>,
    choose: Choose,
    about: About,
    read: Read,
) -> Result<Listed> {
    let mut groups: IndexMap<Box<str>, Group> = IndexMap::new();
    let mut folders = Vec::new();
    for (folder, (file, base)) in lists.iter().enumerate() {
        folders.push(base.clone());
        for record in records(file)? {
            add(&mut groups, record?, folder as u32, read);
        }
    }
    let groups = Groups {
        folders,
        groups: groups.into_values().collect(),
        choose,
    };
    let files = lists.into_iter().map(|(file, _)| file).collect();
    Listed::open(path, files, about, Box::new(groups))
}

fn add(groups: &mut IndexMap<Box<str>, Group>, record: Record, folder: u32, read: Read) {
    let Record { place, fields } = record;
    let empty = |prompt: &str| Group {
        place: place.clone(),
        prompt: prompt.into(),
        images: Vec::new(),
        damage: Vec::new(),
    };
    let ranked = fields.as_ref().map_err(String::clone).and_then(read);
    match ranked {
        Ok(Ranked {
            prompt,
            group,
            image,
            score,
        }) => {
            let group = groups.entry(group.into()).or_insert_with(|| empty(prompt));
            group.images.push((folder, image.into(), score));
        }
        Err(reason) => {
            let group = groups.entry("".into()).or_insert_with(|| empty(""));
            group.damage.push((place, reason));
        }
    }
}

impl Index for Groups {
    fn entries(&self) -> Result<Entries<'_>> {
        Ok(Box::new(self.groups.iter().flat_map(|group| {
            let damaged = group.damage.iter().map(|(place, reason)| Entry {
                place: place.clone(),
                rows: vec![Content::Damaged(reason.clone())],
            });
            damaged.chain(alone(group)).chain(self.pairs(group)).map(Ok)
        })))
    }
}

impl Groups {
    fn pairs<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = Entry> + 'a {
        let scores: Vec<f64> = group.images.iter().map(|(.., score)| *score).collect();
        let all: Vec<usize> = (0..scores.len()).collect();
        let met = match scores.len() {
            0 | 1 => Vec::new(),
            _ => meet(&all, &scores, self.choose),
        };
        met.into_iter().map(move |pair| Entry {
            place: named(&group.place, pair.map(|i| &*group.images[i].1)),
            rows: vec![Content::Pair(Pair {
                caption: group.prompt.to_string(),
                images: pair.map(|i| {
                    let (folder, name, _) = &group.images[i];
                    Picture::File(self.folders[*folder as usize].join(&**name))
                }),
                preference: by_score(pair.map(|i| scores[i])),
                scores: Some(pair.map(|i| scores[i] as f32)),
            })],
        })
    }
}

/// A picture that has no other to be compared with.
fn alone(group: &Group) -> Option<Entry> {
    let [(_, name, _)] = group.images.as_slice() else {
        return None;
    };
    let reason =
        format!("{name} is the only picture of its prompt, so that there is nothing to compare it with");
    Some(Entry {
        place: group.place.clone(),
        rows: vec![Content::Damaged(reason)],
    })
}

/// The better of two scores.
pub(super) fn by_score([first, second]: [f64; 2]) -> Preference {
    match first.total_cmp(&second) {
        std::cmp::Ordering::Greater => Preference::First,
        std::cmp::Ordering::Less => Preference::Second,
        std::cmp::Ordering::Equal => Preference::Tie,
    }
}

fn named(place: &Place, [first, second]: [&str; 2]) -> Place {
    Place {
        file: Arc::clone(&place.file),
        at: At::Name(format!("{first} and {second}").into()),
    }
}
