//! Objectives on the `denoising` likelihood: small functions of per-sample errors. One file each.
//!
//! An objective knows nothing of how the reference moves or how timesteps are chosen and weighed; those rules work under
//! every objective that has a reference. Its struct holds the method's own keys, with the published values as defaults,
//! and is what the configuration's `objective:` section reads.

mod dmpo;
mod dpo;
mod dspo;
mod hinge;
mod ipo;
mod kto;
mod linear_dpo;
mod mapo;
mod paired;
mod safeguard;
mod sft;
mod smpo;

pub use dmpo::Dmpo;
pub use dpo::Dpo;
pub use dspo::{Dspo, DspoForm};
pub use hinge::Hinge;
pub use ipo::Ipo;
pub use kto::{Kto, Utility};
pub use linear_dpo::LinearDpo;
pub use mapo::Mapo;
pub use safeguard::Safeguard;
pub use sft::Sft;
pub use smpo::Smpo;

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
}

impl Needs {
    /// Pairs with a winner, and a reference.
    const PAIRS_AND_REFERENCE: Self = Self {
        pairs: true,
        reference: true,
        gap: false,
        scores: false,
        winner: false,
    };
}

/// A preference objective on the `denoising` likelihood.
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
