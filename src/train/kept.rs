//! The inventory: which sets of numbers as large as what is trained a run keeps, and where.
//!
//! The forecast reads it, and [`OnDevice`](super::on_device) asks it what to make, so that both know of the same. A test holds
//! the host's part to what [`State`](super::state::State) has after a step.
//!
//! | set | who has it |
//! |---|---|
//! | policy, initial policy, average, reference, moments | `state::State`, or `on_device::OnDevice` |
//! | gradient, the anchor's gradient | outputs of the engine's sessions |
//! | sums of gradients, candidate | `step::Stepper` |
//!
//! Sets that are equal share memory: a reference that never moves is the initial policy. What is made of zeros and never written
//! to takes no memory, and is not listed.

use std::sync::Arc;

use serde::Serialize;

use crate::Result;
use crate::config::Config;
use crate::config::optimizer::OptimizerKind;
use crate::config::reference::{AnchorConfig, StorageConfig};
use crate::optim::Optimizer;
use crate::params::Layout;
use crate::reference::ReferenceRule;

/// A set of trained numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Set {
    /// θ.
    Policy,
    /// θ0.
    Initial,
    /// The reference, where it moves.
    Reference,
    /// What the reference differs from θ0, in half the size: pages of a file.
    ReferenceFile,
    /// The reference as it is read from its file for its own run. The C library keeps so small a block afterwards; a larger one is given
    /// back before the step, where memory is at its peak.
    ReferenceRead,
    /// The optimizer's first moments, or means of rows.
    FirstMoments,
    /// The optimizer's second moments, or means of columns.
    SecondMoments,
    /// What a step's session writes.
    Gradient,
    /// The sum over the parts of a batch.
    GradientSum,
    /// What the `kl` anchor's session writes.
    AnchorGradient,
    /// Its sum.
    AnchorSum,
    /// The reference as the next update makes it; or a gradient on its way to an optimizer on the host.
    Candidate,
    /// Moving average of the policy.
    Average,
}

impl Set {
    const ALL: [Self; 13] = [
        Self::Policy,
        Self::Initial,
        Self::Reference,
        Self::ReferenceFile,
        Self::ReferenceRead,
        Self::FirstMoments,
        Self::SecondMoments,
        Self::Gradient,
        Self::GradientSum,
        Self::AnchorGradient,
        Self::AnchorSum,
        Self::Candidate,
        Self::Average,
    ];
}

/// Blocks up to this size, in bytes, stay with the process when they are freed (glibc's largest `M_MMAP_THRESHOLD`).
const KEPT_BY_LIBC: usize = 32 << 20;

/// A set with its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KeptSet {
    /// Which.
    pub set: Set,
    /// Its bytes.
    pub bytes: u64,
}

/// What a configuration says of the sets.
#[derive(Debug, Clone)]
pub struct Inventory<'a> {
    config: &'a Config,
    rule: ReferenceRule,
    needs_reference: bool,
}

impl<'a> Inventory<'a> {
    /// Of a run whose objective needs a reference or not.
    ///
    /// # Errors
    /// The reference rule's settings do not fit together.
    pub fn of(config: &'a Config, needs_reference: bool) -> Result<Self> {
        Ok(Self {
            config,
            rule: ReferenceRule::new(&config.reference)?,
            needs_reference,
        })
    }

    fn reference_moves(&self) -> bool {
        self.needs_reference && self.rule.moves()
    }

    /// Whether a reference that moves is kept in a file.
    pub fn reference_in_file(&self) -> bool {
        self.reference_moves() && self.config.reference.storage == StorageConfig::Bf16
    }

    fn has_kl(&self) -> bool {
        self.reference_moves() && self.rule.kl().is_some()
    }

    fn has_gate(&self) -> bool {
        self.reference_moves() && matches!(self.config.reference.anchor, AnchorConfig::Gate { .. })
    }

    /// Whether the host keeps `set`, with the optimizer on the device or not.
    pub fn on_host(&self, set: Set, optimizer_on_device: bool) -> bool {
        let adafactor = self.config.optimizer.kind == OptimizerKind::Adafactor;
        match set {
            Set::Policy | Set::Initial | Set::FirstMoments | Set::SecondMoments => true,
            Set::Reference => self.reference_moves() && !self.reference_in_file(),
            Set::ReferenceFile | Set::ReferenceRead => self.reference_in_file(),
            Set::Gradient | Set::GradientSum => !optimizer_on_device,
            Set::AnchorGradient | Set::AnchorSum => self.has_kl(),
            Set::Candidate => self.has_kl() || self.has_gate() || optimizer_on_device && adafactor,
            Set::Average => self.config.train.policy_ema.is_some(),
        }
    }

    /// Whether the device keeps `set` where the optimizer works there.
    pub fn on_device(&self, set: Set) -> bool {
        match set {
            Set::Policy | Set::Gradient => true,
            Set::Initial => self.needs_reference && self.rule.pulls(),
            Set::Reference => self.needs_reference,
            Set::FirstMoments | Set::SecondMoments => self.config.optimizer.kind == OptimizerKind::Adamw,
            Set::GradientSum => self.config.train.accumulate > 1,
            Set::Average => self.config.train.policy_ema.is_some(),
            Set::ReferenceFile
            | Set::ReferenceRead
            | Set::AnchorGradient
            | Set::AnchorSum
            | Set::Candidate => false,
        }
    }

    /// What the host keeps of parameters of `layout`.
    pub fn host_sets(&self, layout: &Arc<Layout>, optimizer_on_device: bool) -> Vec<KeptSet> {
        self.sized(layout, |set| self.on_host(set, optimizer_on_device))
    }

    /// What the device keeps of them. Where the optimizer is on the host, the weights of a run and its gradients are there while it
    /// lasts.
    pub fn device_sets(&self, layout: &Arc<Layout>, optimizer_on_device: bool) -> Vec<KeptSet> {
        self.sized(layout, |set| match optimizer_on_device {
            true => self.on_device(set),
            false => matches!(set, Set::Policy | Set::Gradient),
        })
    }

    fn sized(&self, layout: &Arc<Layout>, is_kept: impl Fn(Set) -> bool) -> Vec<KeptSet> {
        let [first, second] = Optimizer::moment_lens(self.config.optimizer.kind, layout);
        let bytes = |set| match set {
            Set::FirstMoments => 4 * first,
            Set::SecondMoments => 4 * second,
            Set::ReferenceFile => 2 * layout.len(),
            Set::ReferenceRead if 4 * layout.len() > KEPT_BY_LIBC => 0,
            _ => 4 * layout.len(),
        };
        let kept = Set::ALL.into_iter().filter(|set| is_kept(*set));
        let sized = kept.map(|set| KeptSet {
            set,
            bytes: bytes(set) as u64,
        });
        sized.filter(|kept| kept.bytes > 0).collect()
    }
}

/// Bytes of all of them.
pub fn bytes(sets: &[KeptSet]) -> u64 {
    sets.iter().map(|kept| kept.bytes).sum()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Sources, TrainPlan};
    use crate::optim::{Follow, Gradient, Term};
    use crate::params::ParamSet;
    use crate::reference::{Action, ReferenceWeights};
    use crate::train::model::Model;
    use crate::train::state::State;

    fn plan(set: &[&str]) -> TrainPlan {
        let fixed = ["model=unused", "data.path=unused"];
        let set = fixed.iter().chain(set).map(|s| (*s).to_owned()).collect();
        TrainPlan::resolve(&Sources {
            set,
            ..Sources::default()
        })
        .unwrap()
    }

    /// Bytes of what the state of a run holds after its first step.
    fn held(plan: &TrainPlan, layout: &Arc<Layout>) -> u64 {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/optimum-sd");
        let mut state = State::new(plan, &Model::open(&folder).unwrap(), ParamSet::zeros(layout)).unwrap();
        let gradient = ParamSet::zeros(layout);
        let gradient = Gradient::of(Term::from_set(&gradient, 1.0));
        let ReferenceWeights::Resident(reference) = &mut state.reference else {
            panic!("it begins in memory");
        };
        let follow = match state.reference_rule.action(1) {
            Action::Move(blend) => Some(Follow {
                reference,
                initial: &state.initial,
                blend,
            }),
            _ => None,
        };
        state
            .optimizer
            .step(&mut state.policy, &gradient, 1.0, 0.1, follow);
        if let Some(average) = &mut state.average {
            average.follow(&state.policy, 1);
        }
        let ReferenceWeights::Resident(reference) = &state.reference else {
            panic!("it stays in memory");
        };
        let (first, second) = state.optimizer.moments();
        let average = state.average.as_ref().map(|a| &a.weights);
        let mut found: Vec<&ParamSet> = Vec::new();
        for set in [&state.policy, &state.initial, reference, first, second]
            .into_iter()
            .chain(average)
        {
            if !found.iter().any(|other| other.shares_memory_with(set)) {
                found.push(set);
            }
        }
        found.iter().map(|set| 4 * set.values().len() as u64).sum()
    }

    #[test]
    fn the_state_holds_what_the_inventory_lists() {
        let layout = Layout::new([("a".to_owned(), vec![40, 30]), ("b".to_owned(), vec![7])]).unwrap();
        for set in [
            &[][..],
            &["optimizer.kind=adafactor"],
            &["reference={update: ema}"],
            &[
                "reference={update: ema, anchor: {kind: pull}}",
                "train.policy_ema=0.9",
            ],
            &[
                "optimizer.kind=adafactor",
                "reference={update: ema, anchor: {kind: kl}}",
            ],
        ] {
            let plan = plan(set);
            let sets = Inventory::of(&plan, true).unwrap().host_sets(&layout, false);
            let in_state: Vec<KeptSet> = sets
                .into_iter()
                .filter(|kept| {
                    !matches!(
                        kept.set,
                        Set::Gradient
                            | Set::GradientSum
                            | Set::AnchorGradient
                            | Set::AnchorSum
                            | Set::Candidate
                    )
                })
                .collect();
            assert_eq!(bytes(&in_state), held(&plan, &layout), "{set:?}: {in_state:?}");
        }
    }

    #[test]
    fn each_part_of_a_configuration_brings_its_sets() {
        let layout = Layout::new([("a".to_owned(), vec![10, 10])]).unwrap();
        let sets = |set: &[&str], on_device: bool| {
            let plan = plan(set);
            let inventory = Inventory::of(&plan, true).unwrap();
            let host = bytes(&inventory.host_sets(&layout, on_device));
            [host, bytes(&inventory.device_sets(&layout, on_device))].map(|n| n as f64 / 400.0)
        };
        // θ, θ0, two moments, gradient and its sum.
        assert_eq!(sets(&[], false), [6.0, 2.0]);
        assert_eq!(sets(&["optimizer.kind=adafactor"], false), [4.2, 2.0]);
        let kl = "reference={update: ema, anchor: {kind: kl}}";
        assert_eq!(sets(&[kl], false), [10.0, 2.0]);
        assert_eq!(
            sets(&["reference={update: ema, storage: bf16}"], false),
            [7.5, 2.0]
        );
        let gate = "reference={update: copy, anchor: {kind: gate}}";
        assert_eq!(sets(&[gate, "train.policy_ema=0.9"], false), [9.0, 2.0]);
        // θ, gradient, moments, reference.
        assert_eq!(sets(&[], true), [4.0, 5.0]);
        let adafactor = ["optimizer.kind=adafactor", "train.accumulate=2"];
        assert_eq!(sets(&adafactor, true), [3.2, 4.0]);
    }
}
