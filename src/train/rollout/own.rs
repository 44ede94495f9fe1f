//! Images of the initial policy, for measuring on them where there is no data set.

use super::Rollouts;
use super::chain::ImageKey;
use crate::Result;
use crate::params::ParamSet;
use crate::rng::{PairId, Streams};
use crate::train::engine::Engine;
use crate::train::source::{ReadyPair, Source, Text};

/// Images of the initial policy at most; there can be more draws of noise than images.
const MOST: usize = 32;

/// Images, each in a pair with itself.
pub struct OwnImages(Vec<ReadyPair>);

impl Rollouts<'_> {
    /// The initial policy's first image for each of the first prompts: `images` of them, or as many as there are.
    ///
    /// # Errors
    /// A network fails; [`crate::Error::Interrupted`] in the middle.
    pub fn initial_images(
        &mut self,
        engine: &mut Engine,
        initial: &ParamSet,
        images: usize,
    ) -> Result<OwnImages> {
        let prompts: Vec<usize> = self.prompts.positions().take(images.min(MOST)).collect();
        let embeddings = self.encoded(prompts.iter().copied())?;
        let keys: Vec<ImageKey> = prompts
            .into_iter()
            .map(|prompt| ImageKey { prompt, image: 0 })
            .collect();
        let mut progress = self.progress("images of the initial policy", keys.len());
        let chain = self.chain(&embeddings);
        let geometry = engine.geometry();
        let mut made = Vec::with_capacity(keys.len());
        for part in keys.chunks(chain.at_once(engine)) {
            for trajectory in chain.sample(engine, initial, part)? {
                let image = trajectory.image();
                made.push(ReadyPair {
                    id: PairId(made.len() as u64),
                    latents: [image.to_vec(), image.to_vec()],
                    size: geometry.latent_size(),
                    time_ids: [geometry.picture_ids(); 2],
                    text: Text::from(&embeddings[&trajectory.key.prompt]),
                });
            }
            progress(made.len())?;
        }
        Ok(OwnImages(made))
    }
}

impl Source for OwnImages {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn id(&self, index: usize) -> PairId {
        self.0[index].id
    }

    fn pair(&self, index: usize, _streams: &Streams) -> Result<ReadyPair> {
        Ok(self.0[index].clone())
    }
}
