//! Tensors that a script in `scripts/fixtures/` computed and stored.

use std::collections::HashMap;
use std::path::Path;

use safetensors::SafeTensors;

/// Recorded tensors by name.
pub struct Recorded(pub HashMap<String, (Vec<usize>, Vec<f64>)>);

impl Recorded {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let read = |(name, view): (String, safetensors::tensor::TensorView)| {
            let data = view.data();
            let values = match view.dtype() {
                safetensors::Dtype::F32 => data
                    .chunks_exact(4)
                    .map(|c| f32::from_le_bytes(c.try_into().unwrap()) as f64)
                    .collect(),
                safetensors::Dtype::U8 => data.iter().map(|b| f64::from(*b)).collect(),
                safetensors::Dtype::I64 => data
                    .chunks_exact(8)
                    .map(|c| i64::from_le_bytes(c.try_into().unwrap()) as f64)
                    .collect(),
                other => panic!("{name} holds {other:?}"),
            };
            (name, (view.shape().to_vec(), values))
        };
        Self(file.tensors().into_iter().map(read).collect())
    }

    pub fn values(&self, name: &str) -> &[f64] {
        &self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}")).1
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.values(name).iter().map(|v| *v as f32).collect()
    }

    pub fn shape(&self, name: &str) -> &[usize] {
        &self.0[name].0
    }
}
