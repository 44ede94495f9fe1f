//! Weights in half precision under arithmetic in single precision.
//!
//! [`widen`] takes a model exported in f16 or bf16 and makes all its values f32; its weights stay as they are in their file.
//! From then on a constant may be of f32 to the graph and of f16 to its file. Before such a graph is run,
//! [`cast_where_used`] adds a `Cast` in front of every node that reads one. Each cast waits for the node's other operand:
//! a runtime can neither fold nor share it, and the wide copy of a weight lives only while one node needs it.

use std::collections::HashMap;

use super::attr::Attr;
use super::data::{Constant, TensorData};
use super::graph::{Graph, Node, ValueId};
use crate::Result;
use crate::tensor::DType;

/// Makes every value of half precision one of single precision. Weights in other files keep their bytes.
///
/// # Errors
/// None that a caller can cause.
pub fn widen(mut graph: Graph) -> Result<Graph> {
    for value in &mut graph.values {
        if value.ty.dtype.is_half() {
            value.ty.dtype = DType::F32;
        }
    }
    let half_constants = graph.constants.values_mut().chain(graph.folded.values_mut());
    half_constants.for_each(widen_inline);
    for node in &mut graph.nodes {
        for (name, attr) in &mut node.attrs.0 {
            match attr {
                Attr::Int(to) if node.op == "Cast" && name == "to" => {
                    if let Ok(dtype) = super::data::dtype_from_onnx(*to as i32, "Cast")
                        && dtype.is_half()
                    {
                        *to = super::data::dtype_to_onnx(DType::F32).into();
                    }
                }
                Attr::Tensor(constant) => widen_inline(constant),
                _ => {}
            }
        }
    }
    graph.known.clear();
    graph.literals.clear();
    Ok(graph)
}

/// Larger constants are weights, wherever they are.
const SMALL: usize = 1024;

/// Small constants in the model file become wide at once.
fn widen_inline(constant: &mut Constant) {
    if constant.dtype.is_half()
        && constant.len() <= SMALL
        && matches!(constant.data, TensorData::Inline(_))
        && let Some(values) = constant.to_floats()
    {
        *constant = Constant::floats(DType::F32, &constant.shape.clone(), &values);
    }
}

/// Whether some weight is stored in half precision and used in single precision.
pub fn has_half_weights(graph: &Graph) -> bool {
    let is_stored_half = |(v, c): (&ValueId, &Constant)| c.dtype.is_half() && !graph.dtype(*v).is_half();
    graph.constants.iter().any(is_stored_half)
}

/// Adds the casts that a graph with such weights needs to be run.
///
/// # Errors
/// None that a caller can cause.
pub fn cast_where_used(graph: &mut Graph) -> Result<()> {
    if !has_half_weights(graph) {
        return Ok(());
    }
    let mut made_of_weights = Casts::default();
    for (v, constant) in &graph.constants {
        if constant.dtype.is_half() && !graph.values[v.0 as usize].ty.dtype.is_half() {
            made_of_weights.stored.insert(*v, constant.dtype);
        }
    }
    for (v, dtype) in &made_of_weights.stored {
        graph.values[v.0 as usize].ty.dtype = *dtype;
    }
    // Nodes are put back one by one; none may be taken for one that is yet to come.
    graph.known.clear();
    let nodes = std::mem::take(&mut graph.nodes);
    for mut node in nodes {
        let reads = node.inputs.iter().flatten().any(|v| made_of_weights.is_one(*v));
        if !reads {
            graph.nodes.push(node);
            continue;
        }
        let operand = node.inputs.iter().flatten().copied().find(|v| {
            !made_of_weights.is_one(*v) && !graph.constants.contains_key(v) && !graph.inputs.contains(v)
        });
        let is_constant = node
            .inputs
            .iter()
            .flatten()
            .all(|v| made_of_weights.is_one(*v) || graph.constants.contains_key(v));
        let is_output = node.outputs.iter().flatten().any(|v| graph.outputs.contains(v));
        if is_constant && !is_output {
            // A weight turned or reshaped: made anew where it is used.
            for v in node.outputs.iter().flatten() {
                made_of_weights.derived.insert(*v, node.clone());
            }
            continue;
        }
        for v in node.inputs.iter_mut().flatten() {
            *v = made_of_weights.wide(graph, *v, operand)?;
        }
        graph.nodes.push(node);
    }
    Ok(())
}

/// Weights and what nodes make of weights alone.
#[derive(Default)]
struct Casts {
    stored: HashMap<ValueId, DType>,
    derived: HashMap<ValueId, Node>,
}

impl Casts {
    fn is_one(&self, value: ValueId) -> bool {
        self.stored.contains_key(&value) || self.derived.contains_key(&value)
    }

    /// `value` in single precision, after `operand` where there is one.
    fn wide(&self, graph: &mut Graph, value: ValueId, operand: Option<ValueId>) -> Result<ValueId> {
        if self.stored.contains_key(&value) {
            let start = match operand {
                None => value,
                Some(operand) => {
                    let token = graph.token(&[operand])?;
                    graph.after(value, token)?
                }
            };
            return graph.cast(start, DType::F32);
        }
        let Some(node) = self.derived.get(&value) else {
            return Ok(value);
        };
        let mut copy = node.clone();
        for v in copy.inputs.iter_mut().flatten() {
            *v = self.wide(graph, *v, operand)?;
        }
        let position = node.outputs.iter().position(|v| *v == Some(value));
        let names = vec![Some(""); node.outputs.len()];
        let made = graph.add_node(copy, &names)?;
        Ok(made[position.expect("the node makes the value")].expect("all outputs were asked for"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::onnx::{Attrs, TensorType, validate};

    /// `y = (x·w)·wᵀ·2` in f16, with `w` in a file.
    fn half() -> Graph {
        let mut g = Graph::new("half", 17);
        let x = g.add_input("x", TensorType::new(DType::F16, [2, 3]));
        let data = TensorData::External {
            file: Arc::new(PathBuf::from("weights")),
            offset: 0,
            length: 24,
        };
        let w = Constant {
            dtype: DType::F16,
            shape: vec![3, 4],
            data,
        };
        let w = g.add_constant("w", w);
        g.parameters.insert(w);
        let a = g.matmul(x, w).unwrap();
        let wt = g.transpose(w, &[1, 0]).unwrap();
        let b = g.matmul(a, wt).unwrap();
        let c = g.scale(b, 2.0).unwrap();
        let attrs = Attrs::new().int("to", 10);
        let d = g.op("Cast", &[c], attrs).unwrap();
        let y = g.as_output(d, "y").unwrap();
        g.outputs.push(y);
        g
    }

    #[test]
    fn values_become_wide_and_weights_stay_as_they_are_stored() {
        let g = widen(half()).unwrap();
        assert!(has_half_weights(&g));
        let types: Vec<DType> = g.inputs.iter().chain(&g.outputs).map(|v| g.dtype(*v)).collect();
        assert_eq!(types, [DType::F32, DType::F32]);
        let stored: Vec<DType> = g.constants.values().map(|c| c.dtype).collect();
        assert!(
            stored.contains(&DType::F16) && stored.contains(&DType::F32),
            "{stored:?}"
        );
    }

    #[test]
    fn every_use_has_a_cast_of_its_own_that_waits() {
        let mut g = widen(half()).unwrap();
        cast_where_used(&mut g).unwrap();
        g.prune();
        validate(&g).unwrap();
        let count = |op: &str| g.nodes.iter().filter(|n| n.op == op).count();
        // Two of the weight, and the model's own.
        assert_eq!(count("Cast"), 3);
        assert_eq!(count("Transpose"), 1);
        // The first product's other operand is an input, which is always there.
        assert_eq!(count("Size"), 1);
        assert!(!has_half_weights(&g));
    }
}
