//! Tensors of zeros that a model adds to others.
//!
//! PyTorch's `baddbmm(empty, q, k, beta=0)`, the attention of diffusers, is exported as `0 · empty + q·k` with an `empty`
//! as large as the attention matrix. Left alone, the zeros are folded (a gigabyte for 4096 tokens) and added in every
//! run. Here they are recognised by how they are made, without computing them, and the addition hands on its other
//! operand.

use std::collections::HashSet;

use super::attr::Attr;
use super::graph::{Graph, Node, ValueId};
use super::infer;
use super::view::View;

/// Zeros of up to this many elements are folded like all small numbers.
const SMALL: usize = 1 << 12;

/// The values found to be zero everywhere.
#[derive(Debug, Default)]
pub(super) struct Zeros(HashSet<ValueId>);

impl Zeros {
    /// Remembers what a node that [`makes_zeros`](Self::makes_zeros) made.
    pub fn extend(&mut self, values: impl IntoIterator<Item = ValueId>) {
        self.0.extend(values);
    }

    /// Whether `node` makes a large tensor of zeros and nothing else.
    pub fn makes_zeros(&self, graph: &Graph, node: &Node) -> bool {
        let zero = |i| node.input(i).is_some_and(|v| self.0.contains(&v));
        let finite = |i| numbers(graph, node, i).is_some_and(|n| n.iter().all(|x| x.is_finite()));
        match node.op.as_str() {
            "ConstantOfShape" => fills_with_zero(node) && is_large(graph, node),
            "Mul" => zero(0) && (zero(1) || finite(1)) || zero(1) && finite(0),
            _ => false,
        }
    }

    /// The operand that `node` hands on because the other one is zero, if it is such an addition.
    pub fn untouched(&self, graph: &Graph, node: &Node) -> Option<ValueId> {
        let zero = |i| {
            node.input(i).is_some_and(|v| self.0.contains(&v))
                || numbers(graph, node, i).is_some_and(|n| n.iter().all(|x| *x == 0.0))
        };
        let kept = match node.op.as_str() {
            "Add" if zero(1) => 0,
            "Add" if zero(0) => 1,
            "Sub" if zero(1) => 0,
            _ => return None,
        };
        let ty = infer::infer(graph, node, 1).ok()?.swap_remove(0);
        node.input(kept).filter(|v| *graph.ty(*v) == ty)
    }
}

/// Floats that input `i` is known to hold, unless it is a parameter or made from one: those may change.
fn numbers(graph: &Graph, node: &Node, i: usize) -> Option<Vec<f64>> {
    let value = node.input(i)?;
    let fixed = graph.constants.contains_key(&value) && !graph.parameters.contains(&value);
    fixed.then(|| graph.constant_floats(value)).flatten()
}

fn fills_with_zero(node: &Node) -> bool {
    match node.attrs.get("value") {
        None => true,
        Some(Attr::Tensor(c)) => c.to_floats().is_some_and(|n| n.iter().all(|x| *x == 0.0)),
        Some(_) => false,
    }
}

fn is_large(graph: &Graph, node: &Node) -> bool {
    View::new(graph, node).ints(0).is_ok_and(|dims| {
        dims.is_some_and(|dims| dims.iter().try_fold(1, |n: i64, d| n.checked_mul(*d)) > Some(SMALL as i64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Attrs, Constant, TensorType};
    use crate::tensor::DType;

    /// A graph with `x` f32[2,3] and the node `op(x, other)`, not yet part of it.
    fn with(op: &str, other: &[usize], value: f64, parameter: bool) -> (Graph, Node) {
        let mut g = Graph::new("zeros", 17);
        let x = g.add_input("x", TensorType::new(DType::F32, [2, 3]));
        let count = other.iter().product();
        let k = g.add_constant("k", Constant::floats(DType::F32, other, &vec![value; count]));
        if parameter {
            g.parameters.insert(k);
        }
        let node = Node {
            op: op.into(),
            domain: String::new(),
            name: String::new(),
            inputs: vec![Some(x), Some(k)],
            outputs: Vec::new(),
            attrs: Attrs::new(),
            metadata: Vec::new(),
        };
        (g, node)
    }

    #[test]
    fn only_an_addition_of_zeros_that_keeps_the_shape_disappears() {
        let kept = |op, other: &[usize], value, parameter| {
            let (g, node) = with(op, other, value, parameter);
            Zeros::default().untouched(&g, &node) == Some(g.inputs[0])
        };
        assert!(kept("Add", &[3], 0.0, false) && kept("Sub", &[], 0.0, false));
        assert!(!kept("Add", &[3], 0.5, false));
        assert!(!kept("Add", &[4, 1, 1], 0.0, false), "it broadcasts");
        assert!(
            !kept("Add", &[3], 0.0, true),
            "a bias that is zero at first may be trained"
        );
        assert!(!kept("Mul", &[3], 0.0, false));
    }

    #[test]
    fn zeros_times_a_finite_number_are_zeros() {
        for (number, expected) in [(0.0, true), (2.0, true), (f64::INFINITY, false)] {
            let (g, node) = with("Mul", &[], number, false);
            let mut zeros = Zeros::default();
            assert!(!zeros.makes_zeros(&g, &node), "x may hold anything");
            zeros.extend([g.inputs[0]]);
            assert_eq!(zeros.makes_zeros(&g, &node), expected);
        }
    }
}
