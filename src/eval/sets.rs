//! Metrics of each model's images as a set: FID and KID against a reference, Vendi score, distance within prompts. Computed
//! once, then read from `sets.json`.

use std::path::Path;

use indexmap::IndexMap;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::config::SetMetricConfig;
use super::images::ModelImages;
use super::{EvalOptions, read_json, write_json};
use crate::prompts::Prompt;
use crate::reward::RewardModel;
use crate::runtime::SessionOptions;
use crate::score::source::{self, Picture, Record, Source};
use crate::setmetric::{
    Distance, KidOptions, Reference, SetFeatures, Statistics, embed, frechet_distance, kid, vendi_score,
};
use crate::stats::Summary;
use crate::{Error, Result};

/// A model's folder holds this file.
const FILE: &str = "sets.json";

/// Metrics by their names, as columns are headed.
pub type SetMetrics = IndexMap<String, f64>;

/// An extractor of features and what sets are compared with, by their content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetIdentity {
    /// The extractor's name, as columns are headed.
    pub features: String,
    /// Hash of what determines its features.
    pub hash: String,
    /// Statistics or pictures, as they were named.
    pub reference: Option<String>,
    /// Their content.
    pub reference_hash: Option<String>,
}

/// What was computed, and from what.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// By a key of images, extractor and reference.
    by_key: IndexMap<String, SetMetrics>,
}

/// An extractor, ready for the models' images.
pub(super) struct SetMeasure<'a> {
    pub identity: SetIdentity,
    config: &'a SetMetricConfig,
    session: &'a SessionOptions,
    options: &'a EvalOptions<'a>,
    cache: &'a Path,
    /// Read when the first model needs it.
    reference: Option<Reference>,
}

impl<'a> SetMeasure<'a> {
    /// Of one entry of the configuration.
    pub fn new(
        config: &'a SetMetricConfig,
        session: &'a SessionOptions,
        cache: &'a Path,
        options: &'a EvalOptions<'a>,
    ) -> Result<Self> {
        let model = RewardModel::open(&config.features, session)?;
        let named = config.reference.as_ref().map(|path| path.display().to_string());
        Ok(Self {
            identity: SetIdentity {
                features: model.manifest().name.clone(),
                hash: model.features_hash()?.to_string(),
                reference_hash: named.as_deref().map(reference_hash).transpose()?,
                reference: named,
            },
            config,
            session,
            options,
            cache,
            reference: None,
        })
    }

    /// The metrics of a model's images; `folder` is the model's.
    pub fn of_model(&mut self, model: &ModelImages, prompts: &[Prompt], folder: &Path) -> Result<SetMetrics> {
        let path = folder.join(FILE);
        let mut kept: Kept = if path.is_file() {
            read_json(&path)?
        } else {
            Kept::default()
        };
        let key = self.key(model, prompts);
        if let Some(known) = kept.by_key.get(&key) {
            return Ok(known.clone());
        }
        self.options
            .console
            .say(&format!("{} of {}", self.identity.features, model.identity.name));
        let records = model.images.iter().map(|image| {
            Ok(Record {
                file: image.file.clone(),
                picture: Picture::File(image.path.clone()),
                prompt: Some(prompts[image.slot.prompt_index].text.clone()),
                fields: IndexMap::new(),
            })
        });
        let records: Vec<Result<Record>> = records.collect();
        let set = self.embed(Source {
            len: Some(records.len()),
            records: Box::new(records.into_iter()),
        })?;
        let metrics = self.measure(&set)?;
        kept.by_key.insert(key, metrics.clone());
        write_json(&path, &kept)?;
        Ok(metrics)
    }

    fn key(&self, model: &ModelImages, prompts: &[Prompt]) -> String {
        let mut hasher = blake3::Hasher::new();
        let identity = &self.identity;
        for text in [
            Some(&identity.hash),
            Some(&identity.features),
            identity.reference_hash.as_ref(),
        ] {
            hasher.update(blake3::hash(text.map_or(&[][..], |text| text.as_bytes())).as_bytes());
        }
        for image in &model.images {
            let prompt = &prompts[image.slot.prompt_index].text;
            hasher
                .update(&image.hash)
                .update(blake3::hash(prompt.as_bytes()).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    fn embed(&self, source: Source) -> Result<SetFeatures> {
        let model = RewardModel::open(&self.config.features, self.session)?;
        let set = embed(
            model,
            source,
            Some(self.cache),
            self.options.stop,
            self.options.console,
        )?;
        for (file, problem) in &set.broken {
            self.options.console.say(&format!("{file}: {problem}; left out."));
        }
        Ok(set)
    }

    fn measure(&mut self, set: &SetFeatures) -> Result<SetMetrics> {
        let mut metrics = SetMetrics::new();
        let name = self.identity.features.clone();
        if let Some(features) = &set.features {
            if self.config.reference.is_some() {
                let own = Statistics::of(features.view())?;
                if let Some(warning) = own.rank_warning() {
                    self.options.console.say(&format!("warning: {warning}."));
                }
                let reference = self.reference()?;
                metrics.insert(
                    format!("FID {name}"),
                    frechet_distance(&own, &reference.statistics)?,
                );
                if let Some(others) = &reference.features {
                    let found = kid(features.view(), others.view(), &KidOptions::default())?;
                    metrics.insert(format!("KID {name}"), found.mean);
                }
            }
            metrics.insert(format!("Vendi {name}"), vendi_score(features.view())?);
        }
        if let Some(within) = Summary::of(&set.diversity) {
            let metric = match set.distance {
                Distance::Cosine => "diversity",
                Distance::SquaredEuclidean => "LPIPS",
            };
            metrics.insert(format!("{metric} {name}"), within.mean);
        }
        Ok(metrics)
    }

    fn reference(&mut self) -> Result<&Reference> {
        if self.reference.is_none() {
            self.reference = Some(self.read_reference()?);
        }
        Ok(self.reference.as_ref().expect("it was read just now"))
    }

    fn read_reference(&self) -> Result<Reference> {
        let named = self.identity.reference.as_deref().unwrap_or_default();
        if is_statistics(named) {
            let reference = Reference::read(Path::new(named))?;
            return match reference.extractor {
                Some(hash) if hash.to_string() != self.identity.hash => Err(Error::bad(
                    named,
                    format!(
                        "holds features of another extractor than {}",
                        self.identity.features
                    ),
                    "Make the statistics anew with this one: ortdpo fid --save-statistics.",
                )),
                _ => Ok(reference),
            };
        }
        let set = self.embed(source::open(named)?)?;
        let Some(features) = set.features else {
            return Err(Error::bad(
                &self.config.features,
                "is of kind perceptual, whose features are for distances within a prompt only",
                "Leave out its reference, or take an extractor of kind feature_extractor.",
            ));
        };
        Ok(Reference {
            statistics: Statistics::of(features.view())?,
            features: Some(features),
            extractor: None,
        })
    }
}

fn is_statistics(named: &str) -> bool {
    Path::new(named)
        .extension()
        .is_some_and(|extension| extension == "npz")
}

/// Of the file of statistics, or of all pictures in their order.
fn reference_hash(named: &str) -> Result<String> {
    if is_statistics(named) {
        let bytes = std::fs::read(named).map_err(Error::io(named, "read"))?;
        return Ok(blake3::hash(&bytes).to_hex().to_string());
    }
    let records: Vec<Record> = source::open(named)?.records.collect::<Result<_>>()?;
    let hashes: Vec<blake3::Hash> = records
        .par_iter()
        .map(|record| blake3::hash(&record.picture.read().unwrap_or_default()))
        .collect();
    let mut hasher = blake3::Hasher::new();
    hashes.iter().for_each(|hash| {
        hasher.update(hash.as_bytes());
    });
    Ok(hasher.finalize().to_hex().to_string())
}
