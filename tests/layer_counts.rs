//! On the real architectures: which layers get an adapter, which weights full fine-tuning trains, and that the step's
//! graph derives from the structure alone. diffusers and PEFT say what to expect (`scripts/fixtures/structures.py`).

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::recorded::Recorded;
use common::structures::{Structure, unpacked};
use ortdpo::objective::Dpo;
use ortdpo::onnx::{Dim, Dims, Graph, Model, SpecializeOptions, TensorData, specialize, validate};
use ortdpo::traingraph::{Reference, StepGraph, StepShape, Trainable, TrainableKind, Trainables, attention};
use serde::Deserialize;

/// Every export with its architecture, and what is published of that: modules and parameters per rank.
const EXPORTS: [(&str, &str, usize, usize); 4] = [
    ("sd15-legacy17", "sd15", 128, 199_296),
    ("sd15-dynamo20", "sd15", 128, 199_296),
    ("sdxl-legacy17", "sdxl", 560, 1_451_520),
    ("sdxl-dynamo20", "sdxl", 560, 1_451_520),
];

/// What diffusers and PEFT say of an architecture.
#[derive(Deserialize)]
struct Expected {
    lora: Lora,
    /// Shapes of `named_parameters()`.
    parameters: BTreeMap<String, Vec<usize>>,
}

#[derive(Deserialize)]
struct Lora {
    targets: Vec<String>,
    rank: usize,
    parameters: usize,
    modules: Vec<String>,
}

fn expected(architecture: &str) -> Expected {
    serde_json::from_slice(&unpacked(&format!("{architecture}.json.gz"))).unwrap()
}

fn check_lora(place: &str, graph: &Graph, expected: &Lora, modules: usize, parameters_per_rank: usize) {
    let mut wanted = expected.modules.clone();
    wanted.sort();
    assert_eq!(wanted.len(), modules, "{place}");
    assert_eq!(
        expected.parameters,
        parameters_per_rank * expected.rank,
        "{place}"
    );
    for rank in [4, 8] {
        let lora = Trainables::lora(graph, &expected.targets, rank, 8.0).unwrap();
        let mut found: Vec<&str> = lora.adapted.iter().map(|l| l.module.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, wanted, "{place}");
        assert_eq!(lora.parameter_count(), parameters_per_rank * rank, "{place}");
    }
}

fn check_full(place: &str, graph: &Graph, expected: &BTreeMap<String, Vec<usize>>) {
    let full = Trainables::full(graph, &["*".into()]).unwrap();
    let found: BTreeMap<String, Vec<usize>> = full
        .tensors
        .iter()
        .map(|t| (t.name.clone(), torch_shape(t)))
        .collect();
    assert_eq!(
        found.len(),
        full.tensors.len(),
        "{place}: two weights share a name"
    );
    let missing: Vec<_> = expected.keys().filter(|n| !found.contains_key(*n)).collect();
    assert!(missing.is_empty(), "{place}: not found: {missing:?}");
    let unknown: Vec<_> = found.keys().filter(|n| !expected.contains_key(*n)).collect();
    assert!(unknown.is_empty(), "{place}: no parameters: {unknown:?}");
    assert_eq!(found, *expected, "{place}");
}

/// PyTorch's shape of a weight, as the graph's layout gives it: transposed, or with dimensions of 1 more.
fn torch_shape(tensor: &Trainable) -> Vec<usize> {
    let TrainableKind::Weight {
        transposed,
        torch_shape,
        ..
    } = &tensor.kind
    else {
        panic!("{} is {:?}", tensor.name, tensor.kind)
    };
    if *transposed {
        assert!(
            tensor.shape.iter().eq(torch_shape.iter().rev()),
            "{}",
            tensor.name
        );
    } else {
        assert!(tensor.shape.starts_with(torch_shape), "{}", tensor.name);
        assert!(
            tensor.shape[torch_shape.len()..].iter().all(|d| *d == 1),
            "{}",
            tensor.name
        );
    }
    torch_shape.clone()
}

#[test]
fn layers_and_weights_are_those_of_peft_and_diffusers() {
    for (export, architecture, modules, parameters_per_rank) in EXPORTS {
        let expected = expected(architecture);
        let graph = Structure::unpack(export).specialize().unwrap();
        validate(&graph).unwrap();
        check_lora(export, &graph, &expected.lora, modules, parameters_per_rank);
        check_full(export, &graph, &expected.parameters);
    }
}

/// Opsets, open dimensions, an optimizer that ran or did not: names and layouts differ, the layers do not. The tiny
/// exports have PyTorch's gradients beside them, whose names and shapes are those of the parameters.
#[test]
fn every_way_of_exporting_tells_the_same_layers() {
    let targets = ["to_q", "to_k", "to_v", "to_out.0"].map(str::to_owned);
    let folder = common::fixtures().join("exports");
    let mut exports = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let Some(export) = file.strip_suffix(".onnx").filter(|e| e.starts_with("unet_")) else {
            continue;
        };
        let (model, way) = export.split_once('-').unwrap();
        let recorded = Recorded::read(&folder.join(format!("{model}.safetensors")));
        let gradients = recorded.0.iter();
        let parameters: BTreeMap<String, Vec<usize>> = gradients
            .filter_map(|(name, (shape, _))| Some((name.strip_prefix("grad.")?.to_owned(), shape.clone())))
            .collect();
        let modules = parameters.keys().filter_map(|name| name.strip_suffix(".weight"));
        let wanted: Vec<&str> = modules
            .filter(|m| targets.iter().any(|t| m.ends_with(&format!(".{t}"))))
            .collect();

        let graph = tiny(&folder.join(&file));
        let lora = Trainables::lora(&graph, &targets, 4, 4.0).unwrap();
        let mut found: Vec<&str> = lora.adapted.iter().map(|l| l.module.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, wanted, "{export}");
        // Dynamo lets modules use one tensor where their parameters are equal; nothing tells those apart.
        if !(model.ends_with("_merged") && way.starts_with("dynamo")) {
            check_full(export, &graph, &parameters);
        }
        exports += 1;
    }
    assert!(exports > 10, "only {exports} exports");
}

/// The static graph of a tiny export.
fn tiny(path: &Path) -> Graph {
    let model = Model::read(path).unwrap();
    let mut dims = Dims::default();
    for dim in model.inputs().unwrap().into_iter().flat_map(|i| i.dims.unwrap()) {
        if let Dim::Named(name) = dim {
            let size = if name == "batch_size" { 2 } else { 8 };
            dims.named.insert(name, size);
        }
    }
    let split_shared = true;
    specialize(&model, &SpecializeOptions { dims, split_shared }).unwrap()
}

#[test]
fn the_step_derives_without_a_weight_being_read() {
    for (export, architecture, modules, _) in EXPORTS {
        let targets = expected(architecture).lora.targets;
        let structure = Structure::unpack(export);
        let denoiser = structure.specialize().unwrap();
        structure.remove_weights();

        let lora = Trainables::lora(&denoiser, &targets, 8, 8.0).unwrap();
        let dpo = Dpo::default();
        let shape = StepShape {
            loss_scale: false,
            pairs: 1,
            guidance: None,
            whole_batch: true,
            derive: Default::default(),
        };
        let step = StepGraph::build(&denoiser, &lora, &dpo, shape, Reference::Branch)
            .unwrap()
            .graph;
        validate(&step).unwrap();
        for t in &lora.tensors {
            let gradient = step.output(&format!("grad.{}", t.name)).unwrap();
            assert_eq!(step.shape(gradient), t.shape, "{export}: {}", t.name);
        }
        assert_eq!(lora.tensors.len(), 2 * modules, "{export}");
        assert_eq!(weights_left(&step), weights_left(&denoiser), "{export}");
    }
}

/// Whoever exports it: an attention is four projections, and without gradients one operator between them.
#[test]
fn every_attention_is_one_operator_where_no_gradient_is_needed() {
    for (export, _, modules, _) in EXPORTS {
        let denoiser = Structure::unpack(export).specialize().unwrap();
        let graph = attention::fused(denoiser).unwrap();
        validate(&graph).unwrap();
        let count = |op: &str| graph.nodes.iter().filter(|n| n.op == op).count();
        assert_eq!(count("MultiHeadAttention"), modules / 4, "{export}");
        assert_eq!(count("Softmax"), 0, "{export}");
    }
}

/// How many weights the graph has in the file that is not there. What it has in memory is small.
fn weights_left(graph: &Graph) -> usize {
    let absent = graph.constants.values().filter(|c| match &c.data {
        TensorData::External { .. } => true,
        TensorData::Inline(bytes) => {
            assert!(bytes.len() <= 1024, "{} bytes are in memory", bytes.len());
            false
        }
    });
    absent.count()
}
