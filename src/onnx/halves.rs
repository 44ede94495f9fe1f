//! Weights stored in half precision under arithmetic in another precision.
//!
//! [`compute_in`] takes a model exported in f16 or bf16 and makes all its values f32, or bf16; its weights stay as they are in
//! their file. From then on a constant may be of f32 to the graph and of f16 to its file. Before such a graph is run,
//! [`cast_where_used`] adds a `Cast` in front of every node that reads one. Each cast waits for the node's other operand:
//! a runtime can neither fold nor share it, and the copy of a weight lives only while one node needs it.

use std::collections::HashMap;

use super::attr::Attr;
use super::data::{Constant, TensorData};
use super::graph::{Graph, Node, ValueId};
use crate::Result;
use crate::tensor::DType;

/// Makes every value of half precision one of `dtype`. Weights in other files keep their bytes.
///
/// # Errors
/// None that a caller can cause.
pub fn compute_in(mut graph: Graph, dtype: DType) -> Result<Graph> {
    for value in &mut graph.values {
        if value.ty.dtype.is_half() {
            value.ty.dtype = dtype;
        }
    }
    let half_constants = graph.constants.values_mut().chain(graph.folded.values_mut());
    half_constants.for_each(|constant| convert_small(constant, dtype));
    for node in &mut graph.nodes {
        for (name, attr) in &mut node.attrs.0 {
            match attr {
                Attr::Int(to) if node.op == "Cast" && name == "to" => {
                    if let Ok(to_half) = super::data::dtype_from_onnx(*to as i32, "Cast")
                        && to_half.is_half()
                    {
                        *to = super::data::dtype_to_onnx(dtype).into();
                    }
                }
                Attr::Tensor(constant) => convert_small(constant, dtype),
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

/// Small constants in the model file are converted at once.
fn convert_small(constant: &mut Constant, dtype: DType) {
    if constant.dtype.is_half()
        && constant.dtype != dtype
        && constant.len() <= SMALL
        && matches!(constant.data, TensorData::Inline(_))
        && let Some(values) = constant.to_floats()
    {
        *constant = Constant::floats(dtype, &constant.shape.clone(), &values);
    }
}

/// Whether some weight is stored in half precision and used in another.
pub fn has_half_weights(graph: &Graph) -> bool {
    stored_otherwise(graph).next().is_some()
}

/// Weights that are stored in half precision and used in another.
fn stored_otherwise(graph: &Graph) -> impl Iterator<Item = (ValueId, Conversion)> {
    graph.constants.iter().filter_map(|(v, constant)| {
        let conversion = Conversion {
            stored: constant.dtype,
            used: graph.dtype(*v),
        };
        (constant.dtype.is_half() && conversion.stored != conversion.used).then_some((*v, conversion))
    })
}

/// Adds the casts that a graph with such weights needs to be run.
///
/// # Errors
/// None that a caller can cause.
pub fn cast_where_used(graph: &mut Graph) -> Result<()> {
    let mut made_of_weights = Casts {
        stored: stored_otherwise(graph).collect(),
        derived: HashMap::new(),
    };
    if made_of_weights.stored.is_empty() {
        return Ok(());
    }
    for (v, conversion) in &made_of_weights.stored {
        graph.values[v.0 as usize].ty.dtype = conversion.stored;
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
            *v = made_of_weights.converted(graph, *v, operand)?;
        }
        graph.nodes.push(node);
    }
    Ok(())
}

/// From what is in a file to what a graph computes with.
#[derive(Clone, Copy)]
struct Conversion {
    stored: DType,
    used: DType,
}

/// Weights and what nodes make of weights alone.
struct Casts {
    stored: HashMap<ValueId, Conversion>,
    derived: HashMap<ValueId, Node>,
}

impl Casts {
    fn is_one(&self, value: ValueId) -> bool {
        self.stored.contains_key(&value) || self.derived.contains_key(&value)
    }

    /// `value` in the precision it is used in, after `operand` where there is one.
    fn converted(&self, graph: &mut Graph, value: ValueId, operand: Option<ValueId>) -> Result<ValueId> {
        if let Some(conversion) = self.stored.get(&value) {
            let start = match operand {
                None => value,
                Some(operand) => {
                    let token = graph.token(&[operand])?;
                    graph.after(value, token)?
                }
            };
            return graph.cast(start, conversion.used);
        }
        let Some(node) = self.derived.get(&value) else {
            return Ok(value);
        };
        let mut copy = node.clone();
        for v in copy.inputs.iter_mut().flatten() {
            *v = self.converted(graph, *v, operand)?;
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
        let g = compute_in(half(), DType::F32).unwrap();
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
        for dtype in [DType::F32, DType::BF16] {
            let mut g = compute_in(half(), dtype).unwrap();
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
            assert_eq!(g.dtype(g.outputs[0]), dtype);
        }
    }
}
