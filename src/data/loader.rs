//! Batches of pairs in a shuffled order that depends on the seed alone; see [`super::order`].
//!
//! A batch goes on into the next epoch where one ends. What a visit draws (view, latents, prompt dropout, winner of a tie)
//! comes from the pair's own streams, so that neither batch size nor resuming changes it.

use ndarray::{Array2, Array3, ArrayViewMut1, ArrayViewMut2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::dataset::Dataset;
use super::order::{Order, Turn};
use super::pair::Preference;
use crate::config::data::Ties;
use crate::pipeline::TimeIds;
use crate::rng::{PairId, Purpose, Streams, Visit};
use crate::{Error, Result};

/// Where a loader stands; all that a checkpoint has to keep of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoaderState {
    /// Epochs completed.
    pub epoch: u64,
    /// Pairs of the present epoch that were handed out.
    pub cursor: u64,
}

/// A pair in a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchPair {
    /// Which pair.
    pub id: PairId,
    /// Its index in the data set.
    pub index: usize,
    /// Which visit: the key of its noise and timestep streams.
    pub visit: Visit,
    /// Probability that the image called preferred is the better one: 1, or 0.5 for a tie under `ties: soft`. Of a single
    /// image: 1 if people liked it, else 0.
    pub label: f32,
    /// Score of the image called preferred minus that of the other one, where the data set has scores.
    pub score_gap: Option<f32>,
    /// Weight of the pair's loss: 1, or 0.5 for a tie under `ties: half`.
    pub weight: f32,
    /// Whether the caption was replaced by the empty one.
    pub prompt_dropped: bool,
}

/// Pairs with all that a step needs of them, B pairs in one order throughout.
#[derive(Debug, Clone, PartialEq)]
pub struct PairBatch {
    /// The pairs.
    pub pairs: Vec<BatchPair>,
    /// Scaled latents (C,H,W) of the preferred and the rejected image.
    pub latents: Vec<[Array3<f32>; 2]>,
    /// Micro-conditioning of the preferred and the rejected image.
    pub time_ids: Vec<[TimeIds; 2]>,
    /// Text embeddings, shared by both images of a pair; (B,L,D).
    pub text: Array3<f32>,
    /// Pooled text embeddings; (B,P), P being 0 where the model has none.
    pub pooled: Array2<f32>,
}

/// Hands out batches without end.
#[derive(Debug)]
pub struct Loader<'a> {
    dataset: &'a Dataset,
    streams: Streams,
    ties: Ties,
    prompt_dropout: f64,
    single: bool,
    state: LoaderState,
    order: Order,
    /// The present epoch.
    turns: Vec<Turn>,
}

impl<'a> Loader<'a> {
    /// A loader at the start of the first epoch.
    pub fn new(dataset: &'a Dataset, streams: Streams, ties: Ties, prompt_dropout: f64) -> Self {
        let order = Order::new(dataset, streams, 1);
        Self {
            turns: order.epoch(0),
            dataset,
            streams,
            ties,
            prompt_dropout,
            single: false,
            state: LoaderState::default(),
            order,
        }
    }

    /// For batches whose number of pairs is a multiple of `part`, of which each part has images of one size.
    pub fn in_parts(self, part: usize) -> Self {
        let order = Order::new(self.dataset, self.streams, part);
        Self {
            turns: order.epoch(self.state.epoch),
            order,
            ..self
        }
    }

    /// For a data set of single images, each of which is in a pair with itself.
    pub fn of_single_images(self) -> Self {
        Self { single: true, ..self }
    }

    /// What it hands out.
    pub fn dataset(&self) -> &'a Dataset {
        self.dataset
    }

    /// Where the loader stands.
    pub fn state(&self) -> LoaderState {
        self.state
    }

    /// Goes on where another loader over the same data stood.
    ///
    /// # Errors
    /// The state is that of a larger data set.
    pub fn resume(&mut self, state: LoaderState) -> Result<()> {
        let turns = self.order.epoch(state.epoch);
        let pairs = turns.len() as u64;
        if state.cursor > pairs {
            let what = format!(
                "stands at pair {} of an epoch, but the data has {pairs}",
                state.cursor
            );
            return Err(Error::bad(
                "checkpoint",
                what,
                "Resume with the data that the run was started with.",
            ));
        }
        self.state = state;
        self.turns = turns;
        Ok(())
    }

    /// Whether a tie's second image counts as preferred at this visit.
    fn tie_is_reversed(&self, id: PairId, visit: Visit) -> bool {
        self.streams.pair(Purpose::Tie, id, visit).chance(0.5)
    }

    fn next_pair(&mut self) -> BatchPair {
        while self.state.cursor >= self.turns.len() as u64 {
            self.state = LoaderState {
                epoch: self.state.epoch + 1,
                cursor: 0,
            };
            self.turns = self.order.epoch(self.state.epoch);
        }
        let (index, visit) = self.turns[self.state.cursor as usize];
        self.state.cursor += 1;
        let index = index as usize;
        let pair = &self.dataset.pairs()[index];
        let id = pair.id;
        let (label, weight) = match (pair.preference, self.ties) {
            (Preference::Second, _) if self.single => (0.0, 1.0),
            (Preference::Tie, Ties::Soft) => (0.5, 1.0),
            (Preference::Tie, Ties::Half) => (1.0, 0.5),
            _ => (1.0, 1.0),
        };
        let second_is_preferred = match pair.preference {
            Preference::First => false,
            Preference::Second => true,
            Preference::Tie => self.tie_is_reversed(id, visit),
        };
        let score_gap = pair.scores.map(|[first, second]| match second_is_preferred {
            true => second - first,
            false => first - second,
        });
        let prompt_dropped = self
            .streams
            .pair(Purpose::PromptDropout, id, visit)
            .chance(self.prompt_dropout);
        BatchPair {
            id,
            index,
            visit,
            label,
            score_gap,
            weight,
            prompt_dropped,
        }
    }

    /// The next `pairs` pairs.
    ///
    /// # Errors
    /// The cache was damaged since it was opened.
    pub fn next_batch(&mut self, pairs: usize) -> Result<PairBatch> {
        let pairs: Vec<BatchPair> = (0..pairs).map(|_| self.next_pair()).collect();
        let [length, size] = self.dataset.text_shape();
        let mut text = Array3::zeros((pairs.len(), length, size));
        let mut pooled = Array2::zeros((pairs.len(), self.dataset.pooled_len()));
        let slots: Vec<_> = text
            .axis_iter_mut(Axis(0))
            .zip(pooled.axis_iter_mut(Axis(0)))
            .zip(&pairs)
            .collect();
        let images: Vec<([Array3<f32>; 2], [TimeIds; 2])> = slots
            .into_par_iter()
            .map(|(text, pair)| {
                self.load_text(pair, text)?;
                self.load_images(pair)
            })
            .collect::<Result<_>>()?;
        let (latents, time_ids) = images.into_iter().unzip();
        Ok(PairBatch {
            pairs,
            latents,
            time_ids,
            text,
            pooled,
        })
    }

    fn load_images(&self, pair: &BatchPair) -> Result<([Array3<f32>; 2], [TimeIds; 2])> {
        let options = self.dataset.options();
        let drawn = options
            .views
            .draw(&self.streams, pair.id, pair.visit, options.independent_views);
        let mut moments = self.dataset.moments_of(pair.index, drawn)?;
        let mut time_ids = self.dataset.time_ids_of(pair.index, drawn);
        let tie = self.dataset.pairs()[pair.index].preference == Preference::Tie;
        if tie && self.tie_is_reversed(pair.id, pair.visit) {
            moments.reverse();
            time_ids.reverse();
        }
        let mut stream = self.streams.pair(Purpose::Latent, pair.id, pair.visit);
        let latents = moments.map(|m| m.sample(self.dataset.scaling(), &mut stream));
        Ok((latents, time_ids))
    }

    fn load_text(
        &self,
        pair: &BatchPair,
        (mut text, mut pooled): (ArrayViewMut2<f32>, ArrayViewMut1<f32>),
    ) -> Result<()> {
        let caption = if pair.prompt_dropped {
            ""
        } else {
            self.dataset.caption(pair.index)
        };
        let embedding = self.dataset.embedding(caption)?;
        text.assign(&embedding.hidden);
        if let Some(own) = &embedding.pooled {
            pooled.assign(own);
        }
        Ok(())
    }
}
