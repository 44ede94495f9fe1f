//! What images are worth: latents decoded and rated by a reward model.

use image::RgbImage;
use ndarray::ArrayView4;

use crate::model_folder::ModelFolder;
use crate::pipeline::{VaeDecoder, VaePrecision};
use crate::reward::RewardModel;
use crate::runtime::SessionOptions;
use crate::{Error, Result};

/// A decoder and a reward model, both loaded.
pub struct Rater {
    vae: VaeDecoder,
    reward: RewardModel,
}

impl Rater {
    /// Loads both.
    ///
    /// # Errors
    /// The pipeline has no usable decoder, or the reward model cannot be found or used.
    pub fn load(
        model: &ModelFolder,
        reward: &str,
        session: &SessionOptions,
        vae: VaePrecision,
    ) -> Result<Self> {
        Ok(Self {
            vae: VaeDecoder::load(model, session, vae)?,
            reward: RewardModel::open(reward, session)?,
        })
    }

    /// Hash of what determines the ratings, apart from the pipeline.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn hash(&self) -> Result<String> {
        Ok(self.reward.hash()?.to_string())
    }

    /// A reward for each of `latents` (C,H,W flat, of `shape`), as an image of the prompt beside it.
    ///
    /// # Errors
    /// A network fails, or a reward is not a number.
    pub fn rate(&mut self, latents: &[&[f32]], prompts: &[&str], shape: [usize; 3]) -> Result<Vec<f64>> {
        let [c, h, w] = shape;
        let flat: Vec<f32> = latents.iter().flat_map(|latent| latent.iter().copied()).collect();
        let batch = ArrayView4::from_shape((latents.len(), c, h, w), &flat)
            .expect("latents have the shape that the model has");
        let images: Vec<RgbImage> = self.vae.decode(batch)?;
        let rewards = self.reward.score(&images, prompts)?;
        match rewards.iter().position(|reward| !reward.is_finite()) {
            None => Ok(rewards),
            Some(index) => Err(Error::bad(
                format!("reward {}", self.reward.manifest().name),
                format!("gives {} to an image of {:?}", rewards[index], prompts[index]),
                "Use another reward model, or mend this one.",
            )),
        }
    }
}
