//! Memory on the device of an execution provider, which sessions read and write without a copy in between.

use std::fmt;
use std::sync::Arc;

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::value::{DynTensor, DynValue, TensorElementType};

use super::ExecutionProvider;
use super::failure::failure;
use super::session::Session;
use super::value::tensor_over;
use crate::tensor::DType;
use crate::{Error, Result};

/// Bytes on a device; they are freed with the last clone and the last tensor in them.
#[derive(Clone)]
pub struct DeviceBuffer(Arc<Allocation>);

struct Allocation {
    bytes: DynTensor,
    memory: MemoryInfo<'static>,
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DeviceBuffer").finish_non_exhaustive()
    }
}

/// A tensor in a [`DeviceBuffer`]. Several may lie over the same bytes: who runs sessions on them sees to it that none is read
/// after it was overwritten.
#[derive(Debug)]
pub struct DeviceTensor {
    pub(super) value: DynValue,
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    // Dropped after `value`, which points into it.
    pub(super) buffer: DeviceBuffer,
}

impl ExecutionProvider {
    /// Where tensors lie that sessions on this provider read in place; `None` where that is not known here.
    fn device(self) -> Option<AllocationDevice<'static>> {
        match self {
            Self::Cpu => Some(AllocationDevice::CPU),
            Self::Cuda | Self::TensorRt => Some(AllocationDevice::CUDA),
            _ => None,
        }
    }

    /// Whether [`Session::device_buffer`] works with this provider.
    pub fn has_device_buffers(self) -> bool {
        self.device().is_some()
    }
}

impl Session {
    /// Memory of `bytes` bytes on the device that this session's provider `ep` computes on. What is in it is arbitrary.
    ///
    /// # Errors
    /// The provider's memory is not reached from here, or there is too little of it.
    pub fn device_buffer(&self, ep: ExecutionProvider, bytes: usize) -> Result<DeviceBuffer> {
        let Some(device) = ep.device() else {
            let remedy = "Use cpu, cuda or tensorrt.";
            return Err(Error::bad(
                &self.name,
                format!("{ep} does not say where its memory is"),
                remedy,
            ));
        };
        let failed = |e| failure(&self.name, e);
        let memory =
            MemoryInfo::new(device, 0, AllocatorType::Device, MemoryType::Default).map_err(failed)?;
        let allocator = match ep {
            ExecutionProvider::Cpu => Allocator::default(),
            _ => Allocator::new(&self.inner, memory).map_err(failed)?,
        };
        let bytes = DynTensor::new(&allocator, TensorElementType::Uint8, [bytes as i64]).map_err(failed)?;
        let memory = allocator.memory_info().to_owned();
        Ok(DeviceBuffer(Arc::new(Allocation { bytes, memory })))
    }
}

impl DeviceBuffer {
    /// The `dtype` tensor of `shape` that begins at byte `offset`, where the caller has made room for it.
    ///
    /// # Errors
    /// [`Error::Runtime`] when ONNX Runtime does not take it.
    ///
    /// # Panics
    /// If it is not inside the buffer or not aligned.
    pub fn tensor(&self, offset: usize, dtype: DType, shape: &[usize]) -> Result<DeviceTensor> {
        let Allocation { bytes, memory } = &*self.0;
        let length = shape.iter().product::<usize>() * dtype.size();
        let end = offset + length;
        let inside = bytes.shape().iter().product::<i64>() >= end as i64;
        assert!(
            inside && offset.is_multiple_of(dtype.size()),
            "tensors lie inside their buffer"
        );
        let start = bytes.data_ptr().wrapping_byte_add(offset);
        // SAFETY: the bytes are inside of what the tensor's clone of the buffer holds.
        let value = unsafe { tensor_over(start.cast(), length, dtype, shape, memory) };
        Ok(DeviceTensor {
            value: value.map_err(|e| failure("device memory", e))?,
            dtype,
            shape: shape.to_vec(),
            buffer: self.clone(),
        })
    }
}

impl DeviceTensor {
    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
}
