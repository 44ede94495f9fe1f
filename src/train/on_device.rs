//! The moving parts of a run on the device: weights, moments, gradients, reference and average stay there, and only numbers come
//! back. The host's copies in [`State`] are brought up to date when somebody wants to see them.
//!
//! Adafactor works on the host: once per optimizer step the gradient comes there and the weights go back, while the parts of a
//! batch do without either.

use super::engine::Engine;
use super::kept::{Inventory, Set};
use super::state::State;
use crate::config::Config;
use crate::config::adapter::AdapterConfig;
use crate::config::reference::StorageConfig;
use crate::config::runtime::OptimizerPlace;
use crate::device::{DeviceLayout, DeviceSet, Kernel, Memory, graphs};
use crate::optim::{Gradient, GradientNorms, Optimizer, Term};
use crate::params::ParamSet;
use crate::reference::{Action, Blend, ReferenceRule, ReferenceWeights};
use crate::runtime::ExecutionProvider;
use crate::{Error, Result};

/// Whether the optimizer of a run works on the device. `sizes` is the number of sizes of latents.
///
/// # Errors
/// The configuration asks for that where it cannot be.
pub fn wanted(config: &Config, sizes: usize) -> Result<bool> {
    let obstacle = obstacle(config, sizes)?;
    let pays = matches!(config.adapter, AdapterConfig::Full(_))
        && matches!(
            config.runtime.ep,
            ExecutionProvider::Cuda | ExecutionProvider::TensorRt
        );
    match (config.runtime.optimizer, obstacle) {
        (OptimizerPlace::Host, _) => Ok(false),
        (OptimizerPlace::Auto, obstacle) => Ok(pays && obstacle.is_none()),
        (OptimizerPlace::Device, None) => Ok(true),
        (OptimizerPlace::Device, Some(obstacle)) => Err(Error::bad(
            "runtime.optimizer",
            format!("is device, but {obstacle}"),
            "Leave it at auto, or change that.",
        )),
    }
}

/// What stands against it.
fn obstacle(config: &Config, sizes: usize) -> Result<Option<String>> {
    let rule = ReferenceRule::new(&config.reference)?;
    let ep = config.runtime.ep;
    Ok(if !ep.has_device_buffers() {
        Some(format!("the memory of {ep} is not reached from here"))
    } else if rule.kl().is_some() && rule.moves() {
        Some("the kl anchor's gradient is added on the host".to_owned())
    } else if config.reference.storage == StorageConfig::Bf16 {
        Some("reference.storage keeps the reference in a file".to_owned())
    } else if sizes > 1 {
        Some(format!(
            "there are images of {sizes} sizes, whose sessions take turns"
        ))
    } else {
        None
    })
}

/// See the module's text.
pub struct OnDevice {
    memory: Memory,
    blend: Kernel,
    square: Kernel,
    /// First part of a batch, and further ones, where there are several.
    sums: Option<Sums>,
    /// AdamW; nothing where the optimizer works on the host.
    adamw: Option<AdamWSets>,
    policy: DeviceSet,
    reference: Option<DeviceSet>,
    /// θ0, where the reference is pulled back to it.
    initial: Option<DeviceSet>,
    average: Option<DeviceSet>,
    /// Whether the state is on the device.
    loaded: bool,
    reference_moved: bool,
    /// Factor that the gradients still want.
    factor: f32,
}

/// AdamW and its moments.
struct AdamWSets {
    kernel: Kernel,
    first_moment: DeviceSet,
    second_moment: DeviceSet,
}

/// The sum of a batch's gradients.
struct Sums {
    scale: Kernel,
    add: Kernel,
    sum: DeviceSet,
    empty: bool,
}

impl OnDevice {
    /// Memory and kernels for what moves in a run.
    ///
    /// # Errors
    /// There is too little memory.
    pub fn new(config: &Config, engine: &Engine, needs_reference: bool) -> Result<Self> {
        let options = engine.session_options();
        let layout = DeviceLayout::new(engine.layout());
        let n = layout.block();
        let mut memory = Memory::new(&layout, options)?;
        let kernel = |graph| Kernel::new(&graph, options);
        let inventory = Inventory::of(config, needs_reference)?;
        let sums = match inventory.on_device(Set::GradientSum) {
            false => None,
            true => Some(Sums {
                scale: kernel(graphs::scale(n)?)?,
                add: kernel(graphs::add(n)?)?,
                sum: memory.zeros()?,
                empty: true,
            }),
        };
        let adamw = match inventory.on_device(Set::FirstMoments) {
            false => None,
            true => Some(AdamWSets {
                kernel: kernel(graphs::adamw(n)?)?,
                first_moment: memory.zeros()?,
                second_moment: memory.zeros()?,
            }),
        };
        let mut set_if = |set: Set| inventory.on_device(set).then(|| memory.zeros()).transpose();
        Ok(Self {
            reference: set_if(Set::Reference)?,
            initial: set_if(Set::Initial)?,
            average: set_if(Set::Average)?,
            policy: memory.zeros()?,
            adamw,
            blend: kernel(graphs::blend(n)?)?,
            square: kernel(graphs::square(n)?)?,
            memory,
            sums,
            loaded: false,
            reference_moved: false,
            factor: 1.0,
        })
    }

    /// θ.
    pub fn policy(&self) -> &DeviceSet {
        &self.policy
    }

    /// The reference, where the objective needs one.
    pub fn reference(&self) -> Option<&DeviceSet> {
        self.reference.as_ref()
    }

    /// Copies the state to the device, unless it is there.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn load(&mut self, state: &State) -> Result<()> {
        if self.loaded {
            return Ok(());
        }
        let memory = &mut self.memory;
        memory.upload(&state.policy, &self.policy)?;
        if let Some(adamw) = &self.adamw {
            let (first, second) = state.optimizer.moments();
            memory.upload(first, &adamw.first_moment)?;
            memory.upload(second, &adamw.second_moment)?;
        }
        if let Some(reference) = &self.reference {
            memory.upload(&state.reference(), reference)?;
        }
        if let Some(initial) = &self.initial {
            memory.upload(&state.initial, initial)?;
        }
        if let (Some(set), Some(average)) = (&self.average, &state.average) {
            memory.upload(&average.weights, set)?;
        }
        (self.loaded, self.reference_moved) = (true, false);
        Ok(())
    }

    /// The state was changed: it has to be loaded again.
    pub fn forget(&mut self) {
        self.loaded = false;
    }

    /// Brings the host's copies up to date.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn fetch(&mut self, state: &mut State) -> Result<()> {
        let memory = &mut self.memory;
        memory.download(&self.policy, &mut state.policy)?;
        if let (Some(sets), Optimizer::AdamW(adamw)) = (&self.adamw, &mut state.optimizer) {
            let (first, second) = adamw.moments_mut();
            memory.download(&sets.first_moment, first)?;
            memory.download(&sets.second_moment, second)?;
        }
        if let (Some(set), ReferenceWeights::Resident(reference), true) =
            (&self.reference, &mut state.reference, self.reference_moved)
        {
            memory.download(set, reference)?;
        }
        if let (Some(set), Some(average)) = (&self.average, &mut state.average) {
            memory.download(set, &mut average.weights)?;
        }
        state.is_behind = false;
        Ok(())
    }

    /// Starts the next batch.
    pub fn clear(&mut self) {
        if let Some(sums) = &mut self.sums {
            sums.empty = true;
        }
    }

    /// Takes the gradients of a part of the batch, each times `factor`.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn add(&mut self, gradients: &DeviceSet, factor: f32) -> Result<()> {
        let Some(sums) = &mut self.sums else {
            // They stay where they are until the next step.
            self.factor = factor;
            return Ok(());
        };
        let is_first = std::mem::replace(&mut sums.empty, false);
        for block in 0..self.memory.layout().blocks() {
            let numbers = [("factor", factor)];
            let written = [("next_sum", &sums.sum)];
            match is_first {
                true => sums
                    .scale
                    .run(block, &numbers, &[("gradient", gradients)], &written)?,
                false => {
                    let read = [("sum", &sums.sum), ("gradient", gradients)];
                    sums.add.run(block, &numbers, &read, &written)?
                }
            };
        }
        Ok(())
    }

    /// Norm of the batch's gradient. Where it is not finite, the gradient is looked through on the host, in `room`.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn norms(&mut self, gradients: &DeviceSet, room: &mut ParamSet) -> Result<GradientNorms> {
        let gradient = self.sums.as_ref().map_or(gradients, |sums| &sums.sum);
        let mut squares = 0.0;
        for block in 0..self.memory.layout().blocks() {
            let found = self.square.run(block, &[], &[("gradient", gradient)], &[])?;
            squares += f64::from(found.scalar("square")?);
        }
        let total = squares.sqrt() * f64::from(self.factor);
        if total.is_finite() {
            return Ok(GradientNorms {
                total,
                objective: total,
                anchor: None,
                non_finite: None,
            });
        }
        self.memory.download(gradient, room)?;
        Ok(Gradient::of(Term::from_set(room, self.factor)).norms())
    }

    /// The batch's gradient, in `room`, for an optimizer on the host; after its step the state has to be loaded again. `None`
    /// where [`OnDevice::step`] takes the step.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn gradient_for_host<'a>(
        &mut self,
        gradients: &DeviceSet,
        room: &'a mut ParamSet,
    ) -> Result<Option<Gradient<'a>>> {
        if self.adamw.is_some() {
            return Ok(None);
        }
        let gradient = self.sums.as_ref().map_or(gradients, |sums| &sums.sum);
        self.memory.download(gradient, room)?;
        self.forget();
        Ok(Some(Gradient::of(Term::from_set(room, self.factor))))
    }

    /// AdamW's step on the batch's gradient, clipped by `clip_factor`; then reference and average follow.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn step(
        &mut self,
        state: &mut State,
        gradients: &DeviceSet,
        (clip_factor, lr): (f64, f64),
        action: Action,
    ) -> Result<()> {
        let (Some(sets), Optimizer::AdamW(adamw)) = (&mut self.adamw, &mut state.optimizer) else {
            unreachable!("other optimizers work on the host");
        };
        state.is_behind = true;
        let numbers = adamw.next(self.factor, None, clip_factor, lr).named();
        let gradient = self.sums.as_ref().map_or(gradients, |sums| &sums.sum);
        let (theta, m, v) = (&self.policy, &sets.first_moment, &sets.second_moment);
        let read = [("theta", theta), ("m", m), ("v", v), ("gradient", gradient)];
        let written = [("next_theta", theta), ("next_m", m), ("next_v", v)];
        for block in 0..self.memory.layout().blocks() {
            sets.kernel.run(block, &numbers, &read, &written)?;
        }
        if let Action::Move(blend) = action {
            self.follow(state, blend)?;
        }
        if let (Some(set), Some(average)) = (&self.average, &state.average) {
            let blocks = self.memory.layout().blocks();
            mix(
                &mut self.blend,
                blocks,
                set,
                &self.policy,
                average.share(state.step + 1),
            )?;
        }
        Ok(())
    }

    /// Moves the reference.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn follow(&mut self, state: &mut State, blend: Blend) -> Result<()> {
        state.is_behind = true;
        let Some(reference) = &self.reference else {
            return Ok(());
        };
        let [policy, initial] = blend.shares();
        let blocks = self.memory.layout().blocks();
        mix(&mut self.blend, blocks, reference, &self.policy, policy)?;
        if let Some(set) = &self.initial {
            mix(&mut self.blend, blocks, reference, set, initial)?;
        }
        self.reference_moved = true;
        Ok(())
    }
}

/// Mixes a share of `values` into `average`.
fn mix(
    kernel: &mut Kernel,
    blocks: usize,
    average: &DeviceSet,
    values: &DeviceSet,
    share: f32,
) -> Result<()> {
    for block in 0..blocks {
        let read = [("average", average), ("values", values)];
        kernel.run(block, &[("share", share)], &read, &[("next_average", average)])?;
    }
    Ok(())
}
