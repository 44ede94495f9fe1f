//! One case: read, made static, run, differentiated.

use std::path::Path;

use ortdpo::onnx::{Dims, Graph, Model, SpecializeOptions, specialize, validate};
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
    inputs: Vec<(String, StoredTensor)>,
    outputs: Vec<(String, StoredTensor)>,
}

/// Runs the case in `folder`.
pub fn run(folder: &Path, name: &str) -> Result<Verdict, String> {
    let case = match read(folder) {
        Ok(case) => case,
        Err(why) => return Ok(Verdict::LeftOut(why)),
    };
    let (graph, feeds) = match make_static(&case, folder) {
        Ok(made) => made,
        Err(error) => return reason_to_leave_out(&error).map(Verdict::LeftOut).ok_or(error),
    };
    validate(&graph).map_err(|e| e.to_string())?;
    if let Err(Failure::Error(error)) = compare_outputs(&case, &graph, &feeds)? {
        return match gradcheck::lacks_kernel(&error) {
            true => Ok(Verdict::LeftOut(format!(
                "ONNX Runtime's CPU does not run {}",
                operators(&graph)
            ))),
            false => Err(error.to_string()),
        };
    }
    gradients(&graph, &feeds, name)
}

/// Reads a case, or says why it cannot be.
fn read(folder: &Path) -> Result<Case, String> {
    let mut bytes = std::fs::read(folder.join("model.onnx")).unwrap();
    let interface = Interface::decode(&bytes[..]).unwrap();
    let opset = interface
        .opsets
        .iter()
        .find(|o| o.domain.is_empty())
        .map(|o| o.version);
    match opset {
        None => return Err("operators of other domains".into()),
        Some(..13) => return Err("an opset before 13".into()),
        // Newer opsets allow more element types; the meaning of operators that opset 23 has is the same.
        Some(24..) => bytes = with_opset(&bytes, 23),
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
                    Err(number) => Err(format!("element type {number}")),
                }
            })
            .collect::<Result<Vec<_>, _>>()
    };
    let (inputs, outputs) = (load("input", &graph.inputs)?, load("output", &graph.outputs)?);
    Ok(Case {
        bytes,
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

/// Short forms of the errors that are no failure.
fn reason_to_leave_out(error: &str) -> Option<String> {
    let after = |marker: &str| error.split_once(marker).map(|(_, rest)| rest);
    if let Some(rest) = after(": operator ") {
        let what = rest.split_once(" in ortdpo")?.0;
        return Some(format!("operator {what}"));
    }
    if error.contains("element type number") {
        return Some("element types that are not read".into());
    }
    for (part, reason) in [
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
        ("as a tensor", "sequences or optionals"),
        ("as a sequence", "sequences or optionals"),
    ] {
        if error.contains(part) {
            return Some(reason.into());
        }
    }
    None
}

/// Compares shapes and values of the outputs with the stored ones.
fn compare_outputs(case: &Case, graph: &Graph, feeds: &Feeds) -> Result<Result<(), Failure>, String> {
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
    let mut found = match found {
        Ok(found) => found,
        Err(error) => return Ok(Err(Failure::Error(error))),
    };
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
    Ok(Ok(()))
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
    let of_inputs = |(n, t): &(String, Tensor)| inputs.contains(n).then(|| t.dtype());
    if let Some(half) = feeds.iter().filter_map(of_inputs).find(|d| d.size() == 2) {
        return Ok(Verdict::ForwardOnly(format!("differences say nothing in {half}")));
    }
    let mut rng = gradcheck::rng(name);
    let fine = Settings {
        step: 1e-3,
        tolerance: 1e-2,
    };
    let (apart, step) = spread(feeds, &inputs);
    let attempts = [
        (feeds, Settings::F32),
        (feeds, fine),
        (
            &apart,
            Settings {
                step,
                tolerance: 2e-2,
            },
        ),
    ];
    let mut last = String::new();
    for (point, settings) in attempts {
        match gradcheck::check(graph, point, settings, &mut rng) {
            Ok(_) => return Ok(Verdict::Gradients),
            Err(Failure::Mismatch(what)) => last = what,
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
    Err(last)
}

/// The inputs with their elements moved apart, onto an even grid in the same order that avoids round numbers, and a step
/// that is short against the grid: there are no ties, and kinks at round numbers are not reached.
fn spread(feeds: &Feeds, inputs: &[String]) -> (Feeds, f64) {
    let mut step = f64::INFINITY;
    let moved = feeds.iter().map(|(name, tensor)| {
        let values = numbers(tensor);
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !inputs.contains(name) || values.is_empty() || !(high - low).is_finite() {
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
