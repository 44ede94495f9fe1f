//! Where a graph has attention: `softmax(s·Q·Kᵀ)·V`, as exporters write it.

use crate::Result;
use crate::onnx::{Graph, Node, ValueId, View};

/// One attention: its nodes from the scores to the product with the values, all but the last with a single reader.
pub(super) struct Attention {
    /// Positions of the nodes, in order.
    pub nodes: Vec<usize>,
    /// `Q`, `[…,N,D]`.
    pub queries: ValueId,
    /// `Kᵀ`, `[…,D,M]`.
    pub keys: ValueId,
    /// `V`, `[…,M,D]`.
    pub values: ValueId,
    /// `s`; `None` where there is more between the products than multiplications by a number.
    pub scale: Option<f64>,
    /// Bytes of the matrix of all queries by all keys.
    pub matrix_bytes: usize,
}

impl Attention {
    /// Puts what `make` adds to the graph in the place of the nodes; it returns what takes the place of the result.
    pub fn replace(&self, graph: &mut Graph, make: impl FnOnce(&mut Graph) -> Result<ValueId>) -> Result<()> {
        let last = *self.nodes.last().expect("an attention has nodes");
        let outputs = graph.nodes[last].outputs.clone();
        let made_from = graph.nodes.len();
        // What is made moves to before nodes that it might equal.
        graph.forget_equal_nodes();
        make(graph)?;
        graph.forget_equal_nodes();
        // The result takes the place and the value of the last node.
        let mut made = graph.nodes.split_off(made_from);
        made.last_mut().expect("nodes were made").outputs = outputs;
        graph.nodes.splice(last..=last, made);
        let gone = &self.nodes[..self.nodes.len() - 1];
        let mut i = 0;
        graph.nodes.retain(|_| {
            i += 1;
            !gone.contains(&(i - 1))
        });
        Ok(())
    }
}

/// All attentions, in the order of the graph.
pub(super) fn find(graph: &Graph) -> Vec<Attention> {
    let search = Search::new(graph);
    let softmaxes = graph.nodes.iter().enumerate().filter(|(_, n)| n.op == "Softmax");
    softmaxes.filter_map(|(i, node)| search.around(i, node)).collect()
}

/// Who makes and who reads the values of a graph.
pub(super) struct Search<'a> {
    graph: &'a Graph,
    producers: Vec<Option<usize>>,
    readers: Vec<Vec<usize>>,
}

impl<'a> Search<'a> {
    pub fn new(graph: &'a Graph) -> Self {
        let mut readers = vec![Vec::new(); graph.value_count()];
        for (i, node) in graph.nodes.iter().enumerate() {
            for v in node.inputs.iter().flatten() {
                readers[graph.index(*v)].push(i);
            }
        }
        for v in &graph.outputs {
            readers[graph.index(*v)].push(usize::MAX);
        }
        let producers = graph.producers();
        Self {
            graph,
            producers,
            readers,
        }
    }

    /// The node that makes a value.
    pub fn producer(&self, v: ValueId) -> Option<&'a Node> {
        Some(&self.graph.nodes[self.producers[self.graph.index(v)]?])
    }

    /// Position of the node that alone reads a value.
    pub fn only_reader(&self, v: ValueId) -> Option<usize> {
        match self.readers[self.graph.index(v)][..] {
            [one] if one != usize::MAX => Some(one),
            _ => None,
        }
    }

    /// The attention around the `Softmax` at position `i`.
    fn around(&self, i: usize, softmax: &Node) -> Option<Attention> {
        let graph = self.graph;
        let scores = softmax.input(0)?;
        let rank = graph.rank(scores);
        let is_last = View::new(graph, softmax).axis_attr(0, -1).ok()? + 1 == rank;
        if !is_last || rank < 2 {
            return None;
        }
        let mut nodes = vec![i];
        let (queries, keys, above) = self.up(scores, &mut nodes)?;
        nodes.reverse();
        let (values, below) = self.down(softmax.output(0)?, &mut nodes)?;
        (graph.rank(queries) == rank).then_some(Attention {
            nodes,
            queries,
            keys,
            values,
            // Shares are multiplied by nothing.
            scale: above.filter(|_| below == Some(1.0)),
            matrix_bytes: graph.ty(scores).len() * graph.dtype(scores).size(),
        })
    }

    /// From the scores up to the product of queries and keys, and what it is multiplied by on the way.
    fn up(&self, scores: ValueId, nodes: &mut Vec<usize>) -> Option<(ValueId, ValueId, Option<f64>)> {
        let (mut v, mut scale) = (scores, Some(1.0));
        loop {
            let made = self.producers[self.graph.index(v)]?;
            let node = &self.graph.nodes[made];
            self.only_reader(v)?;
            nodes.push(made);
            match node.op.as_str() {
                "MatMul" => return Some((node.input(0)?, node.input(1)?, scale)),
                _ => v = elementwise(self.graph, node)?,
            }
            scale = factor(self.graph, node, v).and_then(|f| Some(f * scale?));
        }
    }

    /// From the shares down to the product with the values, and what they are multiplied by on the way.
    fn down(&self, shares: ValueId, nodes: &mut Vec<usize>) -> Option<(ValueId, Option<f64>)> {
        let (mut v, mut scale) = (shares, Some(1.0));
        loop {
            let next = self.only_reader(v)?;
            let node = &self.graph.nodes[next];
            nodes.push(next);
            match node.op.as_str() {
                "MatMul" if node.input(0) == Some(v) => return Some((node.input(1)?, scale)),
                "MatMul" => return None,
                _ if elementwise(self.graph, node)? == v => {
                    scale = factor(self.graph, node, v).and_then(|f| Some(f * scale?));
                    v = node.output(0)?;
                }
                _ => return None,
            }
        }
    }
}

/// The input that `node` works on number by number, if there is at most a single number beside it.
fn elementwise(graph: &Graph, node: &Node) -> Option<ValueId> {
    let is_binary = match node.op.as_str() {
        "Cast" | "Identity" => false,
        "Mul" | "Div" | "Add" | "Sub" => true,
        _ => return None,
    };
    let shape = graph.shape(node.output(0)?);
    let given = || node.inputs.iter().flatten().copied();
    let numbers = given().filter(|v| graph.ty(*v).len() == 1).count();
    let found = given().find(|v| graph.shape(*v) == shape);
    if is_binary && numbers != 1 { None } else { found }
}

/// What `node` multiplies `value` by, if that is all it does.
fn factor(graph: &Graph, node: &Node, value: ValueId) -> Option<f64> {
    let number = |i: usize| {
        let constant = graph.constants.get(&node.input(i).filter(|v| *v != value)?)?;
        constant.to_floats()?.first().copied()
    };
    match node.op.as_str() {
        "Cast" | "Identity" => Some(1.0),
        "Mul" => number(0).or_else(|| number(1)),
        "Div" => number(1).map(|n| 1.0 / n),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::onnx::{Attrs, TensorType};
    use crate::tensor::DType;

    /// Scaled attention of 2 heads, 10 queries and 6 keys: a matrix of 480 bytes.
    pub fn attention() -> Graph {
        let mut g = Graph::new("attention", 17);
        let q = g.add_input("q", TensorType::new(DType::F32, [2, 10, 4]));
        let k = g.add_input("k", TensorType::new(DType::F32, [2, 6, 4]));
        let v = g.add_input("v", TensorType::new(DType::F32, [2, 6, 4]));
        let keys = g.transpose_last(k).unwrap();
        let scores = g.matmul(q, keys).unwrap();
        let scores = g.scale(scores, 0.5).unwrap();
        let attrs = Attrs::new().int("axis", -1);
        let shares = g.op("Softmax", &[scores], attrs).unwrap();
        let values = g.unary("Neg", v).unwrap();
        let out = g.matmul(shares, values).unwrap();
        let out = g.unary("Neg", out).unwrap();
        let out = g.as_output(out, "out").unwrap();
        g.outputs.push(out);
        g
    }

    #[test]
    fn the_scale_is_read_off() {
        let g = attention();
        let found = find(&g);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].scale, found[0].matrix_bytes), (Some(0.5), 480));
        assert_eq!(g.shape(found[0].keys), [2, 4, 6]);
    }
}
