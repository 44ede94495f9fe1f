//! Parameters that stay on the device from step to step: weights, moments and gradients of full fine-tuning, which would take
//! longer over the bus than the step itself.
//!
//! A [`DeviceSet`] is one piece of device memory, seen in two ways: as the tensors that a model's sessions read and write, and
//! as blocks of equal length, on which small graphs ([`graphs`]) run one after the other whatever the tensors are.
//!
//! Weights that are not trained are there once for all sessions of a step ([`weights_on_device`]).

pub mod graphs;
mod kernel;
mod layout;
mod memory;
mod set;
mod weights;

pub use kernel::Kernel;
pub use layout::DeviceLayout;
pub use memory::Memory;
pub use set::DeviceSet;
pub use weights::weights_on_device;
