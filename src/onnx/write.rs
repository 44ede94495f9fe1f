//! Writing a graph as an ONNX model.

use std::collections::HashSet;
use std::path::Path;

use prost::Message;

use super::data::{TensorData, dtype_to_onnx};
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

/// Writes `graph` to `path`, all or nothing. External data that lies in another folder is hard-linked beside it (copied
/// where links are not possible), because ONNX Runtime only reads data files from the model's own folder.
pub fn save(graph: &Graph, path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut graph = graph.clone();
    bring_data(&mut graph, folder)?;
    let bytes = to_bytes(&graph, Some(folder))?;
    crate::fsutil::write_atomically(path, &bytes)
}

/// Makes every external data file reachable from `folder`.
fn bring_data(graph: &mut Graph, folder: &Path) -> Result<()> {
    let home = std::fs::canonicalize(folder).map_err(Error::io(folder, "open"))?;
    for constant in graph.constants.values_mut() {
        let TensorData::External { file, .. } = &mut constant.data else {
            continue;
        };
        let from = std::fs::canonicalize(file.as_path()).map_err(Error::io(file.as_path(), "open"))?;
        let near = if from.starts_with(&home) {
            folder.join(from.strip_prefix(&home).expect("just tested"))
        } else {
            let near = folder.join(from.file_name().expect("a data file has a name"));
            if !same_file(&from, &near)? {
                std::fs::hard_link(&from, &near)
                    .or_else(|_| std::fs::copy(&from, &near).map(|_| ()))
                    .map_err(Error::io(&near, "write"))?;
            }
            near
        };
        *file = std::sync::Arc::new(near);
    }
    Ok(())
}

/// Whether `near` already is the data of `from`; a different file of that name is an error.
fn same_file(from: &Path, near: &Path) -> Result<bool> {
    let Ok(there) = std::fs::metadata(near) else {
        return Ok(false);
    };
    let wanted = std::fs::metadata(from).map_err(Error::io(from, "read"))?;
    if there.len() == wanted.len() && there.modified().ok() == wanted.modified().ok() {
        return Ok(true);
    }
    Err(Error::bad(
        near.display().to_string(),
        "is in the way: the derived model needs the weights of its source under that name",
        "Write the derived model into another folder, or beside its source.",
    ))
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
