//! Where the pairs of a step come from: a data set, or the policy itself.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use crate::config::TrainPlan;
use crate::config::data::DataKind;
use crate::data::{Dataset, Loader, LoaderState};
use crate::objective::Needs;
use crate::params::ParamSet;
use crate::pipeline::denoiser::Geometry;
use crate::progress::Console;
use crate::rng::Streams;
use crate::train::draw::DrawnPair;
use crate::train::engine::Engine;
use crate::train::model::Model;
use crate::train::prepare::{self, Measurable};
use crate::train::report::RoundReport;
use crate::train::rollout::{Policies, RolloutState, Rollouts};
use crate::train::source::{Source, Text};
use crate::{Error, Result};

/// Hands out the pairs of each step.
pub(super) enum Feed<'a> {
    /// Those of a data set.
    Pairs { loader: Loader<'a>, streams: Streams },
    /// Those that the policy makes as it learns.
    Rollouts(Box<Rollouts<'a>>),
}

/// Where a feed stands, and what a checkpoint keeps of its images.
pub(super) type Standing = (LoaderState, Option<(RolloutState, ParamSet)>);

impl<'a> Feed<'a> {
    /// The feed that the objective of `plan` needs. Objectives on pairs have a `train` set.
    ///
    /// # Errors
    /// As [`Rollouts::prepare`].
    pub(super) fn prepare(
        plan: &'a TrainPlan,
        model: &'a Model,
        needs: Needs,
        train: Option<&'a Dataset>,
        shown: (Console, &'a AtomicBool),
    ) -> Result<Self> {
        let streams = Streams::new(plan.seed);
        match train.filter(|_| !needs.experience.is_online()) {
            Some(train) => {
                let loader = Loader::new(train, streams, plan.data.ties, plan.data.prompt_dropout);
                let loader = match plan.data.kind {
                    DataKind::Rated => loader.of_single_images(),
                    _ => loader,
                };
                let loader = loader.in_parts(plan.train.pairs_per_part());
                Ok(Self::Pairs { loader, streams })
            }
            None => {
                let captions = || train.map_or_else(Vec::new, Dataset::captions);
                let rollouts = Rollouts::prepare(plan, model, needs, captions, shown)?;
                Ok(Self::Rollouts(Box::new(rollouts)))
            }
        }
    }

    /// Shapes of one sample.
    ///
    /// # Errors
    /// The model cannot make images of the size that is asked for.
    pub(super) fn geometry(&self, model: &Model, resolution: u32) -> Result<Geometry> {
        match self {
            Self::Pairs { loader, .. } => Ok(prepare::geometry_of(loader.dataset())),
            Self::Rollouts(rollouts) => rollouts.geometry(model, resolution),
        }
    }

    /// Heights and widths of latents that steps are taken on, beside that of `sample`.
    pub(super) fn other_sizes(&self, sample: Geometry, heldout: Option<&Dataset>) -> Vec<[usize; 2]> {
        let Self::Pairs { loader, .. } = self else {
            return Vec::new();
        };
        let sets = [Some(loader.dataset()), heldout].into_iter().flatten();
        let sizes: BTreeSet<[usize; 2]> = sets.flat_map(|set| set.latent_sizes().into_keys()).collect();
        sizes
            .into_iter()
            .filter(|size| *size != sample.latent_size())
            .collect()
    }

    /// Adds the value network, where the objective uses one.
    ///
    /// # Errors
    /// ONNX Runtime does not load it.
    pub(super) fn with_value(self, plan: &TrainPlan, engine: &Engine) -> Result<Self> {
        match self {
            Self::Pairs { .. } => Ok(self),
            Self::Rollouts(rollouts) => Ok(Self::Rollouts(Box::new(rollouts.with_value(plan, engine)?))),
        }
    }

    /// Hash of what determines the pairs besides configuration, model and data set, in hexadecimal digits.
    ///
    /// # Errors
    /// As [`Rollouts::hash`].
    pub(super) fn hash(&self) -> Result<String> {
        match self {
            Self::Pairs { .. } => Ok(String::new()),
            Self::Rollouts(rollouts) => rollouts.hash(),
        }
    }

    /// Conditioning of what guidance leads away from, where images are made.
    pub(super) fn negative(&self) -> Option<Text> {
        match self {
            Self::Pairs { .. } => None,
            Self::Rollouts(rollouts) => Some(rollouts.negative()),
        }
    }

    /// The next `pairs` pairs with all their random numbers.
    ///
    /// # Errors
    /// A pair cannot be read, or as [`Rollouts::next_batch`].
    pub(super) fn next_batch(&mut self, run: Policies<'_>, pairs: usize) -> Result<Vec<DrawnPair>> {
        match self {
            Self::Pairs { loader, streams } => {
                let batch = loader.next_batch(pairs)?;
                Ok(DrawnPair::from_batch(&batch, streams, &run.state.timestep_rule))
            }
            Self::Rollouts(rollouts) => rollouts.next_batch(run, pairs),
        }
    }

    /// What [`Feed::next_batch`] will give.
    ///
    /// # Errors
    /// As [`Feed::next_batch`].
    pub(super) fn peek(&mut self, run: Policies<'_>, pairs: usize) -> Result<Vec<DrawnPair>> {
        let before = match self {
            Self::Pairs { loader, .. } => loader.state(),
            Self::Rollouts(rollouts) => return rollouts.peek(run, pairs),
        };
        let batch = self.next_batch(run, pairs)?;
        if let Self::Pairs { loader, .. } = self {
            loader.resume(before)?;
        }
        Ok(batch)
    }

    /// The report of a round of images that was made since the last call.
    pub(super) fn take_report(&mut self) -> Option<RoundReport> {
        match self {
            Self::Pairs { .. } => None,
            Self::Rollouts(rollouts) => rollouts.take_report(),
        }
    }

    /// What drift is measured on: the training pairs, or without any `images` images of the initial policy.
    ///
    /// # Errors
    /// As [`Rollouts::initial_images`].
    pub(super) fn probe_source<'s>(
        &'s mut self,
        train: Option<&'s Dataset>,
        (engine, initial): (&mut Engine, &ParamSet),
        images: usize,
    ) -> Result<Box<dyn Source + 's>> {
        match (train, self) {
            (Some(train), _) => Ok(Box::new(Measurable(train))),
            (None, Self::Pairs { loader, .. }) => Ok(Box::new(Measurable(loader.dataset()))),
            (None, Self::Rollouts(rollouts)) => {
                Ok(Box::new(rollouts.initial_images(engine, initial, images)?))
            }
        }
    }

    /// Where it stands, for a checkpoint.
    ///
    /// # Errors
    /// As [`Rollouts::save`].
    pub(super) fn standing(&self, engine: &Engine) -> Result<Standing> {
        match self {
            Self::Pairs { loader, .. } => Ok((loader.state(), None)),
            Self::Rollouts(rollouts) => Ok((LoaderState::default(), Some(rollouts.save(engine)?))),
        }
    }

    /// Goes on from a checkpoint.
    ///
    /// # Errors
    /// It is of another data set, or of a run with another kind of feed.
    pub(super) fn restore(&mut self, (at, images): Standing) -> Result<()> {
        match (self, images) {
            (Self::Pairs { loader, .. }, _) => loader.resume(at),
            (Self::Rollouts(rollouts), Some((state, tensors))) => rollouts.restore(state, &tensors),
            (Self::Rollouts(_), None) => Err(Error::bad(
                "checkpoint",
                "holds no rollouts",
                "Resume with the objective that the run was started with.",
            )),
        }
    }
}
