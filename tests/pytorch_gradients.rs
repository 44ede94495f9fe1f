//! Gradients of whole exported models against PyTorch's, for every parameter and every float input.
//!
//! Reads `tests/fixtures/exports` (see `scripts/fixtures/exports.py` for what the files hold). With
//! `ORTDPO_EXPORTS=DIR` it reads the whole matrix of exports that the script writes with `--all DIR` instead.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, Axis};
use ortdpo::autodiff::{Wrt, cotangent_name, derive, gradient_name};
use ortdpo::onnx::{Dims, Graph, Model, SpecializeOptions, specialize, write};
use ortdpo::runtime::{OptLevel, Session, SessionOptions};
use ortdpo::tensor::Tensor;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// Largest difference allowed between two gradients of a tensor, relative to the largest number in PyTorch's.
const TOLERANCE: f32 = 1e-4;

/// Some gradients are zero by construction (a key's bias in attention) and come out as rounding noise on both sides. A
/// tensor counts as zero if all its numbers are below this part of the model's largest gradient, here and in PyTorch.
const NOISE: f32 = 1e-6;

/// `NAME.json`; see `scripts/fixtures/names.py`.
#[derive(Deserialize)]
struct Names {
    initializers: BTreeMap<String, Entry>,
    unmatched: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Entry {
    parameters: Vec<String>,
    #[serde(default)]
    transposed: bool,
    rows: Option<usize>,
    #[serde(default)]
    uses: Vec<Use>,
}

#[derive(Deserialize)]
struct Use {
    value: String,
    parameter: String,
}

impl Entry {
    /// The parameters that each tensor of the graph stands for, by the tensor's name.
    fn by_value(&self, name: &str) -> BTreeMap<String, BTreeSet<&str>> {
        let mut found: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for u in &self.uses {
            found.entry(u.value.clone()).or_default().insert(&u.parameter);
        }
        if self.uses.is_empty() {
            found.insert(
                name.to_owned(),
                self.parameters.iter().map(String::as_str).collect(),
            );
        }
        found
    }

    /// What the gradient of the graph's tensor is, if that of the parameter is `gradient`.
    fn as_stored(&self, gradient: ArrayD<f32>) -> ArrayD<f32> {
        let gradient = match self.transposed {
            true => gradient.t().as_standard_layout().into_owned(),
            false => gradient,
        };
        match self.rows {
            Some(rows) => gradient.slice_axis(Axis(0), (..rows).into()).to_owned(),
            None => gradient,
        }
    }
}

/// One exported model with PyTorch's numbers.
struct Export<'a> {
    path: &'a Path,
    names: Names,
    numbers: SafeTensors<'a>,
}

/// How an export compared.
struct Report {
    tensors: usize,
    zero: usize,
    worst: (f32, String),
}

impl Export<'_> {
    fn tensor(&self, name: &str) -> Option<Tensor> {
        let view = self.numbers.tensor(name).ok()?;
        let chunks = |n| view.data().chunks_exact(n);
        Some(match view.dtype() {
            Dtype::F32 => {
                let values = chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap()));
                Tensor::f32(view.shape(), values.collect())
            }
            Dtype::I64 => {
                let values = chunks(8).map(|c| i64::from_le_bytes(c.try_into().unwrap()));
                Tensor::i64(view.shape(), values.collect())
            }
            other => panic!("{name} holds {other:?}"),
        })
    }

    fn floats(&self, name: &str) -> Option<ArrayD<f32>> {
        self.tensor(name).map(|t| t.into_f32(name).unwrap())
    }

    /// The graph with the shapes of PyTorch's inputs.
    fn graph(&self) -> ortdpo::Result<Graph> {
        let model = Model::read(self.path)?;
        let mut dims = Dims::default();
        for input in model.inputs()? {
            let given = self.tensor(&format!("input.{}", input.name)).unwrap();
            dims.shapes.insert(input.name, given.shape().to_vec());
        }
        let split_shared = true;
        specialize(&model, &SpecializeOptions { dims, split_shared })
    }

    /// PyTorch's gradients by the names of the graph's tensors. Checks that no parameter is left out.
    fn expected(&self, graph: &Graph) -> BTreeMap<String, ArrayD<f32>> {
        let mut found = BTreeMap::new();
        let mut seen = self.names.unmatched.clone();
        for (name, entry) in &self.names.initializers {
            for (value, parameters) in entry.by_value(name) {
                let gradients = parameters
                    .iter()
                    .filter_map(|p| self.floats(&format!("grad.{p}")));
                let sum = gradients.map(|g| entry.as_stored(g)).reduce(|a, b| a + b);
                found.extend(sum.map(|sum| (value, sum)));
                seen.extend(parameters.into_iter().map(str::to_owned));
            }
        }
        for parameter in self
            .numbers
            .names()
            .iter()
            .filter_map(|n| n.strip_prefix("grad."))
        {
            assert!(seen.contains(parameter), "{parameter} is compared with nothing");
        }
        for input in &graph.inputs {
            let name = graph.name(*input);
            let gradient = self.floats(&format!("grad_input.{name}"));
            found.extend(gradient.map(|g| (name, g)));
        }
        found
    }

    fn run(&self, graph: &Graph, session: &mut Session) -> ortdpo::Result<ortdpo::runtime::Outputs> {
        let mut feeds = Vec::new();
        for input in session.inputs() {
            let given = self.tensor(&format!("input.{}", input.name));
            feeds.extend(given.map(|tensor| (input.name.clone(), tensor)));
        }
        for output in &graph.outputs {
            let name = graph.name(*output);
            let cotangent = self.tensor(&format!("cotangent.{name}"));
            feeds.push((cotangent_name(&name), cotangent.unwrap()));
        }
        let feeds: Vec<_> = feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
        session.run(&feeds)
    }

    fn compare(&self) -> ortdpo::Result<Report> {
        let graph = self.graph()?;
        let expected = self.expected(&graph);
        let wrt = Wrt::Named(expected.keys().cloned().collect());
        let derived = derive(graph.clone(), &wrt)?.graph;
        let bytes = write::to_bytes(&derived, None)?;
        // The tiny models are badly conditioned: the processor's own convolution layouts alone, which come with the
        // highest level, change some of their gradients by 5e-5.
        let optimization = OptLevel::Extended;
        let options = SessionOptions {
            optimization,
            ..Default::default()
        };
        let mut session = Session::from_bytes(&bytes, None, &options)?;
        let mut outputs = self.run(&graph, &mut session)?;
        let noise = NOISE * expected.values().map(largest).fold(0.0, f32::max);
        let mut report = Report {
            tensors: expected.len(),
            zero: 0,
            worst: (0.0, String::new()),
        };
        for (name, expected) in &expected {
            let output = gradient_name(name);
            let got = outputs.take(&output)?.into_f32(&output)?;
            let got = got.into_shape_with_order(expected.shape()).unwrap();
            if largest(expected) < noise && largest(&got) < noise {
                report.zero += 1;
                continue;
            }
            let error = largest(&(&got - expected)) / largest(expected);
            if error > report.worst.0 {
                report.worst = (error, name.clone());
            }
        }
        Ok(report)
    }
}

/// Largest magnitude; infinite if one of the numbers is not a number.
fn largest(values: &ArrayD<f32>) -> f32 {
    let size = |v: &f32| if v.is_nan() { f32::INFINITY } else { v.abs() };
    values.iter().map(size).fold(0.0, f32::max)
}

/// What is wrong with the export at `path`, if anything is.
fn fault(path: &Path) -> Option<String> {
    let stem = path.file_stem().unwrap().to_str().unwrap();
    let model = stem.split('-').next().unwrap();
    let numbers = std::fs::read(path.with_file_name(format!("{model}.safetensors"))).unwrap();
    let names = std::fs::read(path.with_extension("json")).unwrap();
    let export = Export {
        path,
        names: serde_json::from_slice(&names).unwrap(),
        numbers: SafeTensors::deserialize(&numbers).unwrap(),
    };
    match export.compare() {
        Err(error) => Some(format!("{stem}: {error}")),
        Ok(Report {
            tensors,
            zero,
            worst: (error, name),
        }) => {
            let line =
                format!("{stem}: {tensors} tensors ({zero} zero), worst relative error {error:.1e} ({name})");
            println!("{line}");
            (error > TOLERANCE).then_some(line)
        }
    }
}

#[test]
fn every_weight_of_every_export_has_pytorchs_gradient() {
    let chosen = std::env::var_os("ORTDPO_EXPORTS").map(PathBuf::from);
    let folder = chosen.unwrap_or_else(|| common::fixtures().join("exports"));
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut exports: Vec<PathBuf> = files
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    exports.sort();
    assert!(!exports.is_empty());
    let faults: Vec<String> = exports.iter().filter_map(|path| fault(path)).collect();
    assert!(
        faults.is_empty(),
        "{} of {} exports:\n{}",
        faults.len(),
        exports.len(),
        faults.join("\n")
    );
}
