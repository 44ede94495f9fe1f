//! What is trained: LoRA factors on chosen layers, or chosen weights themselves.

use super::layers::{Layer, LayerKind, find_layers, matches, module_of, wrapper_of};
use crate::onnx::{Graph, ValueId};
use crate::{Error, Result};

/// Role of a trainable tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrainableKind {
    /// LoRA down factor: `[rank, inputs]`, or `[rank, inputs, kernel…]` for a convolution.
    LoraA,
    /// LoRA up factor: `[outputs, rank]`, or `[outputs, rank, 1…]` for a convolution.
    LoraB,
    /// A weight of the network in the graph's layout.
    Weight {
        /// The constant it replaces.
        constant: ValueId,
        /// Whether PyTorch's layout is the transpose.
        transposed: bool,
        /// PyTorch's shape (differs from the graph's where an exporter reshaped, e.g. `[C,1,1]` for a norm's scale).
        torch_shape: Vec<usize>,
    },
}

/// One tensor that the optimizer moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trainable {
    /// Name, e.g. `mid_block.attentions.0.proj_in.lora_A.weight` or `conv_in.weight`.
    pub name: String,
    /// Shape in the graph.
    pub shape: Vec<usize>,
    /// Role.
    pub kind: TrainableKind,
}

/// All trainable tensors with the layers they belong to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trainables {
    /// Tensors in graph order; for LoRA, A before B.
    pub tensors: Vec<Trainable>,
    /// Layers with an adapter, by position in `graph.nodes`; empty in full fine-tuning.
    pub adapted: Vec<Layer>,
    /// `alpha / rank`; 1 in full fine-tuning.
    pub scale: f64,
    /// LoRA rank; 0 in full fine-tuning.
    pub rank: usize,
}

impl Trainables {
    /// LoRA of `rank` and scale `alpha / rank` on the layers that `targets` choose.
    pub fn lora(graph: &Graph, targets: &[String], rank: usize, alpha: f64) -> Result<Self> {
        let layers = find_layers(graph);
        let unmatched = |t: &&String| !layers.iter().any(|l| matches(t, &l.module));
        if let Some(pattern) = targets.iter().find(unmatched) {
            return Err(no_match(pattern, &layers));
        }
        let mut out = Self {
            scale: alpha / rank as f64,
            rank,
            ..Self::default()
        };
        for layer in layers {
            if !targets.iter().any(|t| matches(t, &layer.module)) {
                continue;
            }
            let (a, b) = factor_shapes(&layer.kind, rank, &layer.module)?;
            for (suffix, shape, kind) in [
                ("lora_A", a, TrainableKind::LoraA),
                ("lora_B", b, TrainableKind::LoraB),
            ] {
                out.tensors.push(Trainable {
                    name: format!("{}.{suffix}.weight", layer.module),
                    shape,
                    kind,
                });
            }
            out.adapted.push(layer);
        }
        Ok(out)
    }

    /// Full fine-tuning of the weights that `targets` choose by name (`*` for all).
    pub fn full(graph: &Graph, targets: &[String]) -> Result<Self> {
        let named = named_weights(graph);
        let chooses = |pattern: &String, name: &str| {
            let module = name.rsplit_once('.').map_or(name, |(m, _)| m);
            pattern == "*" || matches(pattern, module) || matches(pattern, name)
        };
        let unmatched = |pattern: &&String| !named.iter().any(|t| chooses(pattern, &t.name));
        if let Some(pattern) = targets.iter().find(unmatched) {
            return Err(no_match(pattern, &find_layers(graph)));
        }
        let chosen = |t: &Trainable| targets.iter().any(|pattern| chooses(pattern, &t.name));
        let tensors: Vec<Trainable> = named.into_iter().filter(chosen).collect();
        Ok(Self {
            tensors,
            adapted: Vec::new(),
            scale: 1.0,
            rank: 0,
        })
    }

    /// Number of trainable values.
    pub fn parameter_count(&self) -> usize {
        self.tensors
            .iter()
            .map(|t| t.shape.iter().product::<usize>())
            .sum()
    }
}

fn factor_shapes(kind: &LayerKind, rank: usize, module: &str) -> Result<(Vec<usize>, Vec<usize>)> {
    match kind {
        LayerKind::Linear { inputs, outputs, .. } => Ok((vec![rank, *inputs], vec![*outputs, rank])),
        LayerKind::Conv { groups: 2.., .. } => Err(Error::bad(
            format!("adapter.targets: module `{module}`"),
            "is a grouped convolution, for which LoRA is not defined",
            "Choose patterns that leave it out.",
        )),
        LayerKind::Conv {
            inputs,
            outputs,
            kernel,
            ..
        } => {
            let ones = vec![1; kernel.len()];
            Ok((
                [&[rank, *inputs], kernel.as_slice()].concat(),
                [&[*outputs, rank], ones.as_slice()].concat(),
            ))
        }
    }
}

fn no_match(pattern: &str, layers: &[Layer]) -> Error {
    let mut ends: Vec<&str> = layers
        .iter()
        .map(|l| last_named(&l.module))
        .filter(|e| !e.is_empty())
        .collect();
    ends.sort_unstable();
    ends.dedup();
    ends.truncate(24);
    let known = if ends.is_empty() {
        "The model has no linear or convolution layer with a known module name.".to_owned()
    } else {
        format!("Layers of this model end in: {}.", ends.join(", "))
    };
    Error::bad("adapter.targets", format!("`{pattern}` matches no layer"), known)
}

/// `to_out.0` of `….attn1.to_out.0`: the last component with the number behind it.
fn last_named(module: &str) -> &str {
    let start = module
        .rmatch_indices('.')
        .map(|(i, _)| i + 1)
        .chain(std::iter::once(0))
        .find(|i| !module[*i..].starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or(0);
    &module[start..]
}

/// Weights under their PyTorch names, as far as names, node names and metadata tell them. Constants that are no
/// parameters of a module (frequency tables, scale factors) have no such name and are left out.
fn named_weights(graph: &Graph) -> Vec<Trainable> {
    let mut found: Vec<Trainable> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let outside = wrapper_of(graph).unwrap_or_default();
    for node in &graph.nodes {
        for (slot, value) in node
            .inputs
            .iter()
            .enumerate()
            .filter_map(|(i, v)| v.map(|v| (i, v)))
        {
            if !graph.parameters.contains(&value) || !seen.insert(value) {
                continue;
            }
            if let Some(mut t) = named_weight(graph, node, slot, value) {
                if t.name.starts_with(&outside) {
                    t.name.drain(..outside.len());
                }
                found.push(t);
            } else {
                seen.remove(&value);
            }
        }
    }
    found
}

fn named_weight(graph: &Graph, node: &crate::onnx::Node, slot: usize, value: ValueId) -> Option<Trainable> {
    let name = graph.name(value);
    let shape = graph.shape(value).to_vec();
    let plain = |name: String| Trainable {
        name,
        shape: shape.clone(),
        kind: TrainableKind::Weight {
            constant: value,
            transposed: false,
            torch_shape: shape.clone(),
        },
    };
    if (name.ends_with(".weight") || name.ends_with(".bias")) && !name.starts_with("onnx::") {
        return Some(plain(name));
    }
    let module = module_of(graph, node, value)?;
    // Whether the operator multiplies by the matrix as it is stored, which then is the transpose of PyTorch's.
    let stores_transpose = match node.op.as_str() {
        "MatMul" => true,
        "Gemm" => node.attrs.get_int("transB", 0) == 0,
        _ => false,
    };
    match node.op.as_str() {
        _ if stores_transpose && slot == 1 && shape.len() == 2 => Some(Trainable {
            name: format!("{module}.weight"),
            shape: shape.clone(),
            kind: TrainableKind::Weight {
                constant: value,
                transposed: true,
                torch_shape: vec![shape[1], shape[0]],
            },
        }),
        "Mul" | "Add" if shape.len() > 1 && shape[1..].iter().all(|d| *d == 1) && module.contains("norm") => {
            let role = if node.op == "Mul" { "weight" } else { "bias" };
            let mut t = plain(format!("{module}.{role}"));
            t.kind = TrainableKind::Weight {
                constant: value,
                transposed: false,
                torch_shape: vec![shape[0]],
            };
            Some(t)
        }
        "Gemm" | "Conv" if slot == 1 => Some(plain(format!("{module}.weight"))),
        "Gemm" | "Conv" if slot == 2 => Some(plain(format!("{module}.bias"))),
        "LayerNormalization" | "GroupNormalization" if slot == 1 => Some(plain(format!("{module}.weight"))),
        "LayerNormalization" | "GroupNormalization" if slot == 2 => Some(plain(format!("{module}.bias"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Attrs, Constant, Node, TensorType};
    use crate::tensor::DType;

    /// `x·w` by a node called `/fc/OP`, from 3 features to 2.
    fn linear(op: &str, attrs: Attrs, stored: &[usize]) -> Graph {
        let mut g = Graph::new("linear", 17);
        let x = g.add_input("x", TensorType::new(DType::F32, [4, 3]));
        let w = g.add_constant("onnx::weight", Constant::floats(DType::F32, stored, &[0.0; 6]));
        g.parameters.insert(w);
        let node = Node {
            op: op.into(),
            domain: String::new(),
            name: format!("/fc/{op}"),
            inputs: vec![Some(x), Some(w)],
            outputs: Vec::new(),
            attrs,
            metadata: Vec::new(),
        };
        let y = g.add_node(node, &[Some("y")]).unwrap()[0].unwrap();
        g.outputs.push(y);
        g
    }

    #[test]
    fn the_layout_of_a_linear_weight_is_that_of_its_operator() {
        let cases = [
            ("MatMul", Attrs::new(), [3, 2]),
            ("Gemm", Attrs::new(), [3, 2]),
            ("Gemm", Attrs::new().int("transB", 1), [2, 3]),
        ];
        for (op, attrs, stored) in cases {
            let full = Trainables::full(&linear(op, attrs, &stored), &["*".into()]).unwrap();
            let [weight] = full.tensors.as_slice() else {
                panic!("{op}: {} tensors", full.tensors.len())
            };
            assert_eq!(weight.name, "fc.weight");
            assert_eq!(weight.shape, stored);
            let TrainableKind::Weight {
                transposed,
                torch_shape,
                ..
            } = &weight.kind
            else {
                panic!("{op}: {:?}", weight.kind)
            };
            assert_eq!(
                (*transposed, torch_shape.as_slice()),
                (stored == [3, 2], &[2, 3][..])
            );
        }
    }
}
