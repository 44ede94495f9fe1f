//! Weights stored in half precision under arithmetic in another precision.
//!
//! [`compute_in`] takes a model exported in f16 or bf16 and makes all its values f32, or bf16; its weights stay as they are in
//! their file. From then on a constant may be of f32 to the graph and of f16 to its file. Before such a graph is run,
//! [`cast_where_used`] adds a `Cast` in front of every node that reads one. Each cast waits for the node's other operand:
//! a runtime can neither fold nor share it, and the copy of a weight lives only while one node needs it.

use std::collections::HashMap;

use crate::Result;
use crate::onnx::attr::Attr;
use crate::onnx::data::{Constant, TensorData};
use crate::onnx::graph::{Graph, Node, ValueId};
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
    let parameters = &graph.parameters;
    for (v, constant) in &mut graph.constants {
        // Weights that may be trained begin with all their digits.
        if !parameters.contains(v) || keeps_all(constant, dtype) {
            convert_small(constant, dtype);
        }
    }
    graph
        .folded
        .values_mut()
        .for_each(|constant| convert_small(constant, dtype));
    for node in &mut graph.nodes {
        for (name, attr) in &mut node.attrs.0 {
            match attr {
                Attr::Int(to) if node.op == "Cast" && name == "to" => {
                    if let Ok(to_half) = crate::onnx::data::dtype_from_onnx(*to as i32, "Cast")
                        && to_half.is_half()
                    {
                        *to = crate::onnx::data::dtype_to_onnx(dtype).into();
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

/// Makes an input of half precision one of single precision, with all that is the same numbers in other shapes, where nothing but
/// casts reads them: bfloat16 has no 999, and exports in f16 take timesteps in f16.
pub fn keep_single(graph: &mut Graph, input: &str) {
    let Some(input) = graph.inputs.iter().copied().find(|v| graph.name(*v) == input) else {
        return;
    };
    let mut same = vec![input];
    for node in &graph.nodes {
        let moves = [
            "Expand",
            "Flatten",
            "Identity",
            "Reshape",
            "Squeeze",
            "Tile",
            "Unsqueeze",
        ];
        match node.input(0).filter(|v| same.contains(v)) {
            Some(_) if moves.contains(&node.op.as_str()) => same.extend(node.output(0)),
            Some(_) if node.op == "Cast" => {}
            None if !node.inputs.iter().flatten().any(|v| same.contains(v)) => {}
            _ => return,
        }
    }
    for v in same {
        if graph.dtype(v).is_half() {
            graph.values[v.0 as usize].ty.dtype = DType::F32;
        }
    }
    graph.known.clear();
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

/// Whether the numbers of a small constant are numbers of `dtype`, too; those of a single number are taken for such.
fn keeps_all(constant: &Constant, dtype: DType) -> bool {
    let exact = |values: Vec<f64>| {
        let rounded = Constant::floats(dtype, &constant.shape, &values).to_floats();
        rounded.is_some_and(|rounded| rounded == values)
    };
    constant.len() <= 1 || constant.len() <= SMALL && constant.to_floats().is_some_and(exact)
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
    fn timesteps_keep_their_digits_where_only_casts_read_them() {
        let timesteps = |reads: &str| {
            let mut g = Graph::new("time", 20);
            let t = g.add_input("timestep", TensorType::new(DType::F16, [2]));
            let column = g.reshape(t, &[2, 1]).unwrap();
            let wide = match reads {
                "Cast" => g.cast(column, DType::F32).unwrap(),
                other => g.op(other, &[column], Attrs::new()).unwrap(),
            };
            let y = g.as_output(wide, "y").unwrap();
            g.outputs.push(y);
            let mut g = compute_in(g, DType::BF16).unwrap();
            keep_single(&mut g, "timestep");
            validate(&g).unwrap();
            g.dtype(t)
        };
        assert_eq!(timesteps("Cast"), DType::F32);
        assert_eq!(timesteps("Neg"), DType::BF16);
    }

    #[test]
    fn parameters_keep_what_they_are_stored_as_and_other_small_numbers_do_not() {
        let mut g = half();
        let x = g.inputs[0];
        let inexact = Constant::floats(DType::F16, &[3], &[1.001, 2.0, 3.0]);
        let bias = g.add_constant("bias", inexact.clone());
        let ones = g.add_constant("ones", Constant::floats(DType::F16, &[3], &[1.0; 3]));
        let other = g.add_constant("other", inexact);
        g.parameters.extend([bias, ones]);
        let sum = g.add(x, bias).unwrap();
        let sum = g.add(sum, other).unwrap();
        let product = g.mul(sum, ones).unwrap();
        g.outputs.push(product);
        let g = compute_in(g, DType::BF16).unwrap();
        let stored = [bias, ones, other].map(|v| g.constants[&v].dtype);
        assert_eq!(stored, [DType::F16, DType::BF16, DType::BF16]);
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
