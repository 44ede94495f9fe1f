//! Exported models made static compute what they computed before: same outputs as the original file in ONNX Runtime.

use std::path::{Path, PathBuf};

use ortdpo::onnx::{self, Dim, Dims, Graph, Model, SpecializeOptions, specialize, validate};
use ortdpo::runtime::{self, Session, SessionOptions};
use ortdpo::tensor::{DType, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

mod common;

fn exports() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![
        common::fixtures().join("exports"),
        common::fixtures().join("optimum-sd"),
    ];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "onnx") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A number for an open dimension. Height and width differ, so that mixing them up shows.
fn size_of(name: &str) -> usize {
    let pixels = if name.starts_with("sample") { 2 } else { 1 };
    match name {
        "image_batch_size" => 3,
        _ if name.ends_with("batch_size") => 2,
        _ if name.ends_with("height") => 8 * pixels,
        _ if name.ends_with("width") => 4 * pixels,
        "sequence_length" => 5,
        _ => panic!("no size for the dimension {name}"),
    }
}

fn make_static(path: &Path) -> Graph {
    let model = Model::read(path).unwrap();
    let mut dims = Dims::default();
    for dim in model.inputs().unwrap().into_iter().flat_map(|i| i.dims.unwrap()) {
        if let Dim::Named(name) = dim {
            dims.named.insert(name.clone(), size_of(&name));
        }
    }
    let options = SpecializeOptions {
        dims,
        ..Default::default()
    };
    specialize(&model, &options).unwrap_or_else(|e| panic!("{e}"))
}

fn random_inputs(graph: &Graph) -> Vec<(String, Tensor)> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let one = |v: &onnx::ValueId| {
        let (name, ty) = (graph.name(*v), graph.ty(*v));
        let tensor = match (ty.dtype, name.as_str()) {
            (DType::I64, "timestep") => Tensor::i64(
                &ty.shape,
                (0..ty.len()).map(|_| rng.random_range(0..1000)).collect(),
            ),
            (DType::I64, "attention_mask") => Tensor::i64(&ty.shape, vec![1; ty.len()]),
            (DType::I64, _) => Tensor::i64(
                &ty.shape,
                (0..ty.len()).map(|_| rng.random_range(0..10)).collect(),
            ),
            _ => Tensor::f32(
                &ty.shape,
                (0..ty.len()).map(|_| rng.random_range(-1.0..1.0)).collect(),
            ),
        };
        (name, tensor)
    };
    graph.inputs.iter().map(one).collect()
}

fn run(mut session: Session, inputs: &[(String, Tensor)], outputs: &[String]) -> Vec<Tensor> {
    let inputs: Vec<_> = inputs
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let mut found = session.run(&inputs).unwrap();
    outputs.iter().map(|name| found.take(name).unwrap()).collect()
}

#[test]
fn static_graphs_compute_what_the_models_do() {
    runtime::init(&Default::default()).unwrap();
    let options = SessionOptions {
        threads: 1,
        ..Default::default()
    };
    let files = exports();
    assert!(files.len() > 20, "only {} exports", files.len());
    for path in files {
        let graph = make_static(&path);
        let inputs = random_inputs(&graph);
        let names: Vec<String> = graph.outputs.iter().map(|v| graph.name(*v)).collect();
        let bytes = onnx::write::to_bytes(&graph, None).unwrap();
        let ours = run(
            Session::from_bytes(&bytes, path.parent(), &options).unwrap(),
            &inputs,
            &names,
        );
        let theirs = run(Session::from_file(&path, &options).unwrap(), &inputs, &names);
        for (((name, v), ours), theirs) in names.iter().zip(&graph.outputs).zip(ours).zip(theirs) {
            let place = format!("{}: {name}", path.display());
            assert_eq!(graph.shape(*v), theirs.shape(), "{place}");
            let (ours, theirs) = (ours.into_f32(&place).unwrap(), theirs.into_f32(&place).unwrap());
            let largest = theirs.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let difference = (&ours - &theirs).iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            assert!(
                difference <= 2e-5 * largest,
                "{place}: off by {difference} of {largest}"
            );
        }
    }
}

#[test]
fn static_graphs_are_sound_and_hold_no_shape_arithmetic() {
    for path in exports() {
        let graph = make_static(&path);
        validate(&graph).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let arithmetic = [
            "Shape",
            "Size",
            "ConstantOfShape",
            "Range",
            "If",
            "Loop",
            "SequenceAt",
            "SplitToSequence",
        ];
        let left = graph.nodes.iter().find(|n| arithmetic.contains(&n.op.as_str()));
        assert!(
            left.is_none(),
            "{}: {} is left",
            path.display(),
            left.unwrap().place(&graph)
        );
    }
}

#[test]
fn a_static_graph_that_is_written_reads_back_the_same() {
    for path in exports() {
        let graph = make_static(&path);
        let folder = path.parent().unwrap();
        let bytes = onnx::write::to_bytes(&graph, Some(folder)).unwrap();
        let model = Model::parse(bytes.into(), &folder.join("again.onnx")).unwrap();
        let again = specialize(&model, &SpecializeOptions::default()).unwrap();
        assert_eq!(structure(&graph), structure(&again), "{}", path.display());
    }
}

/// What each node does, without the names that a writer may choose.
fn structure(graph: &Graph) -> Vec<String> {
    let line = |n: &onnx::Node| {
        let types = |values: &[Option<onnx::ValueId>]| {
            let types = values.iter().map(|v| v.map(|v| graph.ty(v).to_string()));
            types.map(Option::unwrap_or_default).collect::<Vec<_>>()
        };
        format!(
            "{:?} = {}({:?}) {:?}",
            types(&n.outputs),
            n.op,
            types(&n.inputs),
            n.attrs
        )
    };
    graph.nodes.iter().map(line).collect()
}
