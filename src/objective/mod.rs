//! Objectives: small functions of per-sample errors. One file each.
//!
//! Those on data sets and on generated images use the `denoising` likelihood, log p = −e. Those on denoising trajectories
//! use that of a step, log p = −κ·e + c ([`gaussian`](crate::diffusion::sampler::gaussian)): an error, too, with another
//! target, and with a precision κ.
//!
//! An objective knows nothing of how the reference moves or how timesteps are chosen and weighed; those rules work under
//! every objective that has a reference. Its struct holds the method's own keys, with the published values as defaults,
//! and is what the configuration's `objective:` section reads.

mod d3po;
mod ddpo;
mod dmpo;
mod dpo;
mod dpok;
mod dspo;
mod hinge;
mod ipo;
mod kto;
mod linear_dpo;
mod mapo;
mod online_dpo;
mod paired;
mod safeguard;
mod sft;
mod smpo;
mod spo;
mod steps;

pub use d3po::D3po;
pub use ddpo::Ddpo;
pub use dmpo::Dmpo;
pub use dpo::Dpo;
pub use dpok::Dpok;
pub use dspo::{Dspo, DspoForm};
pub use hinge::Hinge;
pub use ipo::Ipo;
pub use kto::{Kto, Utility};
pub use linear_dpo::LinearDpo;
pub use mapo::Mapo;
pub use online_dpo::OnlineDpo;
pub use safeguard::Safeguard;
pub use sft::Sft;
pub use smpo::Smpo;
pub use spo::Spo;

use crate::onnx::{Graph, ValueId};
use crate::{Error, Result};

/// What an objective sees of one run of the step graph, as values of that graph. `P` is the number of pairs.
#[derive(Debug, Clone, Copy)]
pub struct Likelihoods {
    /// Errors of the policy on the preferred samples, `[P]`.
    pub e_w: ValueId,
    /// Errors of the policy on the rejected samples, `[P]`; absent for objectives without pairs.
    pub e_l: Option<ValueId>,
    /// Errors of the reference on the preferred samples, `[P]`.
    pub ref_w: Option<ValueId>,
    /// Errors of the reference on the rejected samples, `[P]`.
    pub ref_l: Option<ValueId>,
    /// How far the policy's predictions are from the reference's; for objectives that need it.
    pub gap: Option<Gap>,
    /// `mean over C,H,W of r_w·r_l` with `r = prediction − target`, `[P]`; for the safeguard.
    pub cross: Option<ValueId>,
    /// Score of the preferred sample minus that of the rejected one, `[P]`; for objectives that need it.
    pub score_gap: Option<ValueId>,
    /// Reward scale λ(t) of each pair, `[P]`.
    pub reward_scale: ValueId,
    /// How surely the preferred sample is preferred, `[P]`: 1, or 0.5 for a tie that is kept. Without pairs: 1 for a
    /// desirable sample, 0 for an undesirable one.
    pub label: ValueId,
    /// What is known about the samples as steps of trajectories, where they are some.
    pub trajectory: Option<Trajectory>,
}

/// Samples that are denoising steps: `x_t` is the sample, and the target what the network would have to predict for the step
/// that was taken to be the mean.
#[derive(Debug, Clone, Copy)]
pub struct Trajectory {
    /// κ, by which errors become log-probabilities, `[P]`; both samples of a pair are at one timestep.
    pub precision: ValueId,
    /// For objectives on single steps that weigh them by how well their image came out.
    pub sampled: Option<Sampled>,
}

/// A step as it was when it was taken, and what came of it.
#[derive(Debug, Clone, Copy)]
pub struct Sampled {
    /// Errors of the policy that took the step, `[P]`.
    pub errors: ValueId,
    /// How much better than expected the image is, `[P]`.
    pub advantage: ValueId,
}

/// Policy and reference compared on the preferred samples.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    /// `mean over C,H,W of (prediction_θ − prediction_ref)²`, `[P]`.
    pub square: ValueId,
    /// `mean over C,H,W of (prediction_θ − target)·(prediction_θ − prediction_ref)`, `[P]`.
    pub inner: ValueId,
}

/// What an objective gives back.
#[derive(Debug, Clone, Copy)]
pub struct Losses {
    /// Loss per pair (or sample), before weights, `[P]`.
    pub loss: ValueId,
    /// The reward signal whose variance the timestep rule tracks, `[P]`, or `[2P]` with one value a sample; `None`
    /// without a reference.
    pub reward_signal: Option<ValueId>,
}

/// What an objective has to be given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Samples in pairs.
    pub pairs: bool,
    /// A reference model.
    pub reference: bool,
    /// [`Likelihoods::gap`].
    pub gap: bool,
    /// [`Likelihoods::score_gap`].
    pub scores: bool,
    /// Labels without doubt: the loss has no form for a tie that is kept as half preferred.
    pub winner: bool,
    /// Where the samples come from.
    pub experience: Experience,
}

/// Where an objective's samples come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Experience {
    /// The pairs of a data set.
    #[default]
    Dataset,
    /// Images that the policy makes as it learns, in pairs by their rewards, noised as those of a data set are.
    Images,
    /// Pairs of denoising steps from images of one prompt, by the rewards of the images.
    TrajectoryPairs,
    /// Single denoising steps, with the advantage of their image.
    Trajectories(Baseline),
    /// Pairs of denoising steps from the same noisy image, by the rewards of what they lead to.
    Candidates(Candidates),
}

/// What a reward has to exceed for its advantage to be positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    /// The rewards of other images; advantages are in standard deviations.
    Rewards,
    /// What a value network expects at the step.
    Value,
}

/// Steps that are tried from one noisy image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidates {
    /// Steps tried each time.
    pub number: usize,
    /// Steps of the trajectory, from the noisiest on, that are taken without trying.
    pub skip: usize,
}

impl Experience {
    /// Whether samples are made as the policy learns.
    pub fn is_online(self) -> bool {
        self != Self::Dataset
    }

    /// Whether samples are denoising steps, whose likelihood has the guidance inside.
    pub fn is_steps(self) -> bool {
        !matches!(self, Self::Dataset | Self::Images)
    }
}

impl Needs {
    /// Pairs with a winner, and a reference.
    const PAIRS_AND_REFERENCE: Self = Self {
        pairs: true,
        reference: true,
        gap: false,
        scores: false,
        winner: false,
        experience: Experience::Dataset,
    };

    /// Samples in a batch of `pairs` pairs, or of as many samples without pairs.
    pub fn samples(&self, pairs: usize) -> usize {
        if self.pairs { 2 * pairs } else { pairs }
    }
}

/// A preference objective.
pub trait Objective: Send + Sync + std::fmt::Debug {
    /// What it has to be given.
    fn needs(&self) -> Needs;

    /// Checks every value; errors name the configuration key.
    fn check(&self) -> Result<()>;

    /// The method's β in its own convention, where it has one.
    fn beta(&self) -> Option<f64> {
        None
    }

    /// Coefficient of the margin `m` in the reward signal, with λ(t) = 1; logged as `beta_effective`.
    fn beta_effective(&self) -> Option<f64> {
        None
    }

    /// Whether the loss is −log σ of the reward signal, so that σ(−u) is the share of the gradient that is left.
    fn is_logistic(&self) -> bool {
        false
    }

    /// The guard of the preferred sample, where it is switched on.
    fn safeguard(&self) -> Option<Safeguard> {
        None
    }

    /// Quantities `[P]` whose means over the whole optimizer batch the loss uses as constants.
    fn batch_quantities(&self, _graph: &mut Graph, _likelihoods: &Likelihoods) -> Result<Vec<ValueId>> {
        Ok(Vec::new())
    }

    /// Adds the loss to the graph. `means` are those of [`Objective::batch_quantities`], `[1]` each; no gradient flows
    /// through them.
    fn build(&self, graph: &mut Graph, likelihoods: &Likelihoods, means: &[ValueId]) -> Result<Losses>;
}

/// An error at the key `place` unless the condition holds.
fn require(holds: bool, place: &str, what: impl Into<String>, remedy: &str) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(Error::bad(place, what, remedy)),
    }
}

fn require_positive(value: f64, key: &str, usual: &str) -> Result<()> {
    let what = format!("is {value}");
    require(
        value > 0.0 && value.is_finite(),
        &format!("objective.{key}"),
        what,
        &format!("Give a positive number; {usual}."),
    )
}

/// Something the step graph promises to every objective that says it needs it.
fn promised<T>(value: Option<T>, what: &str) -> T {
    value.unwrap_or_else(|| panic!("the step graph gives {what} to objectives that need it"))
}
