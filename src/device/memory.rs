//! Making sets on a device, and their way there and back.

use std::sync::Arc;

use super::{DeviceLayout, DeviceSet, Kernel, graphs};
use crate::Result;
use crate::params::ParamSet;
use crate::runtime::{ExecutionProvider, SessionOptions, TensorView};
use crate::tensor::DType;

/// Memory of one device for sets of one layout.
#[derive(Debug)]
pub struct Memory {
    layout: Arc<DeviceLayout>,
    ep: ExecutionProvider,
    copy: Kernel,
    /// A block on its way.
    staged: Vec<f32>,
}

impl Memory {
    /// On the device that `options` name.
    ///
    /// # Errors
    /// ONNX Runtime cannot compute there.
    pub fn new(layout: &Arc<DeviceLayout>, options: &SessionOptions) -> Result<Self> {
        Ok(Self {
            layout: Arc::clone(layout),
            ep: options.ep,
            copy: Kernel::new(&graphs::copy(layout.block())?, options)?,
            staged: vec![0.0; layout.block()],
        })
    }

    /// Where parameters lie.
    pub fn layout(&self) -> &Arc<DeviceLayout> {
        &self.layout
    }

    /// A set of zeros.
    ///
    /// # Errors
    /// There is too little memory.
    pub fn zeros(&mut self) -> Result<DeviceSet> {
        let bytes = self.layout.blocks() * self.layout.block() * DType::F32.size();
        let buffer = self.copy.session().device_buffer(self.ep, bytes)?;
        let set = DeviceSet::new(&self.layout, buffer)?;
        self.staged.fill(0.0);
        for block in 0..self.layout.blocks() {
            self.send(block, &set)?;
        }
        Ok(set)
    }

    /// Copies parameters to the device.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn upload(&mut self, from: &ParamSet, to: &DeviceSet) -> Result<()> {
        self.staged.fill(0.0);
        for block in 0..self.layout.blocks() {
            for part in self.layout.parts(block) {
                self.staged[part.of_block].copy_from_slice(&from.tensor(part.tensor)[part.of_tensor]);
            }
            self.send(block, to)?;
        }
        Ok(())
    }

    /// Copies parameters from the device.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn download(&mut self, from: &DeviceSet, to: &mut ParamSet) -> Result<()> {
        for block in 0..self.layout.blocks() {
            let copied = self.copy.run_given(block, &[], &[("from", from)], &[])?;
            let TensorView::F32(values) = copied.output("to")? else {
                unreachable!("blocks are of 32-bit floats");
            };
            let values = values.as_slice().expect("outputs lie row by row");
            for part in self.layout.parts(block) {
                to.tensor_mut(part.tensor)[part.of_tensor].copy_from_slice(&values[part.of_block]);
            }
        }
        Ok(())
    }

    fn send(&mut self, block: usize, to: &DeviceSet) -> Result<()> {
        let staged = TensorView::f32(&[self.staged.len()], &self.staged);
        self.copy
            .run_given(block, &[("from", staged)], &[], &[("to", to)])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Layout;
    use crate::rng::{Purpose, Streams};

    #[test]
    fn what_goes_there_comes_back() {
        let lens = [3, 70_000, 1];
        let named = lens.iter().enumerate().map(|(i, n)| (format!("t{i}"), vec![*n]));
        let layout = Layout::new(named).unwrap();
        let mut memory = Memory::new(&DeviceLayout::new(&layout), &SessionOptions::default()).unwrap();
        let mut there = ParamSet::zeros(&layout);
        let mut stream = Streams::new(1).named(Purpose::Noise, "values");
        stream.fill_normal(there.values_mut());
        let set = memory.zeros().unwrap();
        let mut back = there.clone();
        memory.download(&set, &mut back).unwrap();
        assert!(back.values().iter().all(|v| *v == 0.0));
        memory.upload(&there, &set).unwrap();
        memory.download(&set, &mut back).unwrap();
        assert_eq!(back, there);
    }
}
