//! The denoiser's weights that a run did not train: what makes a file of some trained weights one of a whole model.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io;

use super::model::Model;
use crate::Result;
use crate::adapter::{NamedTensor, Precision};
use crate::model_folder::Component;
use crate::onnx::{Graph, ValueId};
use crate::params::Layout;
use crate::pipeline::read_network;
use crate::tensor::transposed;
use crate::traingraph::{Trainable, TrainableKind, Trainables};

/// Values from which on a nameless constant is taken for a weight: tables of frequencies are smaller, and of one dimension.
const WEIGHT_FROM: usize = 1024;

/// Weights of the model that are not among the trained ones, read from its files when they are written.
#[derive(Debug)]
pub struct Untouched {
    graph: Graph,
    weights: Vec<Trainable>,
    nameless: usize,
}

impl Untouched {
    /// The weights of `model` that `trained` lacks.
    ///
    /// # Errors
    /// The model's file cannot be read any more.
    pub fn of(model: &Model, trained: &Layout) -> Result<Option<Self>> {
        if model.component != Component::Unet {
            return Ok(None);
        }
        let (_, graph) = read_network(&model.folder, model.component, true)?;
        let all = Trainables::full(&graph, &["*".to_owned()])?.tensors;
        let constant = |t: &Trainable| match &t.kind {
            TrainableKind::Weight { constant, .. } => Some(*constant),
            TrainableKind::LoraA | TrainableKind::LoraB => None,
        };
        let named: HashSet<ValueId> = all.iter().filter_map(constant).collect();
        let is_weight = |value: &&ValueId| {
            let shape = graph.shape(**value);
            !named.contains(*value) && shape.len() > 1 && shape.iter().product::<usize>() >= WEIGHT_FROM
        };
        let nameless = graph.parameters.iter().filter(is_weight).count();
        let weights = all.into_iter().filter(|t| trained.index_of(&t.name).is_none());
        Ok(Some(Self {
            weights: weights.collect(),
            nameless,
            graph,
        }))
    }

    /// What is to be noted of a file that is not whole for all that: the export does not tell the names of some weights.
    pub fn note(&self) -> Option<String> {
        (self.nameless > 0).then(|| {
            format!(
                "{} weights of the network are not in this file: the ONNX export does not tell their names",
                self.nameless
            )
        })
    }

    /// The weights in PyTorch's layout.
    pub fn tensors(&self) -> impl Iterator<Item = NamedTensor<'_>> {
        self.weights.iter().filter_map(move |t| {
            let TrainableKind::Weight {
                constant,
                transposed,
                torch_shape,
            } = &t.kind
            else {
                return None;
            };
            Some(NamedTensor {
                name: t.name.clone(),
                shape: torch_shape.clone(),
                precision: Precision::Fp32,
                values: Box::new(move || self.values(*constant, *transposed, &t.name).map(Cow::Owned)),
            })
        })
    }

    fn values(&self, constant: ValueId, is_transposed: bool, name: &str) -> io::Result<Vec<f32>> {
        let constant = &self.graph.constants[&constant];
        let values = constant.read_floats(name).map_err(io::Error::other)?;
        let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
        Ok(match constant.shape.as_slice() {
            [rows, columns] if is_transposed => transposed(&values, *rows, *columns),
            _ => values,
        })
    }
}
