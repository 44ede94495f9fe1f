//! One case: read, made static, run, differentiated.

use std::path::Path;

use ortdpo::onnx::{Dims, Graph, Model, SpecializeOptions, specialize, validate};
use ortdpo::runtime::{Outputs, Session, SessionOptions};
use ortdpo::tensor::{DType, Tensor};
use prost::Message;

use crate::gradcheck::{self, Failure, Feeds, Settings, numbers};
use crate::wire::{Interface, StoredTensor, with_initializer, with_opset};

/// How far a case was checked.
pub enum Verdict {
    /// Outputs and gradients.
    Gradients,
    /// Outputs; there is a reason not to check gradients.
    ForwardOnly(String),
    /// Nothing, for a reason.
    LeftOut(String),
}

/// A case's model and stored tensors.
struct Case {
    bytes: Vec<u8>,
    /// Whether it was written for an opset after 23.
    newer: bool,
    inputs: Vec<(String, StoredTensor)>,
    outputs: Vec<(String, StoredTensor)>,
}

/// Cases that are left out for reasons of their own.
const EXCEPTIONS: [(&str, &str); 7] = [
    ("test_training_dropout", "random outputs"),
    (
        "test_attention_23_boolmask_fullymasked_row_nan_robustness_expanded",
        FULLY_MASKED,
    ),
    (
        "test_attention_23_fullymasked_qk_matmul_output_mode3_zero_expanded",
        FULLY_MASKED,
    ),
    (
        "test_attention_24_fullymasked_qk_matmul_output_mode3_zero_expanded",
        FULLY_MASKED,
    ),
    (
        "test_attention_4d_causal_nonpad_negative_offset_structural_empty_expanded",
        FULLY_MASKED,
    ),
    (
        "test_attention_causal_boolmask_nan_robustness_expanded",
        FULLY_MASKED,
    ),
    (
        "test_attention_local_window_gqa_rank4_mask_expanded",
        FULLY_MASKED,
    ),
];

const FULLY_MASKED: &str = "a row of −∞ goes through Softmax, whose NaN is replaced behind it; the gradient is NaN, as it is in PyTorch";

/// Runs the case in `folder`.
pub fn run(folder: &Path, name: &str) -> Result<Verdict, String> {
    if let Some((_, why)) = EXCEPTIONS.iter().find(|(prefix, _)| name.starts_with(prefix)) {
        return Ok(Verdict::LeftOut((*why).into()));
    }
    let case = match read(folder) {
        Ok(case) => case,
        Err(why) => return Ok(Verdict::LeftOut(why)),
    };
    let (graph, feeds) = match make_static(&case, folder) {
        Ok(made) => made,
        Err(error) => return reason_to_leave_out(&error).map(Verdict::LeftOut).ok_or(error),
    };
    validate(&graph).map_err(|e| e.to_string())?;
    if let Err(what) = compare_outputs(&case, &graph, &feeds) {
        return match original_outputs(&case) {
            Err(_) if case.newer => Ok(Verdict::LeftOut("a form that opset 23 does not have".into())),
            Err(_) => Ok(Verdict::LeftOut(format!(
                "ONNX Runtime's CPU does not run {}",
                operators(&graph)
            ))),
            Ok(theirs) => match compare(&case, theirs) {
                Ok(()) => Err(what),
                Err(_) => Ok(Verdict::LeftOut(
                    "ONNX Runtime's outputs are not the stored ones".into(),
                )),
            },
        };
    }
    gradients(&graph, &feeds, name)
}

/// The static graph of the case in `folder`, if it can be made.
pub fn static_graph(folder: &Path) -> Option<Graph> {
    let case = read(folder).ok()?;
    make_static(&case, folder).ok().map(|(graph, _)| graph)
}

/// Reads a case, or says why it cannot be.
fn read(folder: &Path) -> Result<Case, String> {
    let mut bytes = std::fs::read(folder.join("model.onnx")).unwrap();
    let interface = Interface::decode(&bytes[..]).unwrap();
    let mut newer = false;
    let opset = interface
        .opsets
        .iter()
        .find(|o| o.domain.is_empty())
        .map(|o| o.version);
    match opset {
        None => return Err("operators of other domains".into()),
        Some(..13) => return Err("an opset before 13".into()),
        // Newer opsets allow more element types; the meaning of operators that opset 23 has is the same.
        Some(24..) => {
            newer = true;
            bytes = with_opset(&bytes, 23);
        }
        Some(_) => {}
    }
    let graph = interface.graph.unwrap();
    let load = |kind: &str, infos: &[crate::wire::Named]| {
        infos
            .iter()
            .enumerate()
            .map(|(i, info)| {
                let is_tensor = info.r#type.as_ref().is_some_and(|t| t.tensor.is_some());
                if !is_tensor {
                    return Err("sequences or optionals".to_owned());
                }
                let file = folder.join(format!("test_data_set_0/{kind}_{i}.pb"));
                let tensor = StoredTensor::decode(&std::fs::read(file).unwrap()[..]).unwrap();
                match tensor.tensor() {
                    Ok(_) => Ok((info.name.clone(), tensor)),
                    Err(number) => Err(format!("tensors of {}", type_name(number))),
                }
            })
            .collect::<Result<Vec<_>, _>>()
    };
    let (inputs, outputs) = (load("input", &graph.inputs)?, load("output", &graph.outputs)?);
    Ok(Case {
        bytes,
        newer,
        inputs,
        outputs,
    })
}

/// The static graph and what its remaining inputs are fed. Inputs that have to be constants (shapes, axes, scales) become
/// initializers, one after the other as errors name them.
fn make_static(case: &Case, folder: &Path) -> Result<(Graph, Feeds), String> {
    let mut bytes = case.bytes.clone();
    let mut open: Vec<&(String, StoredTensor)> = case.inputs.iter().collect();
    loop {
        let model =
            Model::parse(bytes.clone().into(), &folder.join("model.onnx")).map_err(|e| e.to_string())?;
        let shape = |(name, t): &&(String, StoredTensor)| {
            (name.clone(), t.dims.iter().map(|d| *d as usize).collect())
        };
        let dims = Dims {
            shapes: open.iter().map(shape).collect(),
            ..Default::default()
        };
        match specialize(
            &model,
            &SpecializeOptions {
                dims,
                split_shared: false,
            },
        ) {
            Ok(mut graph) => {
                graph.ir_version = graph.ir_version.min(11);
                let feed = |(name, t): &(String, StoredTensor)| (name.clone(), t.tensor().unwrap());
                return Ok((graph, open.into_iter().map(feed).collect()));
            }
            Err(error) => {
                let text = error.to_string();
                let Some(at) = open
                    .iter()
                    .position(|(name, _)| text.contains(&format!("(`{name}`) as constant")))
                else {
                    return Err(text);
                };
                let (name, tensor) = open.remove(at);
                with_initializer(&mut bytes, name, tensor);
            }
        }
    }
}

/// Names of the element types that host tensors do not have.
fn type_name(number: i32) -> &'static str {
    match number {
        3..=5 | 12 | 13 => "integers other than i32, i64 and u8",
        8 => "strings",
        17.. => "8-bit floats and smaller types",
        _ => "complex numbers",
    }
}

/// Short forms of the errors that are no failure.
fn reason_to_leave_out(error: &str) -> Option<String> {
    for marker in [" has no shape rule", " has no gradient rule"] {
        if let Some((before, _)) = error.split_once(marker) {
            let what = before.rsplit_once("): ")?.1;
            return Some(format!("{what}{marker}"));
        }
    }
    [
        ("element type number", "element types that are not read"),
        (
            "which ortdpo does not read",
            "attributes of a type that is not read",
        ),
        (
            "as constant integers, but it depends on data",
            "shapes that depend on data",
        ),
        (
            "as constant numbers, but it depends on data",
            "shapes that depend on data",
        ),
        ("in training mode", "Dropout in training mode"),
        (
            "BatchNormalization node with output",
            "BatchNormalization in training mode",
        ),
        ("as a tensor", "sequences or optionals"),
        ("as a sequence", "sequences or optionals"),
    ]
    .into_iter()
    .find(|(part, _)| error.contains(part))
    .map(|(_, reason)| reason.into())
}

/// Compares shapes and values of the static graph's outputs with the stored ones.
fn compare_outputs(case: &Case, graph: &Graph, feeds: &Feeds) -> Result<(), String> {
    for (v, (name, stored)) in graph.outputs.iter().zip(&case.outputs) {
        let expected: Vec<usize> = stored.dims.iter().map(|d| *d as usize).collect();
        if graph.shape(*v) != expected {
            return Err(format!(
                "output `{name}` was inferred as {}, but is {expected:?}",
                graph.ty(*v)
            ));
        }
    }
    let found = gradcheck::session(graph).and_then(|mut s| s.run(&gradcheck::borrowed(feeds)));
    compare(case, found.map_err(|e| e.to_string())?)
}

/// What ONNX Runtime makes of the model as it is stored (for opset 23, if its own is newer).
fn original_outputs(case: &Case) -> ortdpo::Result<Outputs> {
    let mut session = Session::from_bytes(
        &case.bytes,
        None,
        &SessionOptions {
            threads: 1,
            ..Default::default()
        },
    )?;
    let feeds: Feeds = case
        .inputs
        .iter()
        .map(|(name, t)| (name.clone(), t.tensor().unwrap()))
        .collect();
    session.run(&gradcheck::borrowed(&feeds))
}

fn compare(case: &Case, mut found: Outputs) -> Result<(), String> {
    for (name, stored) in &case.outputs {
        let (expected, found) = (
            stored.tensor().unwrap(),
            found.take(name).map_err(|e| e.to_string())?,
        );
        if expected.dtype() != found.dtype() {
            return Err(format!(
                "output `{name}` is {} instead of {}",
                found.dtype(),
                expected.dtype()
            ));
        }
        let tolerance = match expected.dtype() {
            DType::F16 | DType::BF16 => 1e-2,
            _ => 1e-3,
        };
        for (i, (a, b)) in numbers(&found).iter().zip(numbers(&expected)).enumerate() {
            let same = *a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * b.abs() + 1e-5;
            if !same {
                return Err(format!("element {i} of output `{name}` is {a} instead of {b}"));
            }
        }
    }
    Ok(())
}

/// The operators of a graph, each once.
fn operators(graph: &Graph) -> String {
    let mut names: Vec<&str> = graph.nodes.iter().map(|n| n.op.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

/// Checks the gradients, at the stored inputs or, where those lie on kinks, near them.
fn gradients(graph: &Graph, feeds: &Feeds, name: &str) -> Result<Verdict, String> {
    let inputs = gradcheck::reaching_inputs(graph);
    if inputs.is_empty() {
        return Ok(Verdict::ForwardOnly(
            "no float input reaches a float output through data".into(),
        ));
    }
    let floats = graph
        .outputs
        .iter()
        .map(|v| graph.dtype(*v))
        .filter(|d| d.is_float());
    let of_inputs = |(n, t): &(String, Tensor)| inputs.contains(n).then(|| t.dtype());
    if let Some(half) = feeds
        .iter()
        .filter_map(of_inputs)
        .chain(floats)
        .find(|d| d.size() == 2)
    {
        return Ok(Verdict::ForwardOnly(format!(
            "differences are too coarse in {half}"
        )));
    }
    let mut rng = gradcheck::rng(name);
    // Long steps where outputs hardly depend on an input, short ones where kinks are near.
    let long = Settings {
        step: 1.0 / 8.0,
        tolerance: 5e-3,
    };
    let short = Settings {
        step: 1.0 / 1024.0,
        tolerance: 1e-2,
    };
    let (apart, step) = spread(feeds, &inputs);
    let attempts = [
        (feeds, Settings::F32),
        (feeds, long),
        (feeds, short),
        (
            &apart,
            Settings {
                step,
                tolerance: 2e-2,
            },
        ),
    ];
    let mut told = Vec::new();
    for (point, settings) in attempts {
        match gradcheck::check(graph, point, settings, &mut rng) {
            Ok(_) => return Ok(Verdict::Gradients),
            Err(Failure::Mismatch(what)) => told.push(what),
            Err(Failure::Error(error)) => {
                let text = error.to_string();
                if gradcheck::lacks_kernel(&error) {
                    let why = format!(
                        "ONNX Runtime's CPU does not run the gradient of {}",
                        operators(graph)
                    );
                    return Ok(Verdict::ForwardOnly(why));
                }
                return match reason_to_leave_out(&text) {
                    Some(why) => Ok(Verdict::ForwardOnly(why)),
                    None => Err(text),
                };
            }
        }
    }
    Err(told.join("; "))
}

/// The inputs with their elements moved apart, onto an even grid in the same order that avoids round numbers, and a step
/// that is short against the grid: there are no ties, and kinks at round numbers are not reached.
fn spread(feeds: &Feeds, inputs: &[String]) -> (Feeds, f64) {
    let mut step = f64::INFINITY;
    let moved = feeds.iter().map(|(name, tensor)| {
        let finite = |v: f64| if v.is_finite() { v } else { 0.0 };
        let values: Vec<f64> = numbers(tensor).into_iter().map(finite).collect();
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !inputs.contains(name) || values.is_empty() {
            return (name.clone(), tensor.clone());
        }
        let room = if high > low { high - low } else { 0.5 };
        let spacing = room / (values.len() as f64 + 1.0);
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
        let mut grid = vec![0.0; values.len()];
        for (rank, i) in order.into_iter().enumerate() {
            grid[i] = low + (rank as f64 + 0.618) * spacing;
        }
        step = step.min(spacing / 12.0);
        (
            name.clone(),
            gradcheck::tensor_of(tensor.dtype(), tensor.shape(), grid),
        )
    });
    let moved: Feeds = moved.collect();
    (moved, step.min(1e-2))
}
