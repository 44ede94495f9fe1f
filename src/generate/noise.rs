//! The noise of an image: it depends on seed, prompt index and image index alone.

use std::path::Path;

use super::GeneratePlan;
use crate::Result;
use crate::adapter::{NamedTensor, Precision, write_tensors};
use crate::pipeline::Draw;
use crate::rng::{Purpose, Stream, Streams};

/// The two streams of an image: where it starts, and what the sampler adds on the way.
pub struct ImageNoise {
    initial: Stream,
    steps: Stream,
}

impl ImageNoise {
    /// The noise of the image `image_index` of the prompt `prompt_index`.
    pub fn new(streams: &Streams, prompt_index: usize, image_index: usize) -> Self {
        let stream = |purpose| streams.image(purpose, prompt_index as u64, image_index as u64);
        Self {
            initial: stream(Purpose::ImageStart),
            steps: stream(Purpose::ImageSteps),
        }
    }

    /// Fills in the numbers of a draw. Calls come in their order, so the stream of the steps simply goes on.
    pub fn fill(&mut self, draw: Draw, values: &mut [f32]) {
        match draw {
            Draw::Initial => self.initial.fill_normal(values),
            Draw::Step(_) => self.steps.fill_normal(values),
        }
    }
}

/// Writes the noise that every image of `plan` begins with as tensors `PROMPT-IMAGE` of shape (C,H,W): times the sampler's
/// initial sigma, which is 1 for many, it is what other programs call latents.
///
/// # Errors
/// The file cannot be written.
pub fn save(path: &Path, plan: &GeneratePlan, shape: [usize; 3]) -> Result<()> {
    let streams = Streams::new(plan.seed);
    let tensors = plan.images().map(|work| NamedTensor {
        name: format!("{:05}-{}", work.prompt_index, work.image_index),
        shape: shape.to_vec(),
        precision: Precision::Fp32,
        values: Box::new(move || {
            let mut values = vec![0.0; shape.iter().product()];
            ImageNoise::new(&streams, work.prompt_index, work.image_index).fill(Draw::Initial, &mut values);
            Ok(values.into())
        }),
    });
    write_tensors(path, &[("format", "pt".to_owned())], tensors.collect())
}
