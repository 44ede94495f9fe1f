//! One pair of a training step with all that is random about it. Every number comes from a stream keyed by pair and visit,
//! so neither batch size nor threads nor a resumed run change it.

use crate::diffusion::Timestep;
use crate::rng::{PairId, Purpose, Streams, Visit};
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
    /// Scaled latents of the preferred and the rejected image, (C,H,W) flat.
    pub latents: [Vec<f32>; 2],
    /// Noise, shared by both images, (C,H,W) flat.
    pub noise: Vec<f32>,
    /// Text conditioning, (L,D) flat; that of the empty prompt where the prompt was dropped.
    pub text: Vec<f32>,
}

/// Timestep and noise of a visit.
pub fn timestep_and_noise(
    streams: &Streams,
    rule: &TimestepRule,
    pair: PairId,
    visit: Visit,
    len: usize,
) -> (Timestep, Vec<f32>) {
    let timestep = rule.sample(&mut streams.pair(Purpose::Timestep, pair, visit));
    let mut noise = vec![0.0; len];
    streams.pair(Purpose::Noise, pair, visit).fill_normal(&mut noise);
    (timestep, noise)
}
