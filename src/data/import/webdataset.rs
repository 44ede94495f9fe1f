//! WebDataset (Aizman et al. 2020): tar archives whose neighbouring files with one name, up to its first dot, are a sample.
//!
//! A sample of preference data holds two pictures, `KEY.jpg_0` and `KEY.jpg_1` or `KEY.0.jpg` and `KEY.1.jpg` (or png, webp);
//! and `KEY.json` with `label_0` (or `label`), and `caption` (or `prompt`) unless there is a `KEY.txt`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::listed::{About, Entries, Entry, Index, Listed};
use super::records::Fields;
use crate::data::pair::{At, Content, Pair, Pictures, Place, Preference};
use crate::data::picture::Picture;
use crate::{Error, Result};

pub(super) const EXTENSIONS: [&str; 1] = ["tar"];

const REMEDY: &str =
    "A sample has KEY.jpg_0, KEY.jpg_1 and KEY.json with caption and label_0: 1, 0, or 0.5 for a tie.";

/// Opens archives and notes where their samples are.
pub(super) fn open(path: &Path, files: Vec<PathBuf>) -> Result<Listed> {
    let mut archives = Vec::with_capacity(files.len());
    for file in &files {
        archives.push(Archive {
            samples: scan(file)?,
            file: file.as_path().into(),
        });
    }
    let about = About {
        salt: "webdataset".into(),
        remedy: REMEDY,
    };
    Listed::open(path, files, about, Box::new(Archives(archives)))
}

struct Archives(Vec<Archive>);

struct Archive {
    file: Arc<Path>,
    samples: Vec<Sample>,
}

/// Offset and length of a file in its archive.
type Part = (u64, u32);

#[derive(Default)]
struct Sample {
    key: Box<str>,
    images: [Option<Part>; 2],
    json: Option<Part>,
    text: Option<Part>,
}

fn scan(path: &Path) -> Result<Vec<Sample>> {
    let damaged = |e: &dyn std::fmt::Display| {
        Error::bad(
            path.display().to_string(),
            format!("cannot be read as a tar archive: {e}"),
            "It may be incomplete: copy or download it again. Or compressed: unpack .tar.gz to .tar.",
        )
    };
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let size = file.metadata().map_err(Error::io(path, "look at"))?.len();
    let mut archive = tar::Archive::new(file);
    let mut samples: Vec<Sample> = Vec::new();
    for entry in archive.entries_with_seek().map_err(|e| damaged(&e))? {
        let entry = entry.map_err(|e| damaged(&e))?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry
            .path()
            .map_err(|e| damaged(&e))?
            .to_string_lossy()
            .into_owned();
        let (offset, len) = (entry.raw_file_position(), entry.size());
        if offset + len > size {
            return Err(damaged(&format!("{name} is cut off")));
        }
        let Ok(len) = u32::try_from(len) else { continue };
        let folder = name.rfind('/').map_or(0, |slash| slash + 1);
        let Some(dot) = name[folder..].find('.') else {
            continue;
        };
        let (key, kind) = (&name[..folder + dot], &name[folder + dot + 1..]);
        if samples.last().is_none_or(|last| *last.key != *key) {
            samples.push(Sample {
                key: key.into(),
                ..Sample::default()
            });
        }
        let sample = samples.last_mut().expect("one was pushed if there was none");
        sample.add(kind, (offset, len));
    }
    match ends_with_mark(path, size).map_err(Error::io(path, "read"))? {
        true => Ok(samples),
        false => Err(damaged(
            &"it is cut off, as the zeros that end an archive are not there",
        )),
    }
}

/// Whether the last block is of zeros. An archive that was cut off between two files, or within the head of one, reads
/// like a whole one otherwise.
fn ends_with_mark(path: &Path, size: u64) -> std::io::Result<bool> {
    const BLOCK: usize = 512;
    let Some(start) = size.checked_sub(BLOCK as u64) else {
        return Ok(false);
    };
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut block = [1; BLOCK];
    file.read_exact(&mut block)?;
    Ok(block == [0; BLOCK])
}

impl Sample {
    fn add(&mut self, kind: &str, part: Part) {
        match kind.to_ascii_lowercase().as_str() {
            "jpg_0" | "png_0" | "webp_0" | "0.jpg" | "0.jpeg" | "0.png" | "0.webp" => {
                self.images[0] = Some(part)
            }
            "jpg_1" | "png_1" | "webp_1" | "1.jpg" | "1.jpeg" | "1.png" | "1.webp" => {
                self.images[1] = Some(part)
            }
            "json" => self.json = Some(part),
            "txt" => self.text = Some(part),
            _ => {}
        }
    }

    /// See [`Picture::check_shard`].
    fn check_shard(&self, file: &Arc<Path>) -> Result<()> {
        let parts = [self.images[0], self.images[1], self.json, self.text];
        let mut parts = parts.into_iter().flatten();
        parts.try_for_each(|part| picture(file, part).check_shard())
    }

    fn content(&self, file: &Arc<Path>) -> Result<Content, String> {
        let part = |part| picture(file, part);
        let images = match self.images {
            [Some(first), Some(second)] => [part(first), part(second)],
            _ => return Err("lacks one of its two pictures".into()),
        };
        let json = part(self.json.ok_or("lacks its .json")?);
        let json = json.read().map_err(|e| format!("its .json {e}"))?;
        let fields = Fields::from_json(&json).map_err(|e| format!("its .json {e}"))?;
        let caption = match (fields.text(&["caption", "prompt"]), self.text) {
            (Ok(caption), _) => caption.to_owned(),
            (Err(_), Some(text)) => String::from_utf8_lossy(&part(text).read()?).trim().to_owned(),
            (Err(_), None) => return Err("has no caption".into()),
        };
        const LABELS: [&str; 2] = ["label_0", "label"];
        if fields.is_null(&LABELS) {
            return Ok(Content::Unlabelled(Some(Pictures { caption, images })));
        }
        let name = LABELS.into_iter().find(|name| fields.has(name));
        let name = name.ok_or("its .json lacks label_0")?;
        let label = fields.number(name).map_err(|e| format!("its .json {e}"))?;
        let [first, second] = [fields.number_if_any("score_0")?, fields.number_if_any("score_1")?];
        Ok(Content::Pair(Pair {
            caption,
            images,
            preference: Preference::of_label(label)
                .ok_or_else(|| format!("{name} is {label}, which is none of 0, 0.5 and 1"))?,
            scores: first.zip(second).map(|(a, b)| [a as f32, b as f32]),
        }))
    }
}

fn picture(file: &Arc<Path>, (offset, len): Part) -> Picture {
    Picture::Part {
        file: file.clone(),
        offset,
        len: u64::from(len),
    }
}

impl Index for Archives {
    fn entries(&self) -> Result<Entries<'_>> {
        Ok(Box::new(self.0.iter().flat_map(|archive| {
            archive.samples.iter().map(|sample| {
                let content = match sample.content(&archive.file) {
                    Ok(content) => content,
                    Err(reason) => {
                        sample.check_shard(&archive.file)?;
                        Content::Damaged(reason)
                    }
                };
                Ok(Entry {
                    place: Place {
                        file: archive.file.clone(),
                        at: At::Name(sample.key.clone()),
                    },
                    rows: vec![content],
                })
            })
        })))
    }
}
