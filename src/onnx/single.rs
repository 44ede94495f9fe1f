//! A model in half precision as one that computes in single precision, its dimensions left open.
//!
//! Where a graph is static, [`halves`](super::rewrite::halves) does this without wide copies of the weights. Here every stored weight
//! `w` becomes `w.stored`, read by a `Cast` that gives `w`: nothing that uses it changes. A runtime folds those casts.

use std::collections::HashSet;

use prost::Message;

use super::data::{Constant, dtype_from_onnx, dtype_to_onnx};
use super::proto::{AttributeProto, AttributeType, GraphProto, NodeProto, TensorProto, ValueInfoProto};
use super::read::Model;
use crate::Result;
use crate::tensor::DType;

impl Model {
    /// The model as bytes, its values of half precision turned into single precision; external data stays where it is. `None`
    /// if it has none of half precision.
    ///
    /// # Errors
    /// A tensor is damaged.
    pub fn in_single_precision(&self) -> Result<Option<Vec<u8>>> {
        let mut proto = self.proto.clone();
        let mut found = proto.graph.as_mut().map_or(Ok(false), widen_graph)?;
        for function in &mut proto.functions {
            found |= widen_nodes(&mut function.node)?;
        }
        Ok(found.then(|| proto.encode_to_vec()))
    }

    /// Whether any of its values is of half precision.
    ///
    /// # Errors
    /// A tensor is damaged.
    pub fn has_halves(&self) -> Result<bool> {
        Ok(self.in_single_precision()?.is_some())
    }
}

fn is_half(number: i32) -> bool {
    dtype_from_onnx(number, "").is_ok_and(DType::is_half)
}

fn single() -> i32 {
    dtype_to_onnx(DType::F32)
}

/// Whether anything had to be changed.
fn widen_graph(graph: &mut GraphProto) -> Result<bool> {
    let mut found = widen_nodes(&mut graph.node)?;
    let mut casts = Vec::new();
    for tensor in graph.initializer.iter_mut().filter(|t| is_half(t.data_type)) {
        let name = tensor.name.clone();
        tensor.name = format!("{name}.stored");
        casts.push(cast(&tensor.name, name));
    }
    found |= !casts.is_empty();
    // Older files list weights among the inputs; those have a node of their own now.
    let made: HashSet<&str> = casts.iter().map(|node| node.output[0].as_str()).collect();
    graph.input.retain(|input| !made.contains(input.name.as_str()));
    graph.node.splice(..0, casts);
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        found |= widen_value(value);
    }
    // A runtime infers them again.
    graph.value_info.clear();
    Ok(found)
}

fn cast(stored: &str, name: String) -> NodeProto {
    let to = AttributeProto {
        name: "to".into(),
        r#type: AttributeType::Int.into(),
        i: single().into(),
        ..Default::default()
    };
    NodeProto {
        input: vec![stored.to_owned()],
        name: format!("{name}.cast"),
        output: vec![name],
        op_type: "Cast".into(),
        attribute: vec![to],
        ..Default::default()
    }
}

fn widen_value(value: &mut ValueInfoProto) -> bool {
    let tensor = value.r#type.as_mut().and_then(|ty| ty.tensor_type.as_mut());
    match tensor {
        Some(tensor) if is_half(tensor.elem_type) => {
            tensor.elem_type = single();
            true
        }
        _ => false,
    }
}

fn widen_nodes(nodes: &mut [NodeProto]) -> Result<bool> {
    let mut found = false;
    for node in nodes {
        let is_cast = node.op_type == "Cast";
        for attribute in &mut node.attribute {
            // What names an element type: `to` of casts, `dtype` of operators that make values.
            let names_type = attribute.name == "dtype" || is_cast && attribute.name == "to";
            if names_type && i32::try_from(attribute.i).is_ok_and(is_half) {
                attribute.i = single().into();
                found = true;
            }
            if let Some(tensor) = &mut attribute.t {
                found |= widen_tensor(tensor)?;
            }
            if let Some(graph) = &mut attribute.g {
                found |= widen_graph(graph)?;
            }
        }
    }
    Ok(found)
}

/// A tensor in an attribute, which is in the model file.
fn widen_tensor(tensor: &mut TensorProto) -> Result<bool> {
    if !is_half(tensor.data_type) {
        return Ok(false);
    }
    let constant = Constant::from_proto(tensor, None)?;
    let values = constant.read_floats(&tensor.name)?;
    *tensor = Constant::floats(DType::F32, &constant.shape, &values).to_proto(&tensor.name, None);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::onnx::{Attrs, Graph, TensorType, write};
    use crate::runtime::{Session, SessionOptions, TensorView};
    use crate::tensor::Tensor;

    /// `y = (x·300)·w / 300` in `dtype`, and a cast on the way: too large for half precision.
    fn model(dtype: DType) -> Model {
        let mut g = Graph::new("half", 17);
        let x = g.add_input("x", TensorType::new(dtype, [2]));
        let w = g.add_constant("w", Constant::floats(dtype, &[2], &[1000.0, 2000.0]));
        let large = g.scale(x, 300.0).unwrap();
        let large = g.mul(large, w).unwrap();
        let to = Attrs::new().int("to", dtype_to_onnx(dtype).into());
        let large = g.op("Cast", &[large], to).unwrap();
        let y = g.scale(large, 1.0 / 300.0).unwrap();
        let y = g.as_output(y, "y").unwrap();
        g.outputs.push(y);
        Model::parse(write::to_bytes(&g, None).unwrap().into(), Path::new("half.onnx")).unwrap()
    }

    #[test]
    fn what_overflows_in_half_precision_is_computed() {
        for dtype in [DType::F16, DType::BF16] {
            let bytes = model(dtype).in_single_precision().unwrap().unwrap();
            let mut session = Session::from_bytes(&bytes, None, &SessionOptions::default()).unwrap();
            assert_eq!(session.inputs()[0].dtype, DType::F32);
            let x = ndarray::arr1(&[1.0_f32, 2.0]).into_dyn();
            let x = Tensor::from_floats("x", x, DType::F32).unwrap();
            let y = session
                .run(&[("x", TensorView::from(&x))])
                .unwrap()
                .take("y")
                .unwrap();
            let y = y.into_f32("y").unwrap();
            let expected = [1000.0, 4000.0];
            let near = |(found, wanted): (&f32, f32)| (found / wanted - 1.0).abs() < 0.02;
            assert!(y.iter().zip(expected).all(near), "{dtype}: {y}");
        }
        assert!(!model(DType::F32).has_halves().unwrap());
    }
}
