//! What is known about an image: a line of `images.jsonl`, and the text in the PNG.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::batches::Work;
use super::plan::{GeneratePlan, Settings};
use crate::picture::Parameters;
use crate::prompts::Prompt;

/// One image of a folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Path relative to the folder of `images.jsonl`.
    pub file: String,
    /// Prompt.
    pub prompt: String,
    /// Position of the prompt in the list.
    pub prompt_index: usize,
    /// Number of the image among those of the prompt.
    pub image_index: usize,
    /// Source of the noise.
    pub seed: u64,
    /// Steps of the sampler.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f64,
    /// Sampler.
    pub sampler: String,
    /// Pipeline folder.
    pub model: String,
    /// Adapter files with their scales.
    pub adapters: Vec<String>,
    /// What the prompt file says besides: category, style, ….
    #[serde(flatten)]
    pub fields: IndexMap<String, String>,
}

/// Keys of a record that a prompt file may not take.
const OWN_KEYS: [&str; 10] = [
    "file",
    "prompt",
    "prompt_index",
    "image_index",
    "seed",
    "steps",
    "guidance",
    "sampler",
    "model",
    "adapters",
];

impl ImageRecord {
    pub(super) fn new(plan: &GeneratePlan, settings: &Settings, work: Work) -> Self {
        let prompt = &plan.prompts[work.prompt_index];
        Self {
            file: work.file(),
            prompt: prompt.text.clone(),
            prompt_index: work.prompt_index,
            image_index: work.image_index,
            seed: plan.seed,
            steps: plan.steps,
            guidance: plan.guidance.scale,
            sampler: settings.sampler.clone(),
            model: settings.model.clone(),
            adapters: settings.adapters.clone(),
            fields: fields(prompt),
        }
    }

    /// What the PNG file says of itself.
    pub(super) fn parameters(&self, settings: &Settings, (width, height): (u32, u32)) -> Parameters {
        let hash = &settings.model_hash;
        let mut pairs = vec![
            ("Steps", self.steps.to_string()),
            ("Sampler", self.sampler.clone()),
            ("CFG scale", self.guidance.to_string()),
            ("Seed", self.seed.to_string()),
            ("Size", format!("{width}x{height}")),
            ("Model hash", hash[..10.min(hash.len())].to_owned()),
            ("Model", self.model.clone()),
        ];
        if settings.guidance_rescale != 0.0 {
            pairs.push(("CFG rescale", settings.guidance_rescale.to_string()));
        }
        if settings.clip_skip > 0 {
            // Tools count the layer that is used from the end, so that 1 means none is left out.
            pairs.push(("Clip skip", (settings.clip_skip + 1).to_string()));
        }
        if !self.adapters.is_empty() {
            pairs.push(("Lora", self.adapters.join(" ")));
        }
        pairs.push(("Prompt index", self.prompt_index.to_string()));
        pairs.push(("Image index", self.image_index.to_string()));
        pairs.push(("Version", format!("ortdpo {}", settings.version)));
        Parameters {
            prompt: self.prompt.clone(),
            negative: settings.negative.clone().unwrap_or_default(),
            settings: pairs
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        }
    }
}

fn fields(prompt: &Prompt) -> IndexMap<String, String> {
    let free = |(key, value): (&String, &String)| match OWN_KEYS.contains(&key.as_str()) {
        true => (format!("prompt.{key}"), value.clone()),
        false => (key.clone(), value.clone()),
    };
    prompt.fields.iter().map(free).collect()
}
