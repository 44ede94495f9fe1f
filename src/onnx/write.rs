//! Writing a graph as an ONNX model.

use std::collections::HashSet;
use std::path::Path;

use prost::Message;

use super::data::dtype_to_onnx;
use super::graph::{Graph, TensorType, ValueId};
use super::proto::{self, DimensionValue};
use crate::{Error, Result};

/// Largest message protobuf readers accept.
const PROTOBUF_LIMIT: usize = i32::MAX as usize;

/// Serialises `graph`. External data files are named relative to `folder` where they lie below it.
pub fn to_bytes(graph: &Graph, folder: Option<&Path>) -> Result<Vec<u8>> {
    let names = unique_names(graph);
    let name = |v: ValueId| names[v.0 as usize].clone();
    let opt = |v: &Option<ValueId>| v.map(name).unwrap_or_default();
    let info = |v: &ValueId| value_info(name(*v), graph.ty(*v));
    let mut node_names = HashSet::new();
    let nodes = graph.nodes.iter().map(|n| proto::NodeProto {
        input: n.inputs.iter().map(opt).collect(),
        output: n.outputs.iter().map(opt).collect(),
        name: unique_node_name(&n.name, &mut node_names),
        op_type: n.op.clone(),
        domain: n.domain.clone(),
        attribute: n.attrs.to_proto(),
        metadata_props: n
            .metadata
            .iter()
            .map(|(key, value)| proto::StringStringEntryProto {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
        ..Default::default()
    });
    let body = proto::GraphProto {
        node: nodes.collect(),
        name: if graph.name.is_empty() {
            "graph".into()
        } else {
            graph.name.clone()
        },
        initializer: graph
            .constants
            .iter()
            .map(|(v, c)| c.to_proto(&name(*v), folder))
            .collect(),
        input: graph.inputs.iter().map(info).collect(),
        output: graph.outputs.iter().map(info).collect(),
        ..Default::default()
    };
    let import = |domain: &str, version| proto::OperatorSetIdProto {
        domain: domain.to_owned(),
        version,
    };
    let model = proto::ModelProto {
        ir_version: graph.ir_version,
        opset_import: std::iter::once(import("", graph.opset))
            .chain(graph.other_opsets.iter().map(|(d, v)| import(d, *v)))
            .collect(),
        producer_name: "ortdpo".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(body),
        ..Default::default()
    };
    if model.encoded_len() > PROTOBUF_LIMIT {
        return Err(Error::bad(
            format!("graph `{}`", graph.name),
            "is larger than 2 GB, which an .onnx file cannot hold",
            "Export the model with external data; ortdpo then leaves the weights in their own file.",
        ));
    }
    Ok(model.encode_to_vec())
}

fn value_info(name: String, ty: &TensorType) -> proto::ValueInfoProto {
    let dim = |d: &usize| proto::Dimension {
        value: Some(DimensionValue::Value(*d as i64)),
    };
    let tensor = proto::TensorTypeProto {
        elem_type: dtype_to_onnx(ty.dtype),
        shape: Some(proto::TensorShapeProto {
            dim: ty.shape.iter().map(dim).collect(),
        }),
    };
    proto::ValueInfoProto {
        name,
        r#type: Some(proto::TypeProto {
            tensor_type: Some(tensor),
        }),
        ..Default::default()
    }
}

/// The node's own name, numbered where branches of one network repeat it; nodes without a name need none.
fn unique_node_name(name: &str, taken: &mut HashSet<String>) -> String {
    let mut unique = name.to_owned();
    let mut number = 2;
    while !name.is_empty() && !taken.insert(unique.clone()) {
        unique = format!("{name}~{number}");
        number += 1;
    }
    unique
}

/// A name for every value: its own where that is free, a made-up one otherwise. Inputs, outputs and constants come first.
fn unique_names(graph: &Graph) -> Vec<String> {
    let mut names = vec![String::new(); graph.value_count()];
    let mut taken = HashSet::new();
    let fixed = graph
        .inputs
        .iter()
        .chain(&graph.outputs)
        .chain(graph.constants.keys())
        .copied();
    let rest = graph
        .nodes
        .iter()
        .flat_map(|n| n.outputs.iter().flatten().copied());
    for v in fixed.chain(rest) {
        let slot = v.0 as usize;
        if !names[slot].is_empty() {
            continue;
        }
        let mut name = graph.name(v);
        while !taken.insert(name.clone()) {
            name = format!("{name}_{slot}");
        }
        names[slot] = name;
    }
    names
}
