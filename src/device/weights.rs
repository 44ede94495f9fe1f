//! A model's weights in device memory, once for all sessions over them.

use super::{Kernel, graphs};
use crate::Result;
use crate::runtime::{Binding, DeviceBuffer, DeviceTensor, SessionOptions, SharedWeights, TensorView};
use crate::tensor::DType;

/// Weights begin at multiples of this many bytes.
const ALIGNMENT: usize = 256;

/// Bytes that are copied at once.
const STAGE: usize = 1 << 25;

/// Copies `weights`, which were mapped from files, to the device that `options` name.
///
/// # Errors
/// There is too little memory.
pub fn weights_on_device(weights: &SharedWeights, options: &SessionOptions) -> Result<SharedWeights> {
    let lengths = weights
        .on_host()
        .map(|w| w.bytes.len().next_multiple_of(ALIGNMENT));
    let bytes = lengths.sum::<usize>();
    let stage = STAGE.min(bytes.max(1));
    let copy = Kernel::new(&graphs::copy_of(stage, DType::U8)?, options)?;
    let buffer = copy
        .session()
        .device_buffer(options.ep, bytes.next_multiple_of(stage))?;
    let mut stages = Stages {
        copy,
        buffer,
        staged: vec![0; stage],
        filled: 0,
        sent: 0,
    };
    let mut tensors: Vec<(String, DeviceTensor)> = Vec::new();
    let mut start = 0;
    for weight in weights.on_host() {
        stages.push(weight.bytes)?;
        let length = weight.bytes.len();
        let padded = length.next_multiple_of(ALIGNMENT);
        stages.push(&[0; ALIGNMENT][..padded - length])?;
        let tensor = stages.buffer.tensor(start, weight.dtype, &weight.dims)?;
        tensors.push((weight.name.to_owned(), tensor));
        start += padded;
    }
    stages.send()?;
    Ok(SharedWeights::of_device(tensors))
}

/// Bytes on their way, a stage at a time.
struct Stages {
    copy: Kernel,
    buffer: DeviceBuffer,
    staged: Vec<u8>,
    filled: usize,
    sent: usize,
}

impl Stages {
    fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let taken = bytes.len().min(self.staged.len() - self.filled);
            let (now, later) = bytes.split_at(taken);
            self.staged[self.filled..][..taken].copy_from_slice(now);
            self.filled += taken;
            bytes = later;
            if self.filled == self.staged.len() {
                self.send()?;
            }
        }
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        if self.filled == 0 {
            return Ok(());
        }
        let stage = [self.staged.len()];
        let place = |_: &str| self.buffer.tensor(self.sent, DType::U8, &stage).map(Some);
        let mut binding = Binding::onto(self.copy.session(), place)?;
        let view = ndarray::ArrayView1::from(&self.staged[..]).into_dyn();
        binding.run(self.copy.session_mut(), &[("from", TensorView::U8(view))])?;
        self.sent += self.staged.len();
        self.filled = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::runtime::{Session, WeightSource};

    /// A model of one product, whose weight is in a file of its own.
    fn model(folder: &Path) -> (crate::onnx::Graph, SharedWeights) {
        use crate::onnx::{Constant, Graph, TensorData, TensorType};
        let values: Vec<f32> = (0..6).map(|v| v as f32).collect();
        let file = folder.join("weights.bin");
        // Not at the beginning, and followed by something else.
        let bytes: Vec<u8> = [&[7.0f32][..], &values, &[8.0]]
            .concat()
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        std::fs::write(&file, bytes).unwrap();
        let mut graph = Graph::new("product", 17);
        let x = graph.add_input("x", TensorType::new(DType::F32, [1, 2]));
        let data = TensorData::External {
            file: std::sync::Arc::new(file.clone()),
            offset: 4,
            length: 24,
        };
        let w = graph.add_constant(
            "w",
            Constant {
                dtype: DType::F32,
                shape: vec![2, 3],
                data,
            },
        );
        let y = graph.matmul(x, w).unwrap();
        let y = graph.as_output(y, "y").unwrap();
        graph.outputs.push(y);
        let source = |name: &str, dims: Vec<usize>, offset| WeightSource {
            name: name.to_owned(),
            dtype: DType::F32,
            dims,
            file: file.clone(),
            offset,
        };
        let weights = SharedWeights::map([source("first", vec![1], 0), source("w", vec![2, 3], 4)]).unwrap();
        (graph, weights)
    }

    #[test]
    fn sessions_read_what_was_copied() {
        let folder = tempfile::tempdir().unwrap();
        let (graph, mapped) = model(folder.path());
        let options = SessionOptions::default();
        let copied = weights_on_device(&mapped, &options).unwrap();
        let bytes = crate::onnx::write::to_bytes(&graph, Some(folder.path())).unwrap();
        // The session computes with the copy, not with the file.
        std::fs::write(folder.path().join("weights.bin"), [0; 32]).unwrap();
        let own = copied.subset(|name| name == "w");
        let mut session = Session::with_weights(&bytes, Some(folder.path()), &own, &options).unwrap();
        drop((copied, own, mapped));
        let x = crate::tensor::Tensor::f32(&[1, 2], vec![1.0, 10.0]);
        let mut outputs = session.run(&[("x", &x)]).unwrap();
        let y = outputs.take("y").unwrap().into_f32("y").unwrap();
        assert_eq!(y.into_raw_vec_and_offset().0, [30.0, 41.0, 52.0]);
    }
}
