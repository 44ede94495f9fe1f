//! Nodes made wrong on purpose: odd attributes, missing, exchanged and odd inputs.

use std::collections::HashMap;

use ortdpo::autodiff::{Wrt, derive};
use ortdpo::onnx::{self, Attr, Constant, Graph, Model, TensorType, ValueId, specialize, validate};
use ortdpo::tensor::DType;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Integers that break arithmetic that does not expect them.
const ODD: [i64; 11] = [
    i64::MIN,
    i64::MAX,
    1 << 40,
    -(1 << 31),
    -1000,
    -2,
    -1,
    0,
    1,
    3,
    1000,
];

/// Changes one node of `graph` and takes it all the way: shapes, folding, gradients. Errors are fine, panics are not.
pub fn take_odd_node_all_the_way(graph: &Graph, rng: &mut ChaCha8Rng) {
    let Ok(odd) = with_odd_node(graph, rng) else {
        return;
    };
    validate(&odd).expect("a graph whose nodes all have types is sound");
    if let Ok(bytes) = onnx::write::to_bytes(&odd, None) {
        let model =
            Model::parse(bytes.into(), std::path::Path::new("odd.onnx")).expect("it was just written");
        if let Ok(folded) = specialize(&model, &Default::default()) {
            validate(&folded).expect("folding keeps a graph sound");
        }
    }
    let floats = odd.inputs.iter().filter(|v| odd.dtype(**v).is_float());
    for wrt in floats.map(|v| odd.name(*v)).collect::<Vec<_>>() {
        if let Ok(derived) = derive(odd.clone(), &Wrt::Named(vec![wrt])) {
            validate(&derived.graph).expect("derived graphs are sound");
        }
    }
}

/// The graph once more, one node of it changed; an error where that gives a node no type.
fn with_odd_node(graph: &Graph, rng: &mut ChaCha8Rng) -> ortdpo::Result<Graph> {
    let mut made = Graph::new("odd", graph.opset);
    let mut new: HashMap<ValueId, ValueId> = HashMap::new();
    for v in &graph.inputs {
        let mut ty = graph.ty(*v).clone();
        if rng.random_range(0..6) == 0 {
            odd_shape(&mut ty, rng);
        }
        // Small integers become constants at times, so that what computes with them is folded.
        let id = match ty.dtype.is_float() || ty.len() > 64 || rng.random() {
            true => made.add_input(&graph.name(*v), ty),
            false => {
                let numbers: Vec<i64> = (0..ty.len())
                    .map(|_| ODD[rng.random_range(0..ODD.len())])
                    .collect();
                made.add_constant(&graph.name(*v), Constant::integers(ty.dtype, &ty.shape, &numbers))
            }
        };
        new.insert(*v, id);
    }
    for (v, constant) in &graph.constants {
        new.insert(
            *v,
            made.add_constant(&graph.name(*v), odd_constant(constant, rng)),
        );
    }
    let changed = rng.random_range(0..graph.nodes.len().max(1));
    for (i, node) in graph.nodes.iter().enumerate() {
        let mut node = node.clone();
        node.inputs = node.inputs.iter().map(|v| v.map(|v| new[&v])).collect();
        let old_outputs = std::mem::take(&mut node.outputs);
        if i == changed {
            change_inputs(&mut node.inputs, rng);
            change_attributes(&mut node.attrs.0, rng);
        }
        let names: Vec<_> = old_outputs.iter().map(|v| v.map(|_| "")).collect();
        let outputs = made.add_node(node, &names)?;
        let pairs = old_outputs.iter().zip(outputs);
        new.extend(pairs.filter_map(|(old, new)| old.zip(new)));
    }
    for v in &graph.outputs {
        let output = made.as_output(new[v], &graph.name(*v))?;
        made.outputs.push(output);
    }
    Ok(made)
}

fn odd_shape(ty: &mut TensorType, rng: &mut ChaCha8Rng) {
    let at = rng.random_range(0..=ty.shape.len());
    match rng.random_range(0..3) {
        0 => ty.shape.insert(at, rng.random_range(0..3)),
        1 if at < ty.shape.len() => {
            ty.shape.remove(at);
        }
        _ if at < ty.shape.len() => ty.shape[at] = rng.random_range(0..5),
        _ => ty.shape.clear(),
    }
}

/// A list of integers with one of them changed, now and then.
fn odd_constant(constant: &Constant, rng: &mut ChaCha8Rng) -> Constant {
    match constant.to_integers() {
        Some(mut numbers)
            if !numbers.is_empty() && constant.dtype == DType::I64 && rng.random_range(0..3) == 0 =>
        {
            let at = rng.random_range(0..numbers.len());
            numbers[at] = ODD[rng.random_range(0..ODD.len())];
            if constant.shape.len() == 1 && rng.random_range(0..3) == 0 {
                numbers.truncate(at);
            }
            let shape = if constant.shape.len() == 1 {
                vec![numbers.len()]
            } else {
                constant.shape.clone()
            };
            Constant::integers(constant.dtype, &shape, &numbers)
        }
        _ => constant.clone(),
    }
}

fn change_inputs(inputs: &mut Vec<Option<ValueId>>, rng: &mut ChaCha8Rng) {
    if inputs.is_empty() || rng.random() {
        return;
    }
    let (a, b) = (
        rng.random_range(0..inputs.len()),
        rng.random_range(0..inputs.len()),
    );
    match rng.random_range(0..4) {
        0 => inputs[a] = None,
        1 => inputs.truncate(a),
        2 => inputs.swap(a, b),
        _ => inputs[a] = inputs[b],
    }
}

fn change_attributes(attrs: &mut Vec<(String, Attr)>, rng: &mut ChaCha8Rng) {
    if attrs.is_empty() {
        return;
    }
    let at = rng.random_range(0..attrs.len());
    if rng.random_range(0..5) == 0 {
        attrs.remove(at);
        return;
    }
    let odd = ODD[rng.random_range(0..ODD.len())];
    match &mut attrs[at].1 {
        Attr::Int(v) => *v = odd,
        Attr::Float(v) => *v = [f32::NAN, f32::INFINITY, 0.0, -1.0][rng.random_range(0..4)],
        Attr::Str(v) => v.truncate(rng.random_range(0..=v.len())),
        Attr::Ints(v) if v.is_empty() || rng.random() => v.push(odd),
        Attr::Ints(v) => {
            let i = rng.random_range(0..v.len());
            if rng.random_range(0..3) == 0 {
                v.truncate(i);
            } else {
                v[i] = odd;
            }
        }
        _ => {}
    }
}
