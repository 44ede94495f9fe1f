//! The images of a model: made now, there already, or made elsewhere; one for every seed, prompt and number.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::config::{EvalPlan, ImageSource, ModelPlan};
use super::manifest::ModelIdentity;
use super::{EvalOptions, read_json};
use crate::generate::{self, GenerateOptions, GeneratePlan, Settings};
use crate::pipeline::{AdapterRef, Guidance, VaePrecision};
use crate::progress::Console;
use crate::runtime::SessionOptions;
use crate::score::source::{self, Picture, Record};
use crate::{Error, Result};

/// A model and its images, by seed, prompt and number.
pub(super) struct ModelImages {
    pub identity: ModelIdentity,
    pub images: Vec<SlotImage>,
}

/// An image in its place.
#[derive(Debug, Clone)]
pub(super) struct SlotImage {
    pub slot: Slot,
    /// Relative to the model's folder; absolute for images made elsewhere.
    pub file: String,
    pub path: PathBuf,
    pub hash: [u8; 32],
}

/// What images of several models are paired by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Slot {
    pub seed: u64,
    pub prompt_index: usize,
    pub image_index: usize,
}

/// All images of `model`; those that are to be made and are not there yet are made into `folder`.
pub(super) fn of_model(
    plan: &EvalPlan,
    model: &ModelPlan,
    folder: &Path,
    session: &SessionOptions,
    options: &EvalOptions,
) -> Result<ModelImages> {
    match &model.source {
        ImageSource::Pipeline {
            model: pipeline,
            adapters,
        } => {
            let made = Making {
                plan,
                folder,
                session,
                options,
            };
            made.of_pipeline(&model.name, pipeline, adapters)
        }
        ImageSource::Folder(images) => of_folder(plan, &model.name, images),
    }
}

/// Says so where models were sampled differently because each has a default of its own.
pub(super) fn check_samplers(models: &[ModelImages], console: Console) {
    let mut samplers: Vec<String> = models
        .iter()
        .filter_map(|model| {
            let sampler = model.identity.sampler.as_deref()?;
            Some(format!("{} uses {sampler}", model.identity.name))
        })
        .collect();
    let kind = |text: &String| text.rsplit(' ').next().map(str::to_owned);
    if samplers.windows(2).any(|pair| kind(&pair[0]) != kind(&pair[1])) {
        samplers.dedup();
        console.say(&format!(
            "the models' own samplers differ ({}); set sampling.sampler to compare them with one",
            samplers.join(", ")
        ));
    }
}

struct Making<'a> {
    plan: &'a EvalPlan,
    folder: &'a Path,
    session: &'a SessionOptions,
    options: &'a EvalOptions<'a>,
}

impl Making<'_> {
    fn of_pipeline(&self, name: &str, pipeline: &Path, adapters: &[AdapterRef]) -> Result<ModelImages> {
        let mut slots = Vec::new();
        let mut settings = None;
        for &seed in &self.plan.seeds {
            let below = format!("seed-{seed}");
            let output = self.folder.join(&below);
            std::fs::create_dir_all(&output).map_err(Error::io(&output, "create the folder"))?;
            self.options
                .console
                .say(&format!("images of {name}, seed {seed}"));
            let generated = generate::run(
                &self.generate_plan(pipeline, adapters, seed),
                &output,
                &GenerateOptions {
                    session: self.session.clone(),
                    vae: VaePrecision::of(self.plan.runtime.vae_fp32),
                    console: self.options.console,
                    stop: self.options.stop,
                },
            )?;
            for record in generated.records {
                let slot = Slot {
                    seed,
                    prompt_index: record.prompt_index,
                    image_index: record.image_index,
                };
                slots.push((
                    slot,
                    format!("{below}/{}", record.file),
                    output.join(&record.file),
                ));
            }
            settings = Some(read_json::<Settings>(&output.join("generate.json"))?);
        }
        let settings = settings.expect("a checked plan has a seed");
        Ok(ModelImages {
            identity: ModelIdentity {
                name: name.to_owned(),
                source: settings.model,
                hash: settings.model_hash,
                adapters: settings.adapters,
                adapter_hashes: settings.adapter_hashes,
                sampler: Some(settings.sampler),
                eta: Some(settings.eta),
            },
            images: hashed(slots)?,
        })
    }

    fn generate_plan(&self, pipeline: &Path, adapters: &[AdapterRef], seed: u64) -> GeneratePlan {
        let sampling = &self.plan.sampling;
        GeneratePlan {
            adapters: adapters.to_vec(),
            negative: sampling.negative.clone(),
            steps: sampling.steps,
            guidance: Guidance {
                scale: sampling.guidance,
                rescale: sampling.guidance_rescale,
            },
            sampler: self.plan.sampler,
            eta: sampling.eta,
            seed,
            images_per_prompt: self.plan.images_per_prompt,
            batch: self.plan.runtime.batch,
            height: sampling.height,
            width: sampling.width,
            clip_skip: sampling.clip_skip,
            ..GeneratePlan::new(pipeline, self.plan.prompts.clone())
        }
    }
}

/// Puts the images in order and hashes their files.
fn hashed(mut slots: Vec<(Slot, String, PathBuf)>) -> Result<Vec<SlotImage>> {
    slots.sort_by_key(|(slot, ..)| *slot);
    slots
        .into_par_iter()
        .map(|(slot, file, path)| {
            let bytes = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
            Ok(SlotImage {
                slot,
                file,
                hash: *blake3::hash(&bytes).as_bytes(),
                path,
            })
        })
        .collect()
}

/// Images made elsewhere, each put to its prompt.
fn of_folder(plan: &EvalPlan, name: &str, folder: &Path) -> Result<ModelImages> {
    let source = source::open(&folder.display().to_string())?;
    let records: Vec<Record> = source.records.collect::<Result<_>>()?;
    let slots = Pairing::new(plan, folder).pair(records)?;
    let images = hashed(slots)?;
    let mut hasher = blake3::Hasher::new();
    images.iter().for_each(|image| {
        hasher.update(&image.hash);
    });
    Ok(ModelImages {
        identity: ModelIdentity {
            name: name.to_owned(),
            source: folder.display().to_string(),
            hash: hasher.finalize().to_hex().to_string(),
            adapters: Vec::new(),
            adapter_hashes: Vec::new(),
            sampler: None,
            eta: None,
        },
        images,
    })
}

/// An image of a prompt: seed and number if the list says, and the file.
type Found = (Option<(u64, u64)>, PathBuf);

/// Which image is for which prompt: by its `prompt_index`, else by the text of its prompt, else by its position.
struct Pairing<'a> {
    plan: &'a EvalPlan,
    folder: &'a Path,
    by_text: HashMap<&'a str, Vec<usize>>,
    /// By prompt.
    found: Vec<Vec<Found>>,
}

impl<'a> Pairing<'a> {
    fn new(plan: &'a EvalPlan, folder: &'a Path) -> Self {
        let mut by_text: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, prompt) in plan.prompts.iter().enumerate() {
            by_text.entry(&prompt.text).or_default().push(index);
        }
        Self {
            plan,
            folder,
            by_text,
            found: vec![Vec::new(); plan.prompts.len()],
        }
    }

    fn per_prompt(&self) -> usize {
        self.plan.seeds.len() * self.plan.images_per_prompt
    }

    fn pair(mut self, records: Vec<Record>) -> Result<Vec<(Slot, String, PathBuf)>> {
        let without_prompts = records.iter().all(|record| record.prompt.is_none());
        let wanted = self.plan.prompts.len() * self.per_prompt();
        if without_prompts && records.len() != wanted {
            return Err(self.refuse(format!(
                "holds {} images without prompts, where {} prompts with {} each need {wanted}",
                records.len(),
                self.plan.prompts.len(),
                self.per_prompt()
            )));
        }
        for (position, record) in records.into_iter().enumerate() {
            let index = match without_prompts {
                true => Some(position / self.per_prompt()),
                false => self.index_of(&record)?,
            };
            let Picture::File(path) = record.picture else {
                return Err(self.refuse(format!("{} is not a file of its own", record.file)));
            };
            // Images of prompts that are not asked for are left alone: a limit may leave out some.
            if let Some(index) = index {
                let number = |key: &str| record.fields.get(key).and_then(serde_json::Value::as_u64);
                self.found[index].push((number("seed").zip(number("image_index")), path));
            }
        }
        let slots: Result<Vec<_>> = (0..self.found.len()).map(|index| self.slots_of(index)).collect();
        Ok(slots?.into_iter().flatten().collect())
    }

    fn index_of(&self, record: &Record) -> Result<Option<usize>> {
        let Some(text) = record.prompt.as_deref() else {
            return Err(self.refuse(format!("{} has no prompt, but others have", record.file)));
        };
        let named = record
            .fields
            .get("prompt_index")
            .and_then(serde_json::Value::as_u64);
        let named = named.and_then(|index| usize::try_from(index).ok());
        if let Some(index) = named
            && self
                .plan
                .prompts
                .get(index)
                .is_some_and(|prompt| prompt.text == text)
        {
            return Ok(Some(index));
        }
        // Of equal prompts, one after the other.
        let Some(candidates) = self.by_text.get(text) else {
            return Ok(None);
        };
        let free = |index: &&usize| self.found[**index].len() < self.per_prompt();
        Ok(Some(*candidates.iter().find(free).unwrap_or(&candidates[0])))
    }

    fn slots_of(&self, index: usize) -> Result<Vec<(Slot, String, PathBuf)>> {
        let mut found = self.found[index].clone();
        found.sort();
        let wanted = self.plan.seeds.iter().flat_map(|&seed| {
            (0..self.plan.images_per_prompt).map(move |image_index| Slot {
                seed,
                prompt_index: index,
                image_index,
            })
        });
        let exact = |slot: &Slot| {
            let key = Some((slot.seed, slot.image_index as u64));
            found
                .iter()
                .find(|(known, _)| *known == key)
                .map(|(_, path)| path)
        };
        let wanted: Vec<Slot> = wanted.collect();
        let paths: Vec<&PathBuf> = match wanted.iter().map(exact).collect::<Option<Vec<_>>>() {
            Some(paths) => paths,
            None if found.len() == wanted.len() => found.iter().map(|(_, path)| path).collect(),
            None => {
                return Err(self.refuse(format!(
                    "holds {} images of prompt {index}, {:?}, where {} are needed",
                    found.len(),
                    self.plan.prompts[index].text,
                    wanted.len()
                )));
            }
        };
        let slot = |(slot, path): (Slot, &PathBuf)| {
            let whole = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            (slot, whole.display().to_string(), path.clone())
        };
        Ok(wanted.into_iter().zip(paths).map(slot).collect())
    }

    fn refuse(&self, what: String) -> Error {
        Error::bad(
            self.folder.display().to_string(),
            what,
            "Give one image per prompt, seed and number, with an images.jsonl that names the prompt of each file.",
        )
    }
}
