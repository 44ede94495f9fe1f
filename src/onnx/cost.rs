//! What a node has to do: floating-point operations, and bytes read and written.

use std::collections::HashMap;

use super::data::Constant;
use super::graph::{Graph, Node, TensorType, ValueId};
use crate::kernels::ATTENTION_GRADIENT;
use crate::{Error, Result};

/// Float constants of up to this many elements are settings, such as the scales of a `Resize`, not weights.
const SETTING: usize = 8;

/// Work of one node.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    /// Multiplications and additions of convolutions and matrix products; other operators are bound by memory.
    pub flops: f64,
    /// Bytes of all inputs and outputs; none for operators that only see memory in another shape.
    pub bytes: f64,
}

impl Graph {
    /// Work of `node`.
    pub fn work(&self, node: &Node) -> Work {
        if node.is_view() || matches!(node.op.as_str(), "Size" | "Shape") {
            return Work::default();
        }
        let size = |v: &ValueId| (self.ty(*v).len() * self.dtype(*v).size()) as f64;
        let values = node.inputs.iter().chain(&node.outputs).flatten();
        Work {
            flops: self.flops(node).unwrap_or(0.0),
            bytes: values.map(size).sum(),
        }
    }

    fn flops(&self, node: &Node) -> Option<f64> {
        let len = |v: ValueId| self.ty(v).len() as f64;
        let (x, y) = (node.input(0)?, node.output(0)?);
        let w = node.input(1);
        let pairs = match node.op.as_str() {
            "Conv" => len(y) * len(w?) / self.shape(w?)[0] as f64,
            "ConvTranspose" => len(x) * len(w?) / self.shape(w?)[0] as f64,
            // Queries by keys, and shares by values.
            "MultiHeadAttention" => 2.0 * len(x) * *self.shape(w?).get(1)? as f64,
            // Scores and the gradients of shares, queries, keys and values.
            ATTENTION_GRADIENT => 5.0 * len(x) * *self.shape(w?).get(1)? as f64,
            "MatMul" => len(y) * *self.shape(x).last()? as f64,
            "Gemm" => {
                let inner = if node.attrs.get_int("transA", 0) != 0 {
                    0
                } else {
                    1
                };
                len(y) * self.shape(x)[inner] as f64
            }
            _ => return None,
        };
        Some(2.0 * pairs)
    }

    /// A graph of this node alone, its operands as inputs; integers stay constants, and so do weights if `weights`, all zero.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn alone(&self, node: &Node, weights: bool) -> Result<Graph> {
        self.part_alone(node, weights, 1)
    }

    /// As [`Graph::alone`], with one of `parts` equal parts of the batch: of the operands that are computed, those with as many rows as
    /// the first of them have so much fewer.
    ///
    /// # Errors
    /// The rows cannot be divided so, or the node does something else with rows than going through them.
    pub fn part_alone(&self, node: &Node, weights: bool, parts: usize) -> Result<Graph> {
        let computed = node
            .inputs
            .iter()
            .flatten()
            .filter(|v| !self.constants.contains_key(*v));
        let rows = computed.filter_map(|v| self.shape(*v).first().copied()).next();
        if parts > 1 && rows.is_none_or(|rows| !rows.is_multiple_of(parts)) {
            return Err(Error::bad(
                &node.op,
                format!("has no rows that are {parts} parts"),
                "Leave it whole.",
            ));
        }
        let mut graph = Graph::new("one_node", self.opset);
        graph.other_opsets.clone_from(&self.other_opsets);
        graph.ir_version = self.ir_version;
        let mut given: HashMap<ValueId, ValueId> = HashMap::new();
        let mut copy = node.clone();
        for v in copy.inputs.iter_mut().flatten() {
            let own = match given.get(v) {
                Some(own) => *own,
                None => self.operand(&mut graph, *v, weights, (rows, parts)),
            };
            given.insert(*v, own);
            *v = own;
        }
        let names: Vec<Option<String>> = (0..node.outputs.len())
            .map(|k| node.output(k).map(|_| format!("y{k}")))
            .collect();
        let names: Vec<Option<&str>> = names.iter().map(Option::as_deref).collect();
        // Those of the other graph mean nothing here.
        copy.outputs.clear();
        let made = graph.add_node(copy, &names)?;
        graph.outputs = made.into_iter().flatten().collect();
        Ok(graph)
    }

    fn operand(
        &self,
        graph: &mut Graph,
        value: ValueId,
        weights: bool,
        (rows, parts): (Option<usize>, usize),
    ) -> ValueId {
        let mut ty = self.ty(value).clone();
        if !self.constants.contains_key(&value) && ty.shape.first().copied() == rows {
            ty.shape.iter_mut().take(1).for_each(|rows| *rows /= parts);
        }
        let name = format!("x{}", value.0);
        match self.number(value) {
            Some(constant) if !ty.dtype.is_float() || ty.len() <= SETTING => {
                graph.add_constant(&name, constant.clone())
            }
            Some(_) if weights => {
                let zeros = vec![0.0; ty.len()];
                graph.add_constant(&name, Constant::floats(ty.dtype, &ty.shape, &zeros))
            }
            _ => graph.add_input(&name, ty),
        }
    }

    /// What tells nodes apart that take different times: operator, attributes, and the types of its operands, constants marked.
    pub fn kind_of_work(&self, node: &Node) -> String {
        let operand = |v: &Option<ValueId>| match v {
            None => "-".to_owned(),
            Some(v) => {
                let ty: &TensorType = self.ty(*v);
                let constant = if self.constants.contains_key(v) { "!" } else { "" };
                format!("{ty}{constant}")
            }
        };
        let operands: Vec<String> = node.inputs.iter().map(operand).collect();
        format!("{}({}){:?}", node.op, operands.join(","), node.attrs)
    }
}

/// Bytes of the float constants of `graph`, which are its weights.
pub fn weight_bytes(graph: &Graph) -> usize {
    let floats = graph.constants.values().filter(|c| c.dtype.is_float());
    floats
        .map(|c| c.shape.iter().product::<usize>() * c.dtype.size())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_batch_has_its_share_of_the_work() {
        let mut g = Graph::new("rows", 17);
        let x = g.add_input("x", TensorType::new(DType::F32, [8, 3, 4, 4]));
        let w = g.add_constant("w", Constant::floats(DType::F32, &[8, 3, 1, 1], &[0.0; 24]));
        let y = g.op("Conv", &[x, w], Attrs::new()).unwrap();
        let z = g.add_input("z", TensorType::new(DType::F32, [5, 8]));
        let rows = g.reshape(y, &[8, 128]).unwrap();
        g.matmul(z, rows).unwrap();
        let part = g.part_alone(&g.nodes[0], true, 4).unwrap();
        // Weights keep their rows, though there are as many of them.
        assert_eq!(part.shape(part.outputs[0]), [2, 8, 4, 4]);
        let [whole, quarter] = [g.work(&g.nodes[0]), part.work(&part.nodes[0])].map(|w| w.flops);
        assert_eq!(whole, 4.0 * quarter);
        let product = g.nodes.last().unwrap();
        // 5 rows are not 4 parts; and a fifth of them is a row.
        assert!(g.part_alone(product, true, 4).is_err());
        let row = g.part_alone(product, true, 5).unwrap();
        assert_eq!(row.shape(row.outputs[0]), [1, 128]);
        assert!(g.part_alone(&g.nodes[0], true, 3).is_err());
    }
    use crate::onnx::{Attrs, validate};
    use crate::tensor::DType;

    #[test]
    fn products_and_convolutions_are_counted() {
        let mut g = Graph::new("work", 17);
        let x = g.add_input("x", TensorType::new(DType::F32, [2, 3, 8, 8]));
        let w = g.add_constant("w", Constant::floats(DType::F32, &[5, 3, 3, 3], &[0.0; 135]));
        let attrs = Attrs::new().ints("pads", &[1, 1, 1, 1]);
        let y = g.op("Conv", &[x, w], attrs).unwrap();
        let y = g.reshape(y, &[2, 5, 64]).unwrap();
        let yt = g.transpose(y, &[0, 2, 1]).unwrap();
        g.matmul(y, yt).unwrap();
        let work: Vec<Work> = g.nodes.iter().map(|n| g.work(n)).collect();
        assert_eq!(work[0].flops, (2 * 2 * 5 * 64 * 27) as f64);
        assert_eq!(work[1], Work::default());
        assert_eq!(
            work[2],
            Work {
                flops: 0.0,
                bytes: (2 * 4 * 2 * 5 * 64) as f64
            }
        );
        assert_eq!(work[3].flops, (2 * 2 * 5 * 5 * 64) as f64);
        for node in &g.nodes {
            for weights in [false, true] {
                validate(&g.alone(node, weights).unwrap()).unwrap();
            }
        }
    }
}
