//! A model ready to run: its inputs and outputs, and runs with tensors by name.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel, SessionBuilder};
use ort::session::{SessionInputValue, SessionInputs};
use ort::value::{DynValue, Outlet, ValueType};

use super::environment::{RuntimeOptions, init};
use super::failure::failure;
use super::placement::Placed;
use super::value::{TensorView, dtype_of, view};
use super::{
    Arena, ExecutionProvider, OptLevel, SessionOptions, SharedWeights, environment, memory_reuse, operators,
    placement, require,
};
use crate::tensor::{DType, Tensor};
use crate::{Error, Result};

/// Name, element type and dimensions of an input or output.
#[derive(Debug, Clone, PartialEq)]
pub struct IoInfo {
    /// Name in the graph.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first; `None` where any size is taken.
    pub dims: Vec<Option<usize>>,
    /// Names of the dimensions that have one, such as `batch`; as many as `dims`.
    pub symbols: Vec<Option<String>>,
}

impl IoInfo {
    /// The shape, if every dimension is fixed.
    pub fn static_shape(&self) -> Option<Vec<usize>> {
        self.dims.iter().copied().collect()
    }

    fn takes(&self, dtype: DType, shape: &[usize]) -> bool {
        self.dtype == dtype
            && self.dims.len() == shape.len()
            && self
                .dims
                .iter()
                .zip(shape)
                .all(|(want, have)| want.is_none_or(|want| want == *have))
    }
}

impl fmt::Display for IoInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims = self
            .dims
            .iter()
            .zip(&self.symbols)
            .map(|(dim, symbol)| match (dim, symbol) {
                (Some(size), _) => size.to_string(),
                (None, Some(symbol)) => symbol.clone(),
                (None, None) => "?".into(),
            });
        write!(
            f,
            "{} {}[{}]",
            self.name,
            self.dtype,
            dims.collect::<Vec<_>>().join(",")
        )
    }
}

/// A model that was loaded and optimised, ready to run.
#[derive(Debug)]
pub struct Session {
    pub(super) inner: ort::session::Session,
    pub(super) name: String,
    inputs: Vec<IoInfo>,
    outputs: Vec<IoInfo>,
    // Dropped after `inner`, which reads from it.
    _weights: SharedWeights,
}

impl Session {
    /// Loads a model file; external data is looked for beside it.
    ///
    /// # Errors
    /// [`Error::BadInput`] when the file is missing, not ONNX, cut short, or its external data is; when the
    /// execution provider asked for cannot be used. [`Error::Runtime`] when ONNX Runtime fails otherwise.
    pub fn from_file(path: &Path, options: &SessionOptions) -> Result<Self> {
        // ONNX Runtime would report these only after the provider has started, and less clearly.
        let file = std::fs::metadata(path).map_err(Error::io(path, "read"))?;
        let name = path.display().to_string();
        if file.is_dir() {
            return Err(Error::bad(name, "is a folder", "Name the model file in it."));
        }
        if file.len() == 0 {
            return Err(Error::bad(name, "is empty", "Export or download the file again."));
        }
        let mut builder = builder(&name, options)?;
        let inner = operators::first_alone(|| builder.commit_from_file(path));
        let inner = inner.map_err(|e| failure(&name, e))?;
        Self::new(inner, name, SharedWeights::default(), options)
    }

    /// Loads a serialized model; `folder` is where the files of its external data are.
    ///
    /// # Errors
    /// As [`Session::from_file`].
    pub fn from_bytes(model: &[u8], folder: Option<&Path>, options: &SessionOptions) -> Result<Self> {
        Self::with_weights(model, folder, &SharedWeights::default(), options)
    }

    /// Loads a serialized model whose initializers named in `weights` are read from there, in place: sessions on
    /// the CPU over the same weights hold them in memory once. The model declares each of them with external
    /// data, in the file in `folder` that `weights` maps; that file is opened only to fold constants.
    ///
    /// # Errors
    /// As [`Session::from_file`].
    pub fn with_weights(
        model: &[u8],
        folder: Option<&Path>,
        weights: &SharedWeights,
        options: &SessionOptions,
    ) -> Result<Self> {
        let name = label(folder);
        let mut builder = builder(&name, options)?;
        if let Some(folder) = folder {
            builder = builder
                .with_config_entry(
                    "session.model_external_initializers_file_folder_path",
                    text(folder)?,
                )
                .map_err(|e| failure(&name, e))?;
        }
        let mut builder = weights.add_to(builder, options).map_err(|e| failure(&name, e))?;
        let inner = operators::first_alone(|| builder.commit_from_memory(model));
        let inner = inner.map_err(|e| failure(&name, e))?;
        Self::new(inner, name, weights.clone(), options)
    }

    fn new(
        inner: ort::session::Session,
        name: String,
        weights: SharedWeights,
        options: &SessionOptions,
    ) -> Result<Self> {
        let describe = |outlets: &[Outlet]| {
            outlets
                .iter()
                .map(|o| io_info(&name, o))
                .collect::<Result<Vec<_>>>()
        };
        let (inputs, outputs) = (describe(inner.inputs())?, describe(inner.outputs())?);
        let session = Self {
            inner,
            name,
            inputs,
            outputs,
            _weights: weights,
        };
        if let Some(allowed) = options.only_on_cpu {
            session.refuse_cpu(allowed)?;
        }
        Ok(session)
    }

    /// Where every operator is computed, if [`SessionOptions::only_on_cpu`] was given.
    ///
    /// # Errors
    /// [`Error::Runtime`] where it was not.
    pub fn placement(&self) -> Result<Vec<Placed>> {
        placement::placement(&self.inner).map_err(|e| failure(&self.name, e))
    }

    /// Fails if the CPU has to compute anything but nodes of the name `allowed`.
    fn refuse_cpu(&self, allowed: &str) -> Result<()> {
        let placed = self.placement()?;
        let mut on_cpu: Vec<&str> = placed
            .iter()
            .filter(|p| p.is_on_cpu() && !p.is_called(allowed))
            .map(|p| p.op.as_str())
            .collect();
        if on_cpu.is_empty() {
            return Ok(());
        }
        let count = on_cpu.len();
        on_cpu.sort_unstable();
        on_cpu.dedup();
        Err(Error::bad(
            &self.name,
            format!(
                "has {count} of {} operators that the execution provider leaves to the CPU ({}), with copies each way in every run",
                placed.len(),
                on_cpu.join(", ")
            ),
            "Export the model with another opset or precision, or accept that with `runtime.cpu_fallback: true` (for `bench`, --cpu-fallback).",
        ))
    }

    /// Inputs in the graph's order.
    pub fn inputs(&self) -> &[IoInfo] {
        &self.inputs
    }

    /// Outputs in the graph's order.
    pub fn outputs(&self) -> &[IoInfo] {
        &self.outputs
    }

    /// Runs the model on tensors given by name, each exactly once. Row-major tensors are read in place.
    ///
    /// # Errors
    /// [`Error::BadInput`] naming an input that is missing, unknown, or of wrong type or shape;
    /// [`Error::Runtime`] when ONNX Runtime fails.
    pub fn run<'a, V>(&mut self, inputs: &[(&str, V)]) -> Result<Outputs>
    where
        V: Clone + Into<TensorView<'a>>,
    {
        let views: Vec<_> = inputs.iter().map(|(name, v)| (*name, v.clone().into())).collect();
        let values = self.input_values(&views, |_| None)?;
        let outputs = self
            .inner
            .run(SessionInputs::from(values))
            .map_err(|e| failure(&self.name, e))?;
        let values = outputs
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        Ok(Outputs {
            place: self.name.clone(),
            values,
        })
    }

    /// Checks what was given against the graph and wraps it. `kept` has what need not be given.
    pub(super) fn input_values<'g: 'v, 'v>(
        &self,
        given: &[(&str, TensorView<'g>)],
        kept: impl Fn(&str) -> Option<&'v DynValue>,
    ) -> Result<Vec<(Cow<'static, str>, SessionInputValue<'v>)>> {
        for (name, view) in given {
            self.check_input(name, view.dtype(), view.shape())?;
        }
        self.inputs
            .iter()
            .map(|input| {
                let mut matching = given.iter().filter(|(name, _)| *name == input.name);
                let value = match (matching.next(), kept(&input.name)) {
                    (Some((_, view)), _) => view.to_input().map_err(|e| failure(&self.name, e))?,
                    (None, Some(value)) => value.into(),
                    (None, None) => return Err(self.bad_input(&input.name, "was not given".into())),
                };
                match matching.next() {
                    Some(_) => Err(self.bad_input(&input.name, "was given twice".into())),
                    None => Ok((Cow::Owned(input.name.clone()), value)),
                }
            })
            .collect()
    }

    /// Whether an input of this name takes this tensor.
    pub(super) fn check_input(&self, name: &str, dtype: DType, shape: &[usize]) -> Result<()> {
        let input = self
            .inputs
            .iter()
            .find(|i| i.name == name)
            .ok_or_else(|| self.unknown(name))?;
        if input.takes(dtype, shape) {
            return Ok(());
        }
        let have = format!("{dtype}{shape:?}");
        Err(self.bad_input(name, format!("takes {input}, but was given {have}")))
    }

    fn unknown(&self, name: &str) -> Error {
        let names: Vec<_> = self.inputs.iter().map(|i| i.name.as_str()).collect();
        self.bad_input(name, format!("is not an input; there are {}", names.join(", ")))
    }

    fn bad_input(&self, name: &str, what: String) -> Error {
        let remedy = "Check that the model is the one meant, exported with these inputs and dimensions.";
        Error::bad(format!("{}: input `{name}`", self.name), what, remedy)
    }

    /// Ends profiling and returns the file that was written (see [`SessionOptions::profile`]).
    ///
    /// # Errors
    /// [`Error::Runtime`] when the session was built without profiling or the file cannot be written.
    pub fn end_profiling(&mut self) -> Result<PathBuf> {
        self.inner
            .end_profiling()
            .map(PathBuf::from)
            .map_err(|e| failure(&self.name, e))
    }
}

/// What a run returned, by name.
#[derive(Debug)]
pub struct Outputs {
    place: String,
    values: Vec<(String, DynValue)>,
}

impl Outputs {
    /// Names in the graph's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(|(name, _)| name.as_str())
    }

    /// Reads an output in place.
    ///
    /// # Errors
    /// [`Error::BadInput`] when there is no such output, or its type has no counterpart here.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>> {
        let value = self.values.iter().find(|(n, _)| n == name);
        let (_, value) = value.ok_or_else(|| no_output(&self.place, name, self.names()))?;
        view(&format!("{}: output `{name}`", self.place), value)
    }

    /// Takes an output out, copying it.
    ///
    /// # Errors
    /// As [`Outputs::view`].
    pub fn take(&mut self, name: &str) -> Result<Tensor> {
        let tensor = self.view(name)?.to_tensor();
        self.values.retain(|(n, _)| n != name);
        Ok(tensor)
    }
}

pub(super) fn no_output<'a>(place: &str, name: &str, names: impl Iterator<Item = &'a str>) -> Error {
    Error::bad(
        format!("{place}: output `{name}`"),
        format!(
            "does not exist; there are {}",
            names.collect::<Vec<_>>().join(", ")
        ),
        "Check that the model is the one meant.",
    )
}

fn label(folder: Option<&Path>) -> String {
    folder.map_or_else(
        || "graph in memory".into(),
        |f| format!("graph over {}", f.display()),
    )
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::bad(
            path.display().to_string(),
            "is not valid Unicode",
            "Move the model to another folder.",
        )
    })
}

fn io_info(place: &str, outlet: &Outlet) -> Result<IoInfo> {
    let unreadable = || {
        Error::bad(
            format!("{place}: `{}`", outlet.name()),
            format!("is of type {}, which is not supported", outlet.dtype()),
            "Export the model with tensors of floats, integers or bools.",
        )
    };
    let dtype = dtype_of(outlet.dtype()).ok_or_else(unreadable)?;
    let ValueType::Tensor {
        shape,
        dimension_symbols,
        ..
    } = outlet.dtype()
    else {
        return Err(unreadable());
    };
    Ok(IoInfo {
        name: outlet.name().to_owned(),
        dtype,
        dims: shape.iter().map(|d| usize::try_from(*d).ok()).collect(),
        symbols: dimension_symbols
            .iter()
            .map(|s| (!s.is_empty()).then(|| s.clone()))
            .collect(),
    })
}

fn builder(place: &str, options: &SessionOptions) -> Result<SessionBuilder> {
    let info = init(&RuntimeOptions::default())?;
    if options.ep != ExecutionProvider::Cpu {
        require(options.ep)?;
    }
    if options.arena == Arena::Shared {
        environment::share_arena(info).map_err(|e| failure(place, e))?;
    }
    configure(SessionBuilder::new(info.environment()), options).map_err(|e| failure(place, e))
}

fn configure(builder: ort::Result<SessionBuilder>, options: &SessionOptions) -> ort::Result<SessionBuilder> {
    let level = match options.optimization {
        OptLevel::None => GraphOptimizationLevel::Disable,
        OptLevel::Basic => GraphOptimizationLevel::Level1,
        OptLevel::Extended => GraphOptimizationLevel::Level2,
        OptLevel::All => GraphOptimizationLevel::All,
    };
    let mut builder = builder?
        // Only what is registered below: never a device that ONNX Runtime picks by itself.
        .with_auto_device(AutoDevicePolicy::PreferCPU)?
        .with_intra_threads(options.thread_count())?
        .with_intra_op_spinning(options.spin)?
        // Between runs the cores belong to the optimizer and the data loader.
        .with_config_entry("session.force_spinning_stop", "1")?
        .with_optimization_level(level)?
        .with_prepacking(options.prepack)?
        .with_memory_pattern(options.memory_pattern)?
        .with_deterministic_compute(options.deterministic)?
        .with_execution_providers(options.ep.dispatches())?;
    if options.ep == ExecutionProvider::Cpu {
        builder = operators::add_to(builder)?;
    }
    if options.only_on_cpu.is_some() {
        builder = placement::record(builder)?;
    }
    if !options.share_buffers {
        memory_reuse::switch_off(&mut builder);
    }
    match options.arena {
        Arena::PerSession => {}
        Arena::Shared => builder = builder.with_env_allocators()?,
        Arena::Off => builder = builder.with_execution_providers([ort::ep::CPU::default().build()])?,
    }
    if !options.disabled_optimizers.is_empty() {
        builder = builder.with_disabled_optimizers(options.disabled_optimizers.join(";"))?;
    }
    for (name, size) in &options.dims {
        builder = builder.with_dimension_override(name, *size as i64)?;
    }
    if let Some(prefix) = &options.profile {
        builder = builder.with_profiling(prefix)?;
    }
    if let Some(path) = &options.optimized_model {
        builder = builder.with_optimized_model_path(path)?;
    }
    Ok(builder)
}
