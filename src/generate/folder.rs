//! The folder that images are made in.
//!
//! ```text
//! generate.json       the settings
//! images/00012-3.png  image 3 of prompt 12
//! images.jsonl        a record an image; in order once all are made
//! contact-sheet.png   the first images at a glance
//! ```
//!
//! A record is written after its image, each image whole or not at all: what `images.jsonl` names is complete.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::plan::{GeneratePlan, Settings};
use super::record::ImageRecord;
use crate::fsutil::{remove_leftovers, write_atomically};
use crate::{Error, Result};

/// Subfolder of the images.
pub(super) const IMAGES: &str = "images";

const SETTINGS: &str = "generate.json";
const RECORDS: &str = "images.jsonl";

/// An output folder that is being filled.
#[derive(Debug)]
pub struct OutputFolder {
    root: PathBuf,
    records: BTreeMap<(usize, usize), ImageRecord>,
    /// Open once the run has begun.
    log: Option<File>,
    kept: usize,
}

impl OutputFolder {
    /// Looks at what is in `root`, without changing anything there.
    ///
    /// # Errors
    /// It holds images of other settings or other prompts, or files that are not of such a folder.
    pub fn open(root: &Path, settings: &Settings, plan: &GeneratePlan) -> Result<Self> {
        let records = read_records(&root.join(RECORDS), root)?;
        let path = root.join(SETTINGS);
        // Settings under which no image was made bind nobody.
        if path.exists() && !records.is_empty() {
            accept(&path, settings)?;
        }
        check_prompts(root, &records, plan)?;
        Ok(Self {
            root: root.to_path_buf(),
            log: None,
            kept: records.len(),
            records,
        })
    }

    /// Makes the folder ready for images of `settings`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn begin(&mut self, settings: &Settings) -> Result<()> {
        let images = self.root.join(IMAGES);
        fs::create_dir_all(&images).map_err(Error::io(&images, "create the folder"))?;
        let text = serde_json::to_string_pretty(settings).expect("settings have string keys only");
        write_atomically(&self.root.join(SETTINGS), format!("{text}\n").as_bytes())?;
        let path = self.root.join(RECORDS);
        // A line that was cut off by a crash or a full disk is gone after this.
        write_atomically(&path, &lines(self.records.values()))?;
        let log = OpenOptions::new().append(true).open(&path);
        self.log = Some(log.map_err(Error::io(&path, "write"))?);
        Ok(())
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether an image is complete.
    pub fn has(&self, prompt_index: usize, image_index: usize) -> bool {
        self.records.contains_key(&(prompt_index, image_index))
    }

    /// Images that were complete when the folder was opened.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Complete images.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Notes that the image of `record` is complete.
    ///
    /// # Errors
    /// The disk is full.
    pub fn add(&mut self, record: ImageRecord) -> Result<()> {
        let log = self.log.as_mut().expect("a run begins before it adds images");
        log.write_all(&lines([&record]))
            .map_err(Error::io(self.root.join(RECORDS), "write"))?;
        self.records
            .insert((record.prompt_index, record.image_index), record);
        Ok(())
    }

    /// Puts the records in order and returns them. What killed runs have left half written is gone then.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn finish(self) -> Result<Vec<ImageRecord>> {
        write_atomically(&self.root.join(RECORDS), &lines(self.records.values()))?;
        remove_leftovers(&self.root)?;
        remove_leftovers(&self.root.join(IMAGES))?;
        Ok(self.records.into_values().collect())
    }
}

fn lines<'a>(records: impl IntoIterator<Item = &'a ImageRecord>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        serde_json::to_writer(&mut bytes, record).expect("records have string keys only");
        bytes.push(b'\n');
    }
    bytes
}

impl Settings {
    /// Those of the folder that `records`, an `images.jsonl`, is in, with their file; `None` if it is not there.
    ///
    /// # Errors
    /// The file cannot be read, or is none of this program.
    pub fn beside(records: &Path) -> Result<Option<(PathBuf, Self)>> {
        let path = records.with_file_name(SETTINGS);
        match path.exists() {
            false => Ok(None),
            true => Self::read(
                &path,
                "Delete it, or take the one that was written with the images.",
            )
            .map(|settings| Some((path, settings))),
        }
    }

    fn read(path: &Path, remedy: &str) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let what = format!("is not what this program writes: {error}");
            Error::bad(path.display().to_string(), what, remedy)
        })
    }
}

fn accept(path: &Path, settings: &Settings) -> Result<()> {
    let there = Settings::read(path, "Choose another folder with --output.")?;
    match there.difference(settings) {
        None => Ok(()),
        Some((name, before, now)) => Err(Error::bad(
            path.display().to_string(),
            format!("the folder holds images of other settings: {name} was {before}, and is {now} now"),
            "Choose another folder with --output, or delete this one.",
        )),
    }
}

/// Records whose images are there. A last line that is cut off is none; neither is one whose image was deleted.
fn read_records(path: &Path, root: &Path) -> Result<BTreeMap<(usize, usize), ImageRecord>> {
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let text = fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    let mut records = BTreeMap::new();
    let count = text.lines().count();
    for (number, line) in text.lines().enumerate() {
        match serde_json::from_str::<ImageRecord>(line) {
            Ok(record) if root.join(&record.file).is_file() => {
                records.insert((record.prompt_index, record.image_index), record);
            }
            Ok(_) => {}
            Err(_) if number + 1 == count => {}
            Err(error) => {
                return Err(Error::bad(
                    format!("{}, line {}", path.display(), number + 1),
                    format!("is no record of an image: {error}"),
                    "Choose another folder with --output, or delete this one.",
                ));
            }
        }
    }
    Ok(records)
}

fn check_prompts(
    root: &Path,
    records: &BTreeMap<(usize, usize), ImageRecord>,
    plan: &GeneratePlan,
) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::bad(
            root.display().to_string(),
            what,
            "Choose another folder with --output, or delete this one.",
        ))
    };
    for record in records.values() {
        let number = record.prompt_index;
        match plan.prompts.get(number) {
            Some(prompt) if prompt.text != record.prompt => {
                return refuse(format!(
                    "holds images of other prompts: number {number} was {:?}, and is {:?} now",
                    record.prompt, prompt.text
                ));
            }
            Some(_) if record.image_index < plan.images_per_prompt => {}
            _ => {
                return refuse(format!(
                    "holds {}, which is not among the images asked for now",
                    record.file
                ));
            }
        }
    }
    Ok(())
}
