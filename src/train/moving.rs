//! What moves in a run, wherever it is: gradients are summed, and optimizer, reference and average take their step, in the host's
//! memory or on the device.

use super::engine::{Engine, ReferenceValues, Samples, Weights};
use super::on_device::OnDevice;
use super::state::State;
use crate::Result;
use crate::config::Config;
use crate::device::DeviceSet;
use crate::optim::{Follow, Gradient, GradientNorms, GradientSum, Term};
use crate::params::{Layout, ParamSet};
use crate::reference::{Action, ReferenceWeights};

/// See the module's text.
pub enum Moving {
    /// In the host's memory.
    Host(OnHost),
    /// On the device.
    Device(Box<OnDevice>),
}

/// Sums of gradients; what moves is the state itself.
pub struct OnHost {
    sum: GradientSum,
    anchor: GradientSum,
}

impl Moving {
    /// Where `engine` leaves its gradients.
    ///
    /// # Errors
    /// The device has too little memory.
    pub fn new(config: &Config, engine: &Engine, needs_reference: bool) -> Result<Self> {
        Ok(match engine.gradients_on_device() {
            Some(_) => Self::Device(Box::new(OnDevice::new(config, engine, needs_reference)?)),
            None => Self::Host(OnHost::new(engine.layout())),
        })
    }

    /// θ.
    pub fn policy<'a>(&'a self, state: &'a State) -> Weights<'a> {
        match self {
            Self::Host(_) => (&state.policy).into(),
            Self::Device(device) => device.policy().into(),
        }
    }

    /// What the loss needs of the reference for `samples`.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn reference(
        &self,
        state: &State,
        engine: &mut Engine,
        samples: &Samples,
    ) -> Result<ReferenceValues> {
        match self {
            Self::Host(_) => engine.reference(&*state.reference(), samples),
            Self::Device(device) => match device.reference() {
                Some(reference) => engine.reference(reference, samples),
                None => Ok(ReferenceValues::default()),
            },
        }
    }

    /// Starts a batch.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn begin(&mut self, state: &State) -> Result<()> {
        match self {
            Self::Host(host) => {
                host.sum.clear();
                host.anchor.clear();
                Ok(())
            }
            Self::Device(device) => {
                device.load(state)?;
                device.clear();
                Ok(())
            }
        }
    }

    /// Adds the gradients of the engine's last step, each times `factor`.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn add(&mut self, engine: &Engine, factor: f32) -> Result<()> {
        match self {
            Self::Host(host) => {
                let term = Term::by_name(engine.layout(), factor, |name| engine.gradient(name))?;
                host.sum.add(&term);
                Ok(())
            }
            Self::Device(device) => device.add(gradients(engine), factor),
        }
    }

    /// Adds the gradients of the engine's last run of the `kl` anchor, each times `factor`.
    ///
    /// # Errors
    /// There is no gradient for a tensor.
    pub fn add_anchor(&mut self, engine: &Engine, factor: f32) -> Result<()> {
        let Self::Host(host) = self else {
            unreachable!("the kl anchor keeps what moves in the host's memory");
        };
        let term = Term::by_name(engine.layout(), factor, |name| engine.anchor_gradient(name))?;
        host.anchor.add(&term);
        Ok(())
    }

    /// Norms of the batch's gradient. `room` may be written to.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn norms(&mut self, state: &State, engine: &Engine, room: &mut ParamSet) -> Result<GradientNorms> {
        match self {
            Self::Host(host) => Ok(host.gradient(state).norms()),
            Self::Device(device) => device.norms(gradients(engine), room),
        }
    }

    /// Optimizer, reference and average, on the batch's gradient clipped by `clip`. `room` may be written to.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn step(
        &mut self,
        state: &mut State,
        engine: &Engine,
        (clip, lr): (f64, f64),
        action: Action,
        room: &mut ParamSet,
    ) -> Result<()> {
        match self {
            Self::Host(host) => {
                let gradient = host.gradient(state);
                step_on_host(state, &gradient, clip, lr, action);
            }
            Self::Device(device) => match device.gradient_for_host(gradients(engine), room)? {
                Some(gradient) => step_on_host(state, &gradient, clip, lr, action),
                None => device.step(state, gradients(engine), (clip, lr), action)?,
            },
        }
        Ok(())
    }

    /// The reference's part of a step that leaves θ where it is.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn step_of_reference(&mut self, state: &mut State, action: Action) -> Result<()> {
        let Action::Move(blend) = action else {
            return Ok(());
        };
        match self {
            Self::Host(_) => {
                let step = state.step + 1;
                state.reference.follow(blend, &state.policy, &state.initial, step);
                Ok(())
            }
            Self::Device(device) => device.follow(state, blend),
        }
    }

    /// Brings weights and moments of `state` up to date, if newer ones are on the device.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn fetch(&mut self, state: &mut State) -> Result<()> {
        match self {
            Self::Device(device) if state.is_behind => device.fetch(state),
            _ => Ok(()),
        }
    }

    /// The state was replaced: what is on the device is not it.
    pub fn forget(&mut self) {
        if let Self::Device(device) = self {
            device.forget();
        }
    }
}

impl OnHost {
    fn new(layout: &std::sync::Arc<Layout>) -> Self {
        Self {
            sum: GradientSum::new(layout),
            anchor: GradientSum::new(layout),
        }
    }

    /// The gradient of the batch.
    fn gradient(&self, state: &State) -> Gradient<'_> {
        let kl = state.reference_rule.kl();
        let lambda = kl.filter(|_| state.reference_rule.moves()).map(|kl| kl.lambda);
        Gradient {
            objective: self.sum.term(1.0),
            anchor: lambda.map(|lambda| self.anchor.term(lambda as f32)),
        }
    }
}

fn gradients(engine: &Engine) -> &DeviceSet {
    let gradients = engine.gradients_on_device();
    gradients.expect("what moves is on the device because gradients are")
}

/// Optimizer, reference and average.
fn step_on_host(state: &mut State, gradient: &Gradient<'_>, clip: f64, lr: f64, action: Action) {
    let step = state.step + 1;
    // In the same pass over memory, where all is in memory.
    let (follow, then) = match (action, &mut state.reference) {
        (Action::Move(blend), ReferenceWeights::Resident(reference)) => {
            let initial = &state.initial;
            let follow = Follow {
                reference,
                initial,
                blend,
            };
            (Some(follow), None)
        }
        (Action::Move(blend), ReferenceWeights::Mapped(_)) => (None, Some(blend)),
        (Action::Keep | Action::Probe(_), _) => (None, None),
    };
    state
        .optimizer
        .step(&mut state.policy, gradient, clip, lr, follow);
    if let Some(blend) = then {
        state.reference.follow(blend, &state.policy, &state.initial, step);
    }
    if let Some(average) = &mut state.average {
        average.follow(&state.policy, step);
    }
}
