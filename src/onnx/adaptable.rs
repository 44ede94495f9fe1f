//! A model some of whose layers take low-rank factors as inputs with a default; all else, open dimensions included, stays
//! as the exporter wrote it.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use prost::Message;

use super::data::dtype_to_onnx;
use super::proto::{
    Dimension, DimensionValue, NodeProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto,
};
use super::read::Model;
use crate::fsutil::write_atomically;
use crate::tensor::DType;
use crate::{Error, Result};

/// The two inputs A and B of a layer, whose output gets `x·A·B` added, or two convolutions where they have four dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterInputs {
    /// Name of the layer's output.
    pub layer: String,
    /// Element type of what the layer reads.
    pub dtype: DType,
    /// Names of A and B.
    pub names: [String; 2],
    /// Shapes of A and B; `None` is the rank, which stays open.
    pub shapes: [Vec<Option<usize>>; 2],
}

/// Writes `model` with these inputs to `path`. Weights in data files stay where they are: the files must lie beside `path`
/// as they do beside the model.
///
/// # Errors
/// A layer is inside a function, a name is taken, or the disk is full.
pub fn save_adaptable(model: &Model, inputs: &[AdapterInputs], path: &Path) -> Result<()> {
    let mut proto = model.proto.clone();
    let graph = proto.graph.as_mut().expect("a model that was read has a graph");
    let taken: HashSet<&str> = (graph.initializer.iter().map(|t| t.name.as_str()))
        .chain(graph.input.iter().map(|i| i.name.as_str()))
        .chain(
            graph
                .node
                .iter()
                .flat_map(|n| n.output.iter().map(String::as_str)),
        )
        .collect();
    let place = || model.path.display().to_string();
    if let Some(name) = inputs
        .iter()
        .flat_map(|i| &i.names)
        .find(|n| taken.contains(n.as_str()))
    {
        let what = format!("has a value called `{name}` already");
        return Err(Error::bad(
            place(),
            what,
            "Give the model as it was before it took adapters.",
        ));
    }
    let mut by_layer: HashMap<&str, &AdapterInputs> = inputs.iter().map(|i| (i.layer.as_str(), i)).collect();
    let mut nodes = Vec::with_capacity(graph.node.len() + 3 * inputs.len());
    for mut node in std::mem::take(&mut graph.node) {
        let layer = node
            .output
            .first()
            .and_then(|output| by_layer.remove(output.as_str()));
        match layer {
            None => nodes.push(node),
            Some(inputs) => {
                let added = with_factors(&mut node, inputs);
                nodes.push(node);
                nodes.extend(added);
            }
        }
    }
    if let Some(layer) = by_layer.keys().min() {
        return Err(Error::bad(
            place(),
            format!("makes `{layer}` inside a function, where nothing can be added to it"),
            "Export the model with the legacy exporter, or without functions.",
        ));
    }
    graph.node = nodes;
    for inputs in inputs {
        for (name, shape) in inputs.names.iter().zip(&inputs.shapes) {
            graph.input.push(input(name, inputs.dtype, shape));
            graph.initializer.push(zeros(name, inputs.dtype, shape));
        }
    }
    write_atomically(path, &proto.encode_to_vec())
}

/// The nodes that add the factors' product to what `node` makes, which gets another name.
fn with_factors(node: &mut NodeProto, inputs: &AdapterInputs) -> [NodeProto; 3] {
    let [a, b] = &inputs.names;
    let x = node.input[0].clone();
    let made = std::mem::replace(&mut node.output[0], format!("{}/unadapted", inputs.layer));
    let is_conv = inputs.shapes[0].len() > 2;
    let product = |op: &[&str; 2], inputs: [&str; 2], output: String| NodeProto {
        op_type: op[usize::from(is_conv)].to_owned(),
        name: output.clone(),
        input: inputs.map(str::to_owned).to_vec(),
        output: vec![output],
        ..NodeProto::default()
    };
    let both = ["MatMul", "Conv"];
    let (low, delta) = (format!("{a}/product"), format!("{b}/product"));
    let mut down = product(&both, [&x, a], low.clone());
    if is_conv {
        let geometry = ["auto_pad", "dilations", "pads", "strides"];
        let kept = node
            .attribute
            .iter()
            .filter(|a| geometry.contains(&a.name.as_str()));
        down.attribute = kept.cloned().collect();
    }
    let up = product(&both, [&low, b], delta.clone());
    let mut sum = product(&["Add", "Add"], [&node.output[0], &delta], made);
    sum.name = format!("{}/adapted", inputs.layer);
    [down, up, sum]
}

fn input(name: &str, dtype: DType, shape: &[Option<usize>]) -> ValueInfoProto {
    let dim = |size: &Option<usize>| Dimension {
        value: size.map(|size| DimensionValue::Value(size as i64)),
    };
    let tensor_type = TensorTypeProto {
        elem_type: dtype_to_onnx(dtype),
        shape: Some(TensorShapeProto {
            dim: shape.iter().map(dim).collect(),
        }),
    };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            tensor_type: Some(tensor_type),
        }),
        ..ValueInfoProto::default()
    }
}

/// The default: rank 1, and no effect.
fn zeros(name: &str, dtype: DType, shape: &[Option<usize>]) -> TensorProto {
    let dims: Vec<usize> = shape.iter().map(|size| size.unwrap_or(1)).collect();
    TensorProto {
        name: name.to_owned(),
        data_type: dtype_to_onnx(dtype),
        raw_data: vec![0; dims.iter().product::<usize>() * dtype.size()].into(),
        dims: dims.iter().map(|d| *d as i64).collect(),
        ..TensorProto::default()
    }
}
