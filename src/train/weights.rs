//! Weights of the model as it is: where full fine-tuning starts.

use std::sync::Arc;

use half::{bf16, f16};

use crate::onnx::{Constant, Graph};
use crate::params::{Layout, ParamSet};
use crate::tensor::DType;
use crate::traingraph::{TrainableKind, Trainables};
use crate::{Error, Result};

/// The trained weights' values in the model; `None` where adapters are trained, which are not in it.
pub fn weights_of(graph: &Graph, trainables: &Trainables, layout: &Arc<Layout>) -> Result<Option<ParamSet>> {
    if !trainables.adapted.is_empty() {
        return Ok(None);
    }
    let mut set = ParamSet::zeros(layout);
    for t in &trainables.tensors {
        let TrainableKind::Weight { constant, .. } = t.kind else {
            continue;
        };
        let index = layout
            .index_of(&t.name)
            .expect("the layout was made from these tensors");
        set.tensor_mut(index)
            .copy_from_slice(&floats(&graph.constants[&constant], &t.name)?);
    }
    Ok(Some(set))
}

fn floats(constant: &Constant, name: &str) -> Result<Vec<f32>> {
    let bytes = constant.read_bytes()?;
    Ok(match constant.dtype {
        DType::F32 => bytes
            .chunks_exact(4)
            .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
            .collect(),
        DType::F16 => bytes
            .chunks_exact(2)
            .map(|c| f16::from_le_bytes([c[0], c[1]]).to_f32())
            .collect(),
        DType::BF16 => bytes
            .chunks_exact(2)
            .map(|c| bf16::from_le_bytes([c[0], c[1]]).to_f32())
            .collect(),
        other => {
            return Err(Error::bad(
                format!("weight `{name}`"),
                format!("is stored as {other}"),
                "Export the model in fp32, fp16 or bf16.",
            ));
        }
    })
}
