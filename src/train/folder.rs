//! The folder of a run, and where in it things lie.

use std::fs;
use std::path::{Path, PathBuf};

use super::checkpoint::{Best, CheckpointStore};
use crate::fsutil::write_atomically;
use crate::{Error, Result};

/// Files of a run.
///
/// ```text
/// config.yaml                            resolved configuration
/// manifest.json                          what the run is made of
/// metrics.jsonl, events.out.tfevents.*   a line and a record a step
/// checkpoints/step-N/                    everything to go on from
/// pytorch_lora_weights.safetensors       the result, for diffusers
///   and, or kohya_lora_weights.safetensors, for Kohya's scripts
///   or diffusion_pytorch_model.safetensors, config.json
/// summary.json                           what came of it
/// samples/step-N.png                     pictures drawn at evaluations
/// ema/, best/                            the same weights of the policy's average, and of the best evaluation
/// ```
#[derive(Debug, Clone)]
pub struct RunFolder(PathBuf);

/// A run's folder before the run has begun. Until then it is left, or made to be, as it was found.
#[derive(Debug)]
pub struct Reservation {
    folder: RunFolder,
    /// Folders that were made for it, the innermost first.
    made: Vec<PathBuf>,
}

impl Reservation {
    fn new(folder: RunFolder) -> Result<Self> {
        let missing = folder.root().ancestors().take_while(|path| !path.exists());
        let made = missing
            .filter(|path| !path.as_os_str().is_empty())
            .map(Path::to_path_buf)
            .collect();
        let root = folder.root().to_path_buf();
        let reservation = Self { folder, made };
        fs::create_dir_all(&root).map_err(Error::io(&root, "create the folder"))?;
        // Hours of encoding may come before the first file is written.
        tempfile::NamedTempFile::new_in(&root).map_err(Error::io(&root, "write into the folder"))?;
        Ok(reservation)
    }

    /// The folder that is reserved.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// The run begins: its configuration is written.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn begin(mut self, config_yaml: &str) -> Result<RunFolder> {
        write_atomically(&self.folder.config(), config_yaml.as_bytes())?;
        self.made.clear();
        Ok(self.folder.clone())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // A folder that somebody has put something into meanwhile stays, and those around it.
        for folder in &self.made {
            if folder.exists() && fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }
}

impl RunFolder {
    /// Reserves the folder of a new run.
    ///
    /// # Errors
    /// The folder holds a run already, or cannot be written.
    pub fn create(path: &Path) -> Result<Reservation> {
        let folder = Self(path.to_path_buf());
        let remedy = match (folder.has_checkpoints()?, folder.metrics().exists()) {
            (true, _) => {
                "Continue it with --resume, choose another folder with --output, or delete this one."
            }
            (false, true) => {
                "It ended before its first checkpoint: choose another folder with --output, or delete this one."
            }
            (false, false) => return Reservation::new(folder),
        };
        Err(Error::bad(
            path.display().to_string(),
            "holds a run already",
            remedy,
        ))
    }

    /// Reserves the folder of a run that is resumed.
    ///
    /// # Errors
    /// It holds no checkpoint, or cannot be written.
    pub fn existing(path: &Path) -> Result<Reservation> {
        let folder = Self(path.to_path_buf());
        match folder.has_checkpoints()? {
            true => Reservation::new(folder),
            false => Err(Error::bad(
                path.display().to_string(),
                "holds no checkpoint, so there is nothing to resume",
                "Give the run's folder with --output, or start a new run without --resume.",
            )),
        }
    }

    fn has_checkpoints(&self) -> Result<bool> {
        // How many are kept is of no account here.
        let store = CheckpointStore::new(self.checkpoints(), 1);
        Ok(store.latest()?.is_some())
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.0.join("config.yaml")
    }

    /// What the run is made of.
    pub fn manifest(&self) -> PathBuf {
        self.0.join("manifest.json")
    }

    /// A line a step.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// A moving reference that is not kept in memory; there while the run is.
    pub fn reference(&self) -> PathBuf {
        self.0.join("reference.bf16")
    }

    /// The folder of checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// The trained adapter.
    pub fn adapter(&self) -> PathBuf {
        self.0.join("pytorch_lora_weights.safetensors")
    }

    /// The trained adapter in Kohya's form.
    pub fn kohya_adapter(&self) -> PathBuf {
        self.0.join("kohya_lora_weights.safetensors")
    }

    /// The trained weights, in full fine-tuning.
    pub fn weights(&self) -> PathBuf {
        self.0.join("diffusion_pytorch_model.safetensors")
    }

    /// The sheet of pictures drawn after `step`; its folder is made.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn sheet(&self, step: u64) -> Result<PathBuf> {
        Ok(self.part("samples")?.0.join(format!("step-{step:06}.png")))
    }

    /// A folder in it for another set of weights; it is made.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn part(&self, name: &str) -> Result<Self> {
        let path = self.0.join(name);
        fs::create_dir_all(&path).map_err(Error::io(&path, "create the folder"))?;
        Ok(Self(path))
    }

    /// Says which evaluation the weights in this folder are from.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn describe_best(&self, metric: &str, best: Best) -> Result<()> {
        let text = serde_json::json!({"step": best.step, "metric": metric, "value": best.value});
        write_atomically(&self.0.join("best.json"), format!("{text}\n").as_bytes())
    }

    /// What came of the run.
    pub fn summary(&self) -> PathBuf {
        self.0.join("summary.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(result: Result<Reservation>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn a_second_run_does_not_overwrite_the_first() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("runs/a");
        let run = RunFolder::create(&path).unwrap().begin("seed: 0\n").unwrap();
        assert_eq!(fs::read_to_string(run.config()).unwrap(), "seed: 0\n");
        assert!(refusal(RunFolder::existing(&path)).contains("holds no checkpoint"));
        // Nothing was trained yet: starting anew does no harm.
        RunFolder::create(&path).unwrap().begin("seed: 1\n").unwrap();
        fs::write(run.metrics(), "").unwrap();
        let error = refusal(RunFolder::create(&path));
        assert!(
            error.contains("holds a run already. It ended before its first checkpoint"),
            "{error}"
        );
        fs::create_dir_all(run.checkpoints().join("step-7")).unwrap();
        let error = refusal(RunFolder::create(&path));
        assert!(
            error.contains("holds a run already. Continue it with --resume"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(run.config()).unwrap(), "seed: 1\n");
        RunFolder::existing(&path).unwrap();
    }

    #[test]
    fn a_run_that_does_not_begin_leaves_no_trace() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("runs")).unwrap();
        let path = temp.path().join("runs/new/a");
        drop(RunFolder::create(&path).unwrap());
        assert_eq!(fs::read_dir(temp.path().join("runs")).unwrap().count(), 0);
        // What others put there meanwhile stays.
        let reservation = RunFolder::create(&path).unwrap();
        fs::write(temp.path().join("runs/new/note"), "").unwrap();
        drop(reservation);
        assert!(temp.path().join("runs/new/note").exists() && !path.exists());
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        fs::write(&path, "").unwrap();
        for path in [path.clone(), path.join("below")] {
            let error = refusal(RunFolder::create(&path));
            assert!(error.contains("cannot create the folder"), "{error}");
        }
        assert!(path.is_file());
    }
}
