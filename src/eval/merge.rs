//! Tables of several evaluations as one; refused unless they were made under the same manifest.

use std::path::{Path, PathBuf};

use super::manifest::Manifest;
use super::results::Results;
use super::scores::{self, ModelScores};
use super::sets::SetMetrics;
use super::{finish, read_json};
use crate::fsutil::write_atomically;
use crate::{Error, Result};

/// Results of all models of `folders` together. With `output`, they are written there as those of an evaluation.
///
/// # Errors
/// A folder holds no evaluation; two differ in anything but their models, or call different models the same.
pub fn merge(folders: &[PathBuf], output: Option<&Path>) -> Result<Results> {
    let (first, others) = folders.split_first().ok_or_else(|| {
        Error::bad(
            "--merge",
            "names no folder",
            "Name the folders of two evaluations or more.",
        )
    })?;
    let mut manifest: Manifest = read_json(&first.join("manifest.json"))?;
    let mut models = Vec::new();
    add(&mut models, first, &manifest)?;
    for folder in others {
        let other: Manifest = read_json(&folder.join("manifest.json"))?;
        if let Some((what, here, there)) = manifest.difference(&other) {
            return Err(Error::bad(
                folder.display().to_string(),
                format!(
                    "was made under another manifest than {}: {what} is {there}, not {here}",
                    first.display()
                ),
                "Evaluate the models under one configuration.",
            ));
        }
        add(&mut models, folder, &other)?;
    }
    manifest.models = models.iter().map(|model| model.identity.clone()).collect();
    match output {
        None => Ok(Results::of(&manifest, &models)),
        Some(output) => {
            for model in &models {
                let folder = output.join("models").join(&model.identity.name);
                std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "create the folder"))?;
                write_atomically(&folder.join(scores::FILE), &scores::lines(&model.rows))?;
            }
            finish(&manifest, &models, output)
        }
    }
}

/// The set metrics of a model in an evaluation's results.
fn of_results(folder: &Path, name: &str) -> Result<SetMetrics> {
    let results: Results = read_json(&folder.join("results.json"))?;
    let result = results.models.into_iter().find(|model| model.name == name);
    Ok(result.map(|model| model.set_metrics).unwrap_or_default())
}

/// Adds the models of a folder that are not there yet.
fn add(models: &mut Vec<ModelScores>, folder: &Path, manifest: &Manifest) -> Result<()> {
    for identity in &manifest.models {
        match models.iter().find(|model| model.identity.name == identity.name) {
            Some(known) if known.identity.is_same(identity) => continue,
            Some(_) => {
                return Err(Error::bad(
                    folder.display().to_string(),
                    format!("calls another model {} than the folders before it", identity.name),
                    "Give each model a name of its own, and run the evaluation again.",
                ));
            }
            None => {}
        }
        let of_model = folder.join("models").join(&identity.name);
        let of_model = std::path::absolute(&of_model).map_err(Error::io(&of_model, "find"))?;
        let mut rows = scores::read(&of_model)?;
        // The images stay where they are.
        for row in &mut rows {
            row.file = of_model.join(&row.file).display().to_string();
        }
        models.push(ModelScores {
            identity: identity.clone(),
            rows,
            sets: of_results(folder, &identity.name)?,
        });
    }
    Ok(())
}
