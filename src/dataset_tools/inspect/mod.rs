//! What a data set holds: counts, labels, prompts, pictures, what occurs twice.

mod near;
mod sheet;

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use super::{OnRows, OpenSplit, each_row, prompt_key};
use crate::Result;
use crate::data::cache::Key;
use crate::data::image::{Header, decode};
use crate::data::{Content, Pair, Place, Preference, Row, SIDES};

pub use near::{NEAR, difference_hash};
pub use sheet::Sheet;

use near::{Near, Spot, across};

/// What is looked at beyond what is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    /// Decodes every picture and looks for such that look alike.
    pub alike: bool,
    /// Rows hold one picture each, as sets of rated pictures do.
    pub single: bool,
}

/// All splits of a data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The splits.
    pub splits: Vec<SplitInspection>,
    /// What occurs in more than one split.
    pub shared: Shared,
}

/// What several splits have in common, and should not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Shared {
    /// Prompts.
    pub prompts: u64,
    /// Pictures.
    pub pictures: u64,
    /// Pictures that look like one of another split, those that are the same among them; `None` unless it was asked for.
    pub alike: Option<u64>,
    /// Some of them.
    pub alike_examples: Vec<String>,
}

/// One split.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SplitInspection {
    /// Its name.
    pub split: String,
    /// Rows of all files.
    pub rows: u64,
    /// Rows with two pictures that can be read and a label.
    pub pairs: u64,
    /// Pairs whose first picture is preferred.
    pub first_preferred: u64,
    /// Pairs whose second picture is preferred.
    pub second_preferred: u64,
    /// Pairs without a winner.
    pub ties: u64,
    /// Rows that nobody labelled.
    pub unlabelled: u64,
    /// Rows that cannot be used.
    pub damaged: u64,
    /// The first damaged rows.
    pub examples: Vec<String>,
    /// Pairs with scores of both pictures.
    pub scored: u64,
    /// Prompts, told apart by their words.
    pub prompts: u64,
    /// How many pairs a prompt has.
    pub pairs_per_prompt: PerPrompt,
    /// Different picture files.
    pub pictures: u64,
    /// Bytes of the different picture files.
    pub bytes: u64,
    /// Pictures by format.
    pub formats: BTreeMap<String, u64>,
    /// Pictures by width and height, the most frequent first.
    pub resolutions: Vec<Resolution>,
    /// What occurs more than once.
    pub duplicates: Duplicates,
}

/// Pairs per prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PerPrompt {
    /// Mean.
    pub mean: f64,
    /// Half of the prompts have as many or fewer.
    pub median: u32,
    /// The most.
    pub most: u32,
}

/// Pictures of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Resolution {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Pictures.
    pub pictures: u64,
}

/// What occurs more than once in a split.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Duplicates {
    /// Pictures that several pairs use, byte by byte.
    pub shared_pictures: u64,
    /// Pairs of a picture with itself.
    pub same_picture_twice: u64,
    /// Pairs that occurred before, in either order.
    pub repeated_pairs: u64,
    /// Those of them whose label says the opposite of the first time.
    pub contradictions: u64,
    /// Pictures that look like another one without being the same file; not looked for unless asked.
    pub alike: Option<u64>,
    /// Examples of pictures that look alike.
    pub alike_examples: Vec<String>,
}

/// Damaged rows that are described.
const EXAMPLES: usize = 5;

/// Looks at all splits; `sheet` collects pairs to show.
///
/// # Errors
/// A file cannot be read at all, or `progress` asked to stop.
pub fn inspect(
    splits: &[OpenSplit],
    what: Look,
    mut sheet: Option<&mut Sheet>,
    progress: &mut OnRows<'_>,
) -> Result<Inspection> {
    let mut done = 0;
    let mut inspections = Vec::new();
    let mut seen = Everywhere::default();
    let mut nears = Vec::new();
    for split in splits {
        let mut inspector = Inspector::new(what);
        let mut progress = |rows| progress(done + rows);
        each_row(
            &*split.source,
            &mut progress,
            |row| look(row, what),
            |seen| inspector.take(seen?, sheet.as_deref_mut()),
        )?;
        done += split.source.len();
        seen.add(&inspector);
        let (inspection, near) = inspector.finish(&split.name);
        inspections.push(inspection);
        nears.extend(near);
    }
    let mut shared = seen.shared;
    if what.alike {
        let (alike, examples) = across(&nears);
        (shared.alike, shared.alike_examples) = (Some(alike), examples);
    }
    Ok(Inspection {
        splits: inspections,
        shared,
    })
}

/// What was in any split before.
#[derive(Default)]
struct Everywhere {
    prompts: HashSet<Key>,
    pictures: HashSet<Key>,
    shared: Shared,
}

impl Everywhere {
    fn add(&mut self, split: &Inspector) {
        fn add<'a>(all: &mut HashSet<Key>, new: impl Iterator<Item = &'a Key>) -> u64 {
            new.filter(|key| !all.insert(**key)).count() as u64
        }
        self.shared.prompts += add(&mut self.prompts, split.prompts.keys());
        self.shared.pictures += add(&mut self.pictures, split.pictures.keys());
    }
}

/// A row that was looked at.
struct Seen {
    place: Place,
    content: Result<Option<SeenPair>, String>,
}

struct SeenPair {
    pair: Pair,
    files: [Vec<u8>; 2],
    pictures: [SeenPicture; 2],
}

struct SeenPicture {
    key: Key,
    header: Header,
    hash: Option<u64>,
}

fn look(row: Row, what: Look) -> Result<Seen> {
    let content = match row.content {
        Content::Unlabelled(_) => Ok(None),
        Content::Damaged(reason) => Err(reason),
        Content::Pair(mut pair) => {
            let files = pair.take_files()?;
            files.and_then(|files| look_at_pair(pair, files, what)).map(Some)
        }
    };
    Ok(Seen {
        place: row.place,
        content,
    })
}

fn look_at_pair(pair: Pair, files: [Vec<u8>; 2], what: Look) -> Result<SeenPair, String> {
    let picture = |side: usize| {
        let file = &files[side];
        let named = |reason| format!("{} {reason}", SIDES[side]);
        let header = Header::read(file).map_err(named)?;
        let hash = match what.alike {
            true => Some(difference_hash(&decode(file).map_err(named)?)),
            false => None,
        };
        let key = Key::of(&[file]);
        Ok::<_, String>(SeenPicture { key, header, hash })
    };
    let pictures = [picture(0)?, picture(1)?];
    Ok(SeenPair {
        pair,
        files,
        pictures,
    })
}

/// What is kept of a split: fingerprints of 16 bytes, and counts.
struct Inspector {
    found: SplitInspection,
    prompts: HashMap<Key, u32>,
    pictures: HashMap<Key, u32>,
    /// By both pictures, the smaller key first; whether the first of these is preferred, in ½.
    pairs: HashMap<Key, u8>,
    resolutions: HashMap<(u32, u32), u64>,
    near: Option<Near>,
    single: bool,
}

impl Inspector {
    fn new(what: Look) -> Self {
        Self {
            found: SplitInspection::default(),
            prompts: HashMap::new(),
            pictures: HashMap::new(),
            pairs: HashMap::new(),
            resolutions: HashMap::new(),
            near: what.alike.then(Near::default),
            single: what.single,
        }
    }

    fn take(&mut self, seen: Seen, sheet: Option<&mut Sheet>) -> Result<()> {
        self.found.rows += 1;
        let SeenPair {
            pair,
            files,
            pictures,
        } = match seen.content {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.found.unlabelled += 1;
                return Ok(());
            }
            Err(reason) => {
                self.found.damaged += 1;
                if self.found.examples.len() < EXAMPLES {
                    self.found.examples.push(format!("{}: {reason}", seen.place));
                }
                return Ok(());
            }
        };
        self.found.pairs += 1;
        match pair.preference {
            Preference::First => self.found.first_preferred += 1,
            Preference::Second => self.found.second_preferred += 1,
            Preference::Tie => self.found.ties += 1,
        }
        self.found.scored += u64::from(pair.scores.is_some());
        *self.prompts.entry(prompt_key(&pair.caption)).or_default() += 1;
        if !self.single {
            self.compare([pictures[0].key, pictures[1].key], pair.preference);
        }
        let sides = if self.single { 1 } else { 2 };
        for (side, picture) in pictures.iter().enumerate().take(sides) {
            self.picture(&seen.place, side, picture, files[side].len());
        }
        if let Some(sheet) = sheet {
            sheet.offer(pair, files);
        }
        Ok(())
    }

    fn compare(&mut self, [first, second]: [Key; 2], preference: Preference) {
        let duplicates = &mut self.found.duplicates;
        if first == second {
            duplicates.same_picture_twice += 1;
            return;
        }
        let label = (2.0 * preference.label()) as u8;
        let (key, label) = match first < second {
            true => (Key::of(&[first.as_bytes(), second.as_bytes()]), label),
            false => (Key::of(&[second.as_bytes(), first.as_bytes()]), 2 - label),
        };
        match self.pairs.insert(key, label) {
            None => {}
            Some(before) => {
                duplicates.repeated_pairs += 1;
                duplicates.contradictions += u64::from(before.abs_diff(label) == 2);
            }
        }
    }

    fn picture(&mut self, place: &Place, side: usize, picture: &SeenPicture, bytes: usize) {
        let times = self.pictures.entry(picture.key).or_default();
        *times += 1;
        if *times > 1 {
            return;
        }
        self.found.bytes += bytes as u64;
        let Header {
            format,
            width,
            height,
        } = picture.header;
        *self.found.formats.entry(format.to_owned()).or_default() += 1;
        *self.resolutions.entry((width, height)).or_default() += 1;
        if let (Some(near), Some(hash)) = (&mut self.near, picture.hash) {
            near.add(hash, Spot::new(place.clone(), side));
        }
    }

    fn finish(self, name: &str) -> (SplitInspection, Option<Near>) {
        let mut found = self.found;
        name.clone_into(&mut found.split);
        found.prompts = self.prompts.len() as u64;
        found.pairs_per_prompt = per_prompt(self.prompts.into_values().collect());
        found.pictures = self.pictures.len() as u64;
        found.duplicates.shared_pictures = self.pictures.values().filter(|times| **times > 1).count() as u64;
        found.resolutions = most_frequent(self.resolutions);
        if let Some(near) = &self.near {
            let (alike, examples) = near.within();
            found.duplicates.alike = Some(alike);
            found.duplicates.alike_examples = examples;
        }
        (found, self.near)
    }
}

fn per_prompt(mut counts: Vec<u32>) -> PerPrompt {
    if counts.is_empty() {
        return PerPrompt::default();
    }
    counts.sort_unstable();
    let sum: u64 = counts.iter().map(|count| u64::from(*count)).sum();
    PerPrompt {
        mean: sum as f64 / counts.len() as f64,
        median: counts[(counts.len() - 1) / 2],
        most: counts[counts.len() - 1],
    }
}

fn most_frequent(sizes: HashMap<(u32, u32), u64>) -> Vec<Resolution> {
    let resolution = |((width, height), pictures)| Resolution {
        width,
        height,
        pictures,
    };
    let mut all: Vec<Resolution> = sizes.into_iter().map(resolution).collect();
    all.sort_by_key(|size| (std::cmp::Reverse(size.pictures), size.width, size.height));
    all
}
