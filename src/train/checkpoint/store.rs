//! The `checkpoints/` folder of a run: writing without half-written folders, keeping the newest, reading with checks.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Checkpoint, RunState, Tensors};
use crate::params::{Layout, ParamSet};
use crate::{Error, Result};

const PREFIX: &str = "step-";
/// Folders under this name are not whole, whatever they hold.
const UNFINISHED: &str = ".unfinished-";
const STATE: &str = "state.json";
const CHECKSUMS: &str = "checksums.json";

/// Names of files and their BLAKE3 in hexadecimal digits.
type Checksums = BTreeMap<String, String>;

/// The checkpoints of one run.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    folder: PathBuf,
    keep: usize,
}

impl CheckpointStore {
    /// The checkpoints in `folder`, of which the newest `keep` stay.
    pub fn new(folder: PathBuf, keep: usize) -> Self {
        Self { folder, keep }
    }

    /// Folder of the checkpoint after `step`.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{step}"))
    }

    /// Steps that there are checkpoints of, in order.
    ///
    /// # Errors
    /// The folder cannot be listed. One that is not there holds no checkpoints.
    pub fn steps(&self) -> Result<Vec<u64>> {
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let step = |name: &str| name.strip_prefix(PREFIX)?.parse().ok();
        let mut steps: Vec<u64> = self.entries()?.iter().filter_map(|name| step(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The newest checkpoint's step.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn latest(&self) -> Result<Option<u64>> {
        Ok(self.steps()?.last().copied())
    }

    /// Removes the checkpoints after `step`, which a run that goes back to it has made void.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn forget_after(&self, step: u64) -> Result<()> {
        let steps = self.steps()?.into_iter();
        steps
            .filter(|later| *later > step)
            .try_for_each(|later| self.remove(later))
    }

    fn remove(&self, step: u64) -> Result<()> {
        let path = self.path(step);
        fs::remove_dir_all(&path).map_err(Error::io(&path, "remove"))
    }

    /// Writes the checkpoint after `state.step`, then removes what is too old; that of the best evaluation stays. If anything fails, the checkpoints
    /// that were there still are.
    ///
    /// # Errors
    /// The disk is full, or the folder cannot be written.
    pub fn save(&self, state: &RunState, tensors: &Tensors<'_>) -> Result<PathBuf> {
        fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder, "create the folder"))?;
        self.remove_unfinished()?;
        let temporary = self.folder.join(format!("{UNFINISHED}{}", state.step));
        let target = self.path(state.step);
        let written = write_all(&temporary, state, tensors).and_then(|()| self.put(&temporary, &target));
        if let Err(error) = written {
            // Makes room again on a full disk; that it fails too is no news.
            fs::remove_dir_all(&temporary).ok();
            return Err(error);
        }
        let best = state.best.map(|best| best.step);
        superseded(&self.steps()?, self.keep, best).try_for_each(|step| self.remove(step))?;
        Ok(target)
    }

    /// Reads the checkpoint after `step` and compares all checksums. Its tensors must be those of `layout`.
    ///
    /// # Errors
    /// It is missing, damaged, or of another model.
    pub fn load(&self, step: u64, layout: &Arc<Layout>) -> Result<Checkpoint> {
        let folder = self.path(step);
        let checksums: Checksums = self.read_json(&folder.join(CHECKSUMS), step)?;
        let has = |name: &str| checksums.contains_key(name);
        let optional = [AVERAGE, ROLLOUTS].into_iter().filter(|name| has(name));
        let names = TENSORS.into_iter().chain(optional);
        for name in names.chain([STATE]) {
            let path = folder.join(name);
            let actual = checksum(&path).map_err(|error| self.unreadable(error, &path, step))?;
            if checksums.get(name) != Some(&actual) {
                return Err(self.damaged(&path, "is not what was written: its checksum differs", step));
            }
        }
        let tensor = |name: &str| ParamSet::load(&folder.join(name), layout);
        Ok(Checkpoint {
            state: self.read_json(&folder.join(STATE), step)?,
            policy: tensor(POLICY)?,
            reference: tensor(REFERENCE)?,
            initial: tensor(INITIAL)?,
            // Their shapes are the optimizer's own, which checks them.
            first_moment: ParamSet::load_any(&folder.join(FIRST_MOMENT))?,
            second_moment: ParamSet::load_any(&folder.join(SECOND_MOMENT))?,
            average: has(AVERAGE).then(|| tensor(AVERAGE)).transpose()?,
            rollouts: match has(ROLLOUTS) {
                true => Some(ParamSet::load_any(&folder.join(ROLLOUTS))?),
                false => None,
            },
        })
    }

    fn entries(&self) -> Result<Vec<String>> {
        let list = || -> std::io::Result<Vec<String>> {
            let names = fs::read_dir(&self.folder)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            names.collect()
        };
        list().map_err(Error::io(&self.folder, "list the folder"))
    }

    /// Removes what a run that was killed while saving left behind.
    fn remove_unfinished(&self) -> Result<()> {
        let names = self.entries()?;
        names
            .iter()
            .filter(|name| name.starts_with(UNFINISHED))
            .try_for_each(|name| {
                let path = self.folder.join(name);
                fs::remove_dir_all(&path).map_err(Error::io(&path, "remove"))
            })
    }

    /// Gives a whole folder its name. A checkpoint of the same step, from before a resumed run came by again, makes way.
    fn put(&self, temporary: &Path, target: &Path) -> Result<()> {
        let old = self.folder.join(format!("{UNFINISHED}old"));
        if target.exists() {
            fs::rename(target, &old).map_err(Error::io(target, "rename"))?;
        }
        if let Err(error) = fs::rename(temporary, target) {
            // As it was; the error to tell of is the first one.
            fs::rename(&old, target).ok();
            return Err(Error::io(temporary, "rename")(error));
        }
        sync_folder(&self.folder)?;
        match old.exists() {
            true => fs::remove_dir_all(&old).map_err(Error::io(&old, "remove")),
            false => Ok(()),
        }
    }

    fn read_json<T: DeserializeOwned>(&self, path: &Path, step: u64) -> Result<T> {
        let text = fs::read(path)
            .map_err(Error::io(path, "read"))
            .map_err(|error| self.unreadable(error, path, step))?;
        serde_json::from_slice(&text)
            .map_err(|error| self.damaged(path, &format!("cannot be understood: {error}"), step))
    }

    /// A file that is not there is damage; other errors stay what they are.
    fn unreadable(&self, error: Error, path: &Path, step: u64) -> Error {
        match error {
            Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
                self.damaged(path, "is missing", step)
            }
            other => other,
        }
    }

    fn damaged(&self, path: &Path, what: &str, step: u64) -> Error {
        let earlier = self
            .steps()
            .unwrap_or_default()
            .into_iter()
            .rfind(|other| *other < step);
        let remedy = match earlier {
            Some(earlier) => format!(
                "Delete {} to resume from step {earlier}.",
                self.path(step).display()
            ),
            None => "There is no earlier checkpoint: start a new run.".to_owned(),
        };
        Error::bad(path.display().to_string(), what, remedy)
    }
}

const POLICY: &str = "policy.safetensors";
const REFERENCE: &str = "reference.safetensors";
const INITIAL: &str = "initial.safetensors";
const FIRST_MOMENT: &str = "first_moment.safetensors";
const SECOND_MOMENT: &str = "second_moment.safetensors";
const AVERAGE: &str = "average.safetensors";
const ROLLOUTS: &str = "rollouts.safetensors";

/// Tensor files of every checkpoint; [`AVERAGE`] is there where a moving average is kept, [`ROLLOUTS`] with online objectives.
const TENSORS: [&str; 5] = [POLICY, REFERENCE, INITIAL, FIRST_MOMENT, SECOND_MOMENT];

/// Writes all files of a checkpoint into a new folder and waits until the disk has them.
fn write_all(folder: &Path, state: &RunState, tensors: &Tensors<'_>) -> Result<()> {
    fs::create_dir(folder).map_err(Error::io(folder, "create the folder"))?;
    let sets = [
        tensors.policy,
        tensors.reference,
        tensors.initial,
        tensors.first_moment,
        tensors.second_moment,
    ];
    let sets = TENSORS.into_iter().zip(sets);
    let sets: Vec<(&str, &ParamSet)> = sets
        .chain(tensors.average.map(|set| (AVERAGE, set)))
        .chain(tensors.rollouts.map(|set| (ROLLOUTS, set)))
        .collect();
    for (name, set) in &sets {
        set.save(&folder.join(name))?;
    }
    write_json(&folder.join(STATE), state)?;
    let sum = |name: &str| Ok((name.to_owned(), checksum(&folder.join(name))?));
    let names = sets.iter().map(|(name, _)| *name).chain([STATE]);
    let checksums: Checksums = names.map(sum).collect::<Result<_>>()?;
    write_json(&folder.join(CHECKSUMS), &checksums)?;
    sync_folder(folder)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).expect("states are plain data with text keys");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(&text)?;
        file.sync_all()
    };
    write().map_err(Error::io(path, "write"))
}

/// Makes renamed and new names in a folder survive a power cut, where the system can do that.
fn sync_folder(folder: &Path) -> Result<()> {
    match cfg!(unix) {
        true => File::open(folder)
            .and_then(|file| file.sync_all())
            .map_err(Error::io(folder, "write")),
        false => Ok(()),
    }
}

fn checksum(path: &Path) -> Result<String> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(Error::io(path, "read"))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Retention: of `steps` in order, those that make way when the newest `keep` and the best stay.
fn superseded(steps: &[u64], keep: usize, best: Option<u64>) -> impl Iterator<Item = u64> {
    let old = steps.len().saturating_sub(keep);
    steps[..old]
        .iter()
        .copied()
        .filter(move |step| Some(*step) != best)
}
