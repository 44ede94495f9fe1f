//! One pair of a training step with all that is random about it. Every number comes from a stream keyed by pair and visit,
//! so neither batch size nor threads nor a resumed run change it.

use ndarray::{ArrayViewD, Axis};

use super::source::Text;
use crate::data::PairBatch;
use crate::diffusion::Timestep;
use crate::pipeline::TimeIds;
use crate::rng::{PairId, Purpose, Streams};
use crate::timestep::TimestepRule;

/// A pair as a step sees it.
#[derive(Debug, Clone)]
pub struct DrawnPair {
    /// Identity in the data set.
    pub id: PairId,
    /// Timestep, shared by both images.
    pub timestep: Timestep,
    /// Weight of the pair in the data.
    pub weight: f64,
    /// 1, or 0.5 for a tie that is kept with a soft label.
    pub label: f32,
    /// Score of the preferred image minus that of the rejected one, where the data set has scores.
    pub score_gap: Option<f32>,
    /// What the samples are made of.
    pub content: Content,
    /// Text conditioning; that of the empty prompt where the prompt was dropped.
    pub text: Text,
}

/// What a pair's samples are made of.
#[derive(Debug, Clone)]
pub enum Content {
    /// Images, to be noised alike.
    Images {
        /// Scaled latents of the preferred and the rejected image, (C,H,W) flat.
        latents: [Vec<f32>; 2],
        /// Noise, shared by both images, (C,H,W) flat.
        noise: Vec<f32>,
        /// Height and width of the latents.
        size: [usize; 2],
        /// Micro-conditioning of the preferred and the rejected image.
        time_ids: [TimeIds; 2],
    },
    /// Denoising steps, as they were taken.
    Steps {
        /// The preferred and the rejected step, or a single one.
        sides: Vec<StepSample>,
        /// κ of the steps.
        precision: f32,
        /// Error of the policy that took a single step.
        old_error: f32,
        /// How much better than expected a single step's image is.
        advantage: f32,
    },
}

/// A denoising step.
#[derive(Debug, Clone)]
pub struct StepSample {
    /// x_t, (C,H,W) flat.
    pub noisy: Vec<f32>,
    /// What the guided prediction would have to be for the step to be the mean, (C,H,W) flat.
    pub target: Vec<f32>,
}

impl DrawnPair {
    /// Adds timestep and noise to the pairs of a batch.
    pub fn from_batch(batch: &PairBatch, streams: &Streams, rule: &TimestepRule) -> Vec<Self> {
        let flat = |a: ArrayViewD<f32>| a.iter().copied().collect::<Vec<f32>>();
        let row = |i: usize| {
            let pair = &batch.pairs[i];
            let (_, height, width) = batch.latents[i][0].dim();
            let latents = batch.latents[i].each_ref().map(|l| flat(l.view().into_dyn()));
            let timestep = rule.sample(&mut streams.pair(Purpose::Timestep, pair.id, pair.visit));
            let mut noise = vec![0.0; latents[0].len()];
            streams
                .pair(Purpose::Noise, pair.id, pair.visit)
                .fill_normal(&mut noise);
            Self {
                id: pair.id,
                timestep,
                weight: f64::from(pair.weight),
                label: pair.label,
                score_gap: pair.score_gap,
                content: Content::Images {
                    latents,
                    noise,
                    size: [height, width],
                    time_ids: batch.time_ids[i],
                },
                text: Text {
                    hidden: flat(batch.text.index_axis(Axis(0), i).into_dyn()),
                    pooled: flat(batch.pooled.index_axis(Axis(0), i).into_dyn()),
                },
            }
        };
        (0..batch.pairs.len()).map(row).collect()
    }
}
