//! The noise of an image: it depends on seed, prompt index and image index alone.

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
