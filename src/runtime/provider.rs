//! Execution providers: which exist by name, and which really work on this machine.
//!
//! ONNX Runtime prefers to go on: a provider that cannot be loaded is dropped with a line in the log and the CPU
//! does the work, many times slower. Here a provider that was asked for has to prove itself on a small graph,
//! with fallback to the CPU forbidden, before anything is built on it.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use ort::editor::{Graph, Model, Node, ONNX_DOMAIN, Opset};
use ort::ep::{self, ExecutionProvider as _, ExecutionProviderDispatch};
use ort::session::builder::SessionBuilder;
use ort::value::{Outlet, Shape, SymbolicDimensions, Tensor, TensorElementType, ValueType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::environment::{RuntimeInfo, RuntimeOptions, init};
use super::failure::one_line;
use crate::{Error, Result};

/// A way to compute that ONNX Runtime may offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ExecutionProvider {
    #[default]
    Cpu,
    Cuda,
    TensorRt,
    Rocm,
    MiGraphX,
    DirectMl,
    CoreMl,
    OpenVino,
    WebGpu,
}

impl ExecutionProvider {
    /// Every provider, the CPU first.
    pub const ALL: [Self; 9] = [
        Self::Cpu,
        Self::Cuda,
        Self::TensorRt,
        Self::Rocm,
        Self::MiGraphX,
        Self::DirectMl,
        Self::CoreMl,
        Self::OpenVino,
        Self::WebGpu,
    ];

    /// The name on the command line and in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
            Self::Rocm => "rocm",
            Self::MiGraphX => "migraphx",
            Self::DirectMl => "directml",
            Self::CoreMl => "coreml",
            Self::OpenVino => "openvino",
            Self::WebGpu => "webgpu",
        }
    }

    /// Whether the library at hand was built with this provider; says nothing about drivers or devices.
    fn is_built_in(self) -> bool {
        let built_in = match self {
            Self::Cpu => Ok(true),
            Self::Cuda => ep::CUDA::is_available(),
            Self::TensorRt => ep::TensorRT::is_available(),
            Self::Rocm => ep::ROCm::is_available(),
            Self::MiGraphX => ep::MIGraphX::is_available(),
            Self::DirectMl => ep::DirectML::is_available(),
            Self::CoreMl => ep::CoreML::is_available(),
            Self::OpenVino => ep::OpenVINO::is_available(),
            Self::WebGpu => ep::WebGPU::is_available(),
        };
        built_in.unwrap_or(false)
    }

    /// What to hand to a session, in order of preference. The CPU needs nothing: it is always behind the others.
    pub(super) fn dispatches(self) -> Vec<ExecutionProviderDispatch> {
        // TF32 keeps ten bits of the mantissa: too few for gradients of small differences.
        let cuda = || {
            ep::CUDA::default()
                .with_tf32(false)
                .with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested)
                .build()
        };
        let list = match self {
            Self::Cpu => vec![],
            Self::Cuda => vec![cuda()],
            // What TensorRT does not take goes to CUDA.
            Self::TensorRt => vec![ep::TensorRT::default().build(), cuda()],
            Self::Rocm => vec![ep::ROCm::default().build()],
            Self::MiGraphX => vec![ep::MIGraphX::default().build()],
            Self::DirectMl => vec![ep::DirectML::default().build()],
            Self::CoreMl => vec![ep::CoreML::default().build()],
            Self::OpenVino => vec![ep::OpenVINO::default().build()],
            Self::WebGpu => vec![ep::WebGPU::default().build()],
        };
        list.into_iter()
            .map(ExecutionProviderDispatch::error_on_failure)
            .collect()
    }
}

impl fmt::Display for ExecutionProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ExecutionProvider {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|ep| ep.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                Error::bad(
                    "execution provider",
                    format!("there is none called `{text}`"),
                    format!("Choose one of {names}."),
                )
            })
    }
}

/// What came of trying a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Usability {
    /// It computed something.
    Usable,
    /// The library at hand was built without it.
    NotBuiltIn,
    /// It is in the library but does not work: what ONNX Runtime said.
    Failing(String),
}

/// Whether `ep` works here: a small graph is built and run on it alone. Tried once per process and provider.
///
/// # Errors
/// There is no ONNX Runtime at all.
pub fn usability(ep: ExecutionProvider) -> Result<Usability> {
    static KNOWN: Mutex<Option<HashMap<ExecutionProvider, Usability>>> = Mutex::new(None);
    let info = init(&RuntimeOptions::default())?;
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(known
        .get_or_insert_default()
        .entry(ep)
        .or_insert_with(|| probe(ep, info))
        .clone())
}

/// Insists that `ep` works here.
///
/// # Errors
/// [`Error::BadInput`] saying why it does not; or that there is no ONNX Runtime at all.
pub fn require(ep: ExecutionProvider) -> Result<()> {
    let why = match usability(ep)? {
        Usability::Usable => return Ok(()),
        Usability::NotBuiltIn => {
            let info = init(&RuntimeOptions::default())?;
            format!(
                "{} (version {}) was built without it",
                info.path().display(),
                info.version()
            )
        }
        Usability::Failing(why) => why,
    };
    Err(Error::bad(
        format!("execution provider `{ep}`"),
        format!("cannot be used: {why}"),
        format!(
            "See what `ortdpo doctor` says is usable, or use cpu{}.",
            remedy(ep)
        ),
    ))
}

fn remedy(ep: ExecutionProvider) -> &'static str {
    match ep {
        ExecutionProvider::Cuda | ExecutionProvider::TensorRt => {
            "; `scripts/setup --cuda` fetches a library with CUDA, which needs NVIDIA's driver, CUDA and cuDNN"
        }
        _ => "",
    }
}

fn probe(ep: ExecutionProvider, info: &RuntimeInfo) -> Usability {
    if !ep.is_built_in() {
        return Usability::NotBuiltIn;
    }
    match run_small_graph(ep, info) {
        Ok(()) => Usability::Usable,
        Err(error) => Usability::Failing(one_line(error.message())),
    }
}

/// Multiplies two 2×2 matrices on `ep` and nowhere else.
fn run_small_graph(ep: ExecutionProvider, info: &RuntimeInfo) -> ort::Result<()> {
    let matrix = |name: &str| {
        let dimension_symbols = SymbolicDimensions::empty(2);
        let (ty, shape) = (TensorElementType::Float32, Shape::new([2, 2]));
        Outlet::new(
            name,
            ValueType::Tensor {
                ty,
                shape,
                dimension_symbols,
            },
        )
    };
    let mut graph = Graph::new()?;
    graph.set_inputs([matrix("a"), matrix("b")])?;
    graph.set_outputs([matrix("c")])?;
    graph.add_node(Node::new(
        "MatMul",
        ONNX_DOMAIN,
        "product",
        ["a", "b"],
        ["c"],
        [],
    )?)?;
    let mut model = Model::new([Opset::new(ONNX_DOMAIN, 17)?])?;
    model.set_graph(graph)?;

    let mut builder = SessionBuilder::new(info.environment())?.with_intra_threads(1)?;
    if ep != ExecutionProvider::Cpu {
        builder = builder
            .with_disable_cpu_fallback()?
            .with_execution_providers(ep.dispatches())?;
    }
    let mut session = model.into_session(&builder)?;
    let matrix = |values: [f32; 4]| Tensor::from_array(([2usize, 2], values.to_vec()));
    let outputs = session.run(ort::inputs![matrix([1., 2., 3., 4.])?, matrix([0., 1., 1., 0.])?])?;
    let (_, product) = outputs["c"].try_extract_tensor::<f32>()?;
    if product == [2., 1., 4., 3.] {
        Ok(())
    } else {
        Err(ort::Error::new(format!(
            "a product of two small matrices came out wrong: {product:?}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_whatever_their_case() {
        for ep in ExecutionProvider::ALL {
            assert_eq!(
                ep.to_string()
                    .to_uppercase()
                    .parse::<ExecutionProvider>()
                    .unwrap(),
                ep
            );
        }
        let text = "gpu".parse::<ExecutionProvider>().unwrap_err().to_string();
        assert!(text.contains("`gpu`") && text.contains("cpu, cuda"), "{text}");
    }

    #[test]
    fn the_cpu_is_usable_and_a_foreign_provider_is_refused_by_name() {
        require(ExecutionProvider::Cpu).unwrap();
        let foreign = if cfg!(windows) {
            ExecutionProvider::CoreMl
        } else {
            ExecutionProvider::DirectMl
        };
        let error = require(foreign).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("was built without it"), "{error}");
    }
}
