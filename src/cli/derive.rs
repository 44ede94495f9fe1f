//! `ortdpo derive`: a model that also computes gradients.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use ortdpo::autodiff::{Derived, Wrt, derive, gradient_name};
use ortdpo::onnx::{self, Graph, ValueId};
use ortdpo::{Error, Result};
use serde::Serialize;

use super::dims::DimArgs;
use super::output::{self, Format};

/// Write a model that computes the gradients of another one
///
/// OUT has the inputs of IN with their dimensions fixed, one more input `Y.cotangent` for every float output Y, the
/// outputs of IN, and an output `W.grad` for every tensor asked for: the gradient of the sum of ⟨Y.cotangent, Y⟩ with
/// respect to W. It holds standard operators only and loads in any ONNX Runtime. Weights in external data stay where
/// they are, or are linked beside OUT. See docs/derive.md.
#[derive(Args)]
pub struct Derive {
    /// The forward model, an .onnx file of opset 13 to 23
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Where to write the derived model
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    dims: DimArgs,
    /// What to differentiate by: `params`, or names of initializers, constants and inputs, separated by commas
    #[arg(long, value_name = "WHAT", default_value = "params")]
    wrt: Wrt,
    /// Give parameters that the exporter merged because their values are equal a gradient each
    #[arg(long)]
    split_shared: bool,
    /// How to print the summary
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Serialize)]
struct Summary<'a> {
    input: &'a Path,
    output: &'a Path,
    opset: i64,
    nodes: Nodes,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    gradients: Vec<Gradient>,
    seconds: f64,
}

#[derive(Serialize)]
struct Nodes {
    forward: usize,
    derived: usize,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<usize>,
}

#[derive(Serialize)]
struct Gradient {
    of: String,
    output: String,
    dtype: String,
    shape: Vec<usize>,
}

impl Derive {
    pub fn run(self) -> Result<()> {
        let started = Instant::now();
        self.refuse_to_overwrite_the_source()?;
        let forward = self.dims.load(&self.input, self.split_shared)?;
        let nodes = forward.nodes.len();
        let derived = derive(forward, &self.wrt).map_err(|e| in_file(e, &self.input))?;
        onnx::save(&derived.graph, &self.output)?;
        let summary = self.summary(&derived, nodes, started.elapsed().as_secs_f64());
        match self.format {
            Format::Json => output::json(&summary),
            Format::Text => output::line(text(&summary)),
        }
    }

    /// The derived model replaces the file at its place, so that must not be the model it comes from.
    fn refuse_to_overwrite_the_source(&self) -> Result<()> {
        let place = |path: &Path| std::fs::canonicalize(path).ok();
        if place(&self.input).is_some_and(|source| place(&self.output) == Some(source)) {
            return Err(Error::bad(
                self.output.display().to_string(),
                "is the model to derive from",
                "Write the derived model under another name.",
            ));
        }
        Ok(())
    }

    fn summary(&self, derived: &Derived, forward: usize, seconds: f64) -> Summary<'_> {
        let graph = &derived.graph;
        let tensors = |values: &[ValueId]| values.iter().map(|v| tensor(graph, *v)).collect();
        let gradient = |(name, ty): &(String, onnx::TensorType)| Gradient {
            of: name.clone(),
            output: gradient_name(name),
            dtype: ty.dtype.to_string(),
            shape: ty.shape.clone(),
        };
        Summary {
            input: &self.input,
            output: &self.output,
            opset: graph.opset,
            nodes: Nodes {
                forward,
                derived: graph.nodes.len(),
            },
            inputs: tensors(&graph.inputs),
            outputs: tensors(&graph.outputs),
            gradients: derived.wrt.iter().map(gradient).collect(),
            seconds,
        }
    }
}

fn tensor(graph: &Graph, value: ValueId) -> Tensor {
    let ty = graph.ty(value);
    Tensor {
        name: graph.name(value),
        dtype: ty.dtype.to_string(),
        shape: ty.shape.clone(),
    }
}

/// Adds the file's name to an error about one of its nodes.
fn in_file(error: Error, file: &Path) -> Error {
    match error {
        Error::BadInput { place, what, remedy } if !place.starts_with("--") => Error::BadInput {
            place: format!("{}: {place}", file.display()),
            what,
            remedy,
        },
        other => other,
    }
}

fn text(s: &Summary) -> String {
    let described = |t: &Tensor| format!("{} {}{:?}", t.name, t.dtype, t.shape);
    let forward_outputs = s.outputs.len() - s.gradients.len();
    let list = |tensors: &[Tensor]| tensors.iter().map(described).collect::<Vec<_>>().join("\n");
    let elements: usize = s
        .gradients
        .iter()
        .map(|g| g.shape.iter().product::<usize>())
        .sum();
    let rows = [
        ["inputs".into(), list(&s.inputs)],
        ["outputs".into(), list(&s.outputs[..forward_outputs])],
        [
            "gradients".into(),
            format!("{} tensors of {elements} elements", s.gradients.len()),
        ],
        [
            "nodes".into(),
            format!("{} forward, {} with gradients", s.nodes.forward, s.nodes.derived),
        ],
        ["time".into(), format!("{:.2} s", s.seconds)],
    ];
    output::table(["derived", &s.output.display().to_string()], rows)
}
