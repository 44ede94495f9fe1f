//! One pair of a training step with all that is random about it. Every number comes from a stream keyed by pair and visit,
//! so neither batch size nor threads nor a resumed run change it.

use ndarray::{ArrayViewD, Axis};

use super::source::Text;
use crate::data::PairBatch;
use crate::diffusion::Timestep;
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
    /// Scaled latents of the preferred and the rejected image, (C,H,W) flat.
    pub latents: [Vec<f32>; 2],
    /// Noise, shared by both images, (C,H,W) flat.
    pub noise: Vec<f32>,
    /// Text conditioning; that of the empty prompt where the prompt was dropped.
    pub text: Text,
}

impl DrawnPair {
    /// Adds timestep and noise to the pairs of a batch.
    pub fn from_batch(batch: &PairBatch, streams: &Streams, rule: &TimestepRule) -> Vec<Self> {
        let flat = |a: ArrayViewD<f32>| a.iter().copied().collect::<Vec<f32>>();
        let row = |i: usize| {
            let pair = &batch.pairs[i];
            let latents =
                [&batch.preferred, &batch.rejected].map(|l| flat(l.index_axis(Axis(0), i).into_dyn()));
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
                latents,
                noise,
                text: Text {
                    hidden: flat(batch.text.index_axis(Axis(0), i).into_dyn()),
                    pooled: flat(batch.pooled.index_axis(Axis(0), i).into_dyn()),
                },
            }
        };
        (0..batch.pairs.len()).map(row).collect()
    }
}
