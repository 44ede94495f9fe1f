//! Pairs as measurements need them: by position, always with the same latents.

use crate::Result;
use crate::pipeline::{Embedding, TimeIds};
use crate::rng::{PairId, Streams};

/// A pair ready for the denoiser.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadyPair {
    /// Identity in the data set.
    pub id: PairId,
    /// Scaled latents of the preferred and the rejected image, (C,H,W) flat.
    pub latents: [Vec<f32>; 2],
    /// Height and width of the latents.
    pub size: [usize; 2],
    /// Micro-conditioning of the preferred and the rejected image.
    pub time_ids: [TimeIds; 2],
    /// Text conditioning of the prompt.
    pub text: Text,
}

/// Text conditioning of one sample.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Text {
    /// Hidden states of the text encoders, (L,D) flat.
    pub hidden: Vec<f32>,
    /// Pooled embedding (P); empty where the model has none.
    pub pooled: Vec<f32>,
}

impl From<&Embedding> for Text {
    fn from(embedding: &Embedding) -> Self {
        Self {
            hidden: embedding.hidden.iter().copied().collect(),
            pooled: embedding.pooled.iter().flatten().copied().collect(),
        }
    }
}

/// A split of encoded pairs.
pub trait Source {
    /// Number of pairs.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Identity of the pair at `index`.
    fn id(&self, index: usize) -> PairId;

    /// The pair at `index`, its latents drawn from the stream of its first visit.
    fn pair(&self, index: usize, streams: &Streams) -> Result<ReadyPair>;
}
