//! The folder of a run, and where in it things lie.

use std::fs;
use std::path::{Path, PathBuf};

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
///   or diffusion_pytorch_model.safetensors
/// summary.json                           what came of it
/// ```
#[derive(Debug, Clone)]
pub struct RunFolder(PathBuf);

impl RunFolder {
    /// Makes the folder of a new run and writes its configuration.
    ///
    /// # Errors
    /// The folder holds a run already, or cannot be written.
    pub fn create(path: &Path, config_yaml: &str) -> Result<Self> {
        let folder = Self(path.to_path_buf());
        if folder.metrics().exists() || folder.checkpoints().exists() {
            return Err(Error::bad(
                path.display().to_string(),
                "holds a run already",
                "Continue it with --resume, choose another folder with --output, or delete this one.",
            ));
        }
        fs::create_dir_all(path).map_err(Error::io(path, "create the folder"))?;
        write_atomically(&folder.config(), config_yaml.as_bytes())?;
        Ok(folder)
    }

    /// The folder of a run that is resumed.
    ///
    /// # Errors
    /// There is none.
    pub fn existing(path: &Path) -> Result<Self> {
        let folder = Self(path.to_path_buf());
        match folder.checkpoints().is_dir() {
            true => Ok(folder),
            false => Err(Error::bad(
                path.display().to_string(),
                "holds no checkpoints, so there is nothing to resume",
                "Give the run's folder with --output, or start a new run without --resume.",
            )),
        }
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

    /// The folder of checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// The trained adapter.
    pub fn adapter(&self) -> PathBuf {
        self.0.join("pytorch_lora_weights.safetensors")
    }

    /// The trained weights, in full fine-tuning.
    pub fn weights(&self) -> PathBuf {
        self.0.join("diffusion_pytorch_model.safetensors")
    }

    /// What came of the run.
    pub fn summary(&self) -> PathBuf {
        self.0.join("summary.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_does_not_overwrite_the_first() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("runs/a");
        let run = RunFolder::create(&path, "seed: 0\n").unwrap();
        assert_eq!(fs::read_to_string(run.config()).unwrap(), "seed: 0\n");
        assert!(RunFolder::existing(&path).is_err());
        // Nothing was trained yet: starting anew does no harm.
        RunFolder::create(&path, "seed: 1\n").unwrap();
        fs::write(run.metrics(), "").unwrap();
        let error = RunFolder::create(&path, "seed: 2\n").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("holds a run already. Continue it with --resume"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(run.config()).unwrap(), "seed: 1\n");
        fs::create_dir(run.checkpoints()).unwrap();
        assert!(RunFolder::existing(&path).is_ok());
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        fs::write(&path, "").unwrap();
        let error = RunFolder::create(&path, "").unwrap_err();
        assert!(
            error.exit_code() == 2 && error.to_string().contains("cannot create the folder"),
            "{error}"
        );
    }
}
