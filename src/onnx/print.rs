//! A graph as text for people: one line per input, constant, node and output.
//!
//! ```text
//! graph `main_graph`, opset 17, 2 nodes
//! input   x: f32[1, 4, 16, 16]
//! weight  conv.weight: f32[8, 4, 3, 3]
//!         _5: f32[1, 8, 16, 16] = Conv(x, conv.weight) {pads=[1, 1, 1, 1]}   # /conv/Conv
//!         y: f32[1, 2048] = Reshape(_5, [1, -1])
//! output  y
//! ```
//!
//! Constants of a few numbers that have no weight's role are written where they are used.

use std::fmt::{self, Display, Formatter};

use super::attr::Attr;
use super::data::{Constant, TensorData};
use super::graph::{Graph, Node, ValueId};

/// Constants of up to so many numbers are written out.
const FEW: usize = 8;

impl Display for Graph {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (name, opset, nodes) = (&self.name, self.opset, self.nodes.len());
        writeln!(f, "graph `{name}`, opset {opset}, {nodes} nodes")?;
        for v in &self.inputs {
            writeln!(f, "input   {}: {}", self.name(*v), self.ty(*v))?;
        }
        for (v, constant) in &self.constants {
            if short(self, *v).is_none() {
                let kind = if self.parameters.contains(v) {
                    "weight  "
                } else {
                    "const   "
                };
                writeln!(
                    f,
                    "{kind}{}: {}{}",
                    self.name(*v),
                    self.ty(*v),
                    whereabouts(constant)
                )?;
            }
        }
        for node in &self.nodes {
            write_node(self, node, f)?;
        }
        for v in &self.outputs {
            writeln!(f, "output  {}", self.name(*v))?;
        }
        Ok(())
    }
}

fn write_node(graph: &Graph, node: &Node, f: &mut Formatter<'_>) -> fmt::Result {
    let outputs = node.outputs.iter().map(|v| match v {
        Some(v) => format!("{}: {}", graph.name(*v), graph.ty(*v)),
        None => "_".into(),
    });
    let inputs = node.inputs.iter().map(|v| match v {
        Some(v) => short(graph, *v).unwrap_or_else(|| graph.name(*v)),
        None => "_".into(),
    });
    let (outputs, inputs): (Vec<_>, Vec<_>) = (outputs.collect(), inputs.collect());
    let domain = if node.domain.is_empty() {
        String::new()
    } else {
        format!("{}.", node.domain)
    };
    write!(
        f,
        "        {} = {domain}{}({})",
        outputs.join(", "),
        node.op,
        inputs.join(", ")
    )?;
    if !node.attrs.0.is_empty() {
        let attrs: Vec<_> = node
            .attrs
            .0
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        write!(f, " {{{}}}", attrs.join(", "))?;
    }
    if !node.name.is_empty() {
        write!(f, "   # {}", node.name)?;
    }
    writeln!(f)
}

/// The numbers of a small constant that is no parameter.
fn short(graph: &Graph, value: ValueId) -> Option<String> {
    let constant = graph.constants.get(&value)?;
    if constant.len() > FEW || constant.shape.len() > 1 || graph.parameters.contains(&value) {
        return None;
    }
    numbers(constant)
}

fn numbers(constant: &Constant) -> Option<String> {
    let texts: Vec<String> = match constant.to_floats() {
        Some(v) => v.iter().map(f64::to_string).collect(),
        None => constant.to_integers()?.iter().map(i64::to_string).collect(),
    };
    Some(match (constant.shape.is_empty(), texts.first()) {
        (true, Some(one)) => one.clone(),
        _ => format!("[{}]", texts.join(", ")),
    })
}

fn whereabouts(constant: &Constant) -> String {
    match &constant.data {
        TensorData::Inline(_) => String::new(),
        TensorData::External { file, offset, .. } => format!("   # {} from byte {offset}", file.display()),
    }
}

impl Display for Attr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(v) => write!(f, "{v}"),
            Self::Float(v) => write!(f, "{v}"),
            Self::Str(v) => write!(f, "{v:?}"),
            Self::Ints(v) => write!(f, "{v:?}"),
            Self::Floats(v) => write!(f, "{v:?}"),
            Self::Strs(v) => write!(f, "{v:?}"),
            Self::Tensor(c) => match numbers(c).filter(|_| c.len() <= FEW) {
                Some(numbers) => f.write_str(&numbers),
                None => write!(f, "{}{:?}", c.dtype, c.shape),
            },
            Self::Graph(g) => write!(f, "graph of {} nodes", g.node.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::onnx::{Attrs, Constant, Graph, TensorType};
    use crate::tensor::DType;

    #[test]
    fn a_graph_reads_like_a_program() {
        let mut g = Graph::new("g", 17);
        let x = g.add_input("x", TensorType::new(DType::F32, [1, 2, 4, 4]));
        let w = g.add_constant("w", Constant::floats(DType::F32, &[1, 2, 1, 1], &[1.0, 2.0]));
        g.parameters.insert(w);
        let y = g
            .op("Conv", &[x, w], Attrs::new().ints("pads", &[0, 0, 0, 0]))
            .unwrap();
        let y = g.reshape(y, &[1, 16]).unwrap();
        let y = g.scale(y, 0.5).unwrap();
        let y = g.as_output(y, "y").unwrap();
        g.outputs.push(y);
        let expected = "\
graph `g`, opset 17, 3 nodes
input   x: f32[1, 2, 4, 4]
weight  w: f32[1, 2, 1, 1]
        _2: f32[1, 1, 4, 4] = Conv(x, w) {pads=[0, 0, 0, 0]}
        _4: f32[1, 16] = Reshape(_2, [1, 16])
        y: f32[1, 16] = Mul(_4, 0.5)
output  y
";
        assert_eq!(g.to_string(), expected);
    }
}
