//! Weights of the model as it is: where full fine-tuning starts.

use std::sync::Arc;

use crate::Result;
use crate::onnx::Graph;
use crate::params::{Layout, ParamSet};
use crate::traingraph::{TrainableKind, Trainables};

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
        let values = graph.constants[&constant].read_floats(&t.name)?;
        for (slot, value) in set.tensor_mut(index).iter_mut().zip(values) {
            *slot = value as f32;
        }
    }
    Ok(Some(set))
}
