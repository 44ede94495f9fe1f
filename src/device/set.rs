//! Parameters in device memory.

use std::sync::Arc;

use super::DeviceLayout;
use crate::Result;
use crate::params::Layout;
use crate::runtime::{DeviceBuffer, DeviceTensor};
use crate::tensor::DType;

/// A tensor per parameter, in one piece of device memory.
#[derive(Debug)]
pub struct DeviceSet {
    layout: Arc<DeviceLayout>,
    buffer: DeviceBuffer,
    tensors: Vec<DeviceTensor>,
    blocks: Vec<DeviceTensor>,
}

impl DeviceSet {
    pub(super) fn new(layout: &Arc<DeviceLayout>, buffer: DeviceBuffer) -> Result<Self> {
        let mut set = Self {
            layout: Arc::clone(layout),
            buffer,
            tensors: Vec::new(),
            blocks: Vec::new(),
        };
        set.tensors = (0..layout.layout().tensors())
            .map(|index| set.place_of(index))
            .collect::<Result<_>>()?;
        set.blocks = (0..layout.blocks())
            .map(|block| set.place_of_block(block))
            .collect::<Result<_>>()?;
        Ok(set)
    }

    /// Names and shapes.
    pub fn layout(&self) -> &Arc<Layout> {
        self.layout.layout()
    }

    /// A tensor per parameter, in the layout's order.
    pub fn tensors(&self) -> &[DeviceTensor] {
        &self.tensors
    }

    /// All values block by block, with what lies between tensors.
    pub fn blocks(&self) -> &[DeviceTensor] {
        &self.blocks
    }

    /// The memory of a parameter, for a session to write to.
    ///
    /// # Errors
    /// ONNX Runtime does not take it.
    pub fn place_of(&self, index: usize) -> Result<DeviceTensor> {
        let layout = self.layout.layout();
        self.tensor(self.layout.starts()[index], layout.shape(index))
    }

    /// The memory of a block, for a session to write to.
    ///
    /// # Errors
    /// ONNX Runtime does not take it.
    pub fn place_of_block(&self, block: usize) -> Result<DeviceTensor> {
        let len = self.layout.block();
        self.tensor(block * len, &[len])
    }

    fn tensor(&self, start: usize, shape: &[usize]) -> Result<DeviceTensor> {
        self.buffer.tensor(start * DType::F32.size(), DType::F32, shape)
    }
}
