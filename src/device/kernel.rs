//! A graph over a block, in a session.

use super::DeviceSet;
use crate::Result;
use crate::onnx::{Graph, write};
use crate::runtime::{Binding, OptLevel, Session, SessionOptions, TensorView};

/// One of [`super::graphs`], ready to run on the blocks of sets.
#[derive(Debug)]
pub struct Kernel {
    session: Session,
}

impl Kernel {
    /// For the device that `options` name.
    ///
    /// # Errors
    /// ONNX Runtime refuses the graph.
    pub fn new(graph: &Graph, options: &SessionOptions) -> Result<Self> {
        let options = SessionOptions {
            // Each is a handful of operators, whose results are to stay where the sets are.
            optimization: OptLevel::None,
            ..options.clone()
        };
        let session = Session::from_bytes(&write::to_bytes(graph, None)?, None, &options)?;
        Ok(Self { session })
    }

    /// The session, which can allocate memory of its device.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The session, to be run.
    pub(super) fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Runs on one block of the sets in `read`, and writes to the same block of those in `written`, which may be the same. Gives
    /// the outputs that are in none of them.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn run(
        &mut self,
        block: usize,
        numbers: &[(&str, f32)],
        read: &[(&str, &DeviceSet)],
        written: &[(&str, &DeviceSet)],
    ) -> Result<Binding> {
        let given: Vec<(&str, TensorView)> = numbers
            .iter()
            .map(|(name, value)| (*name, TensorView::f32(&[], std::slice::from_ref(value))))
            .collect();
        self.run_given(block, &given, read, written)
    }

    /// As [`Kernel::run`], with inputs from the host.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub(super) fn run_given(
        &mut self,
        block: usize,
        given: &[(&str, TensorView<'_>)],
        read: &[(&str, &DeviceSet)],
        written: &[(&str, &DeviceSet)],
    ) -> Result<Binding> {
        let mut binding = Binding::onto(&self.session, |output| {
            let place = written.iter().find(|(name, _)| *name == output);
            place.map(|(_, set)| set.place_of_block(block)).transpose()
        })?;
        let read: Vec<_> = read
            .iter()
            .map(|(name, set)| (*name, &set.blocks()[block]))
            .collect();
        binding.run_beside(&mut self.session, given, &read)?;
        Ok(binding)
    }
}
