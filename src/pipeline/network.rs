//! A network of a pipeline folder in a session: runs on any number of samples, whatever batch its export fixes.

use std::path::Path;

use ndarray::{ArrayD, Axis, Slice, concatenate};

use crate::model_folder::{Component, ModelFolder};
use crate::onnx::{Graph, Model, write};
use crate::runtime::{IoInfo, Session, SessionOptions, SharedWeights, TensorView, WeightSource};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// A network with one main input whose first dimension is the batch.
#[derive(Debug)]
pub struct Network {
    place: String,
    session: Session,
    /// Samples a run must have, if the export fixes that.
    batch: Option<usize>,
}

/// Makes the inputs of a run for samples by index.
pub type InputsOf<'a> = dyn Fn(&[usize]) -> Result<Vec<(&'static str, Tensor)>> + 'a;

impl Network {
    /// Loads `model.onnx` of a component as it is; `input` is the main input.
    ///
    /// # Errors
    /// The file is missing, is no model, or has no such input.
    pub fn load(
        model: &ModelFolder,
        component: Component,
        options: &SessionOptions,
        input: &str,
    ) -> Result<Self> {
        let path = model.network(component)?;
        let session = Session::from_file(&path, options)?;
        Self::new(path.display().to_string(), component, session, input)
    }

    /// As [`Network::load`], computing in single precision also where the file holds half precision.
    ///
    /// # Errors
    /// As [`Network::load`].
    pub fn load_in_single(
        model: &ModelFolder,
        component: Component,
        options: &SessionOptions,
        input: &str,
    ) -> Result<Self> {
        let path = model.network(component)?;
        let file = Model::read(&path)?;
        let Some(bytes) = file.in_single_precision()? else {
            return Self::load(model, component, options, input);
        };
        let session = Session::from_bytes(&bytes, Some(file.folder()), options)?;
        Self::new(path.display().to_string(), component, session, input)
    }

    /// A session over `graph`, which was made of the model at `path`.
    ///
    /// # Errors
    /// As [`Network::load`].
    pub fn over_graph(
        path: &Path,
        component: Component,
        graph: &Graph,
        options: &SessionOptions,
        input: &str,
    ) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let session = session_over(graph, folder, &map_weights(graph)?, options)?;
        Self::new(path.display().to_string(), component, session, input)
    }

    fn new(place: String, component: Component, session: Session, input: &str) -> Result<Self> {
        let found = session.inputs().iter().find(|i| i.name == input);
        let batch = found.map(|i| i.dims.first().copied().flatten());
        let batch = batch.ok_or_else(|| {
            let names: Vec<String> = session.inputs().iter().map(IoInfo::to_string).collect();
            let what = format!("has no input {input}; it has {}", names.join(", "));
            Error::bad(
                &place,
                what,
                format!("Check that it is a {component} exported by optimum."),
            )
        })?;
        Ok(Self {
            place,
            session,
            batch,
        })
    }

    /// The file, as errors name it.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// An input by its name.
    pub fn input(&self, name: &str) -> Option<&IoInfo> {
        self.session.inputs().iter().find(|i| i.name == name)
    }

    /// Names of the outputs.
    pub fn output_names(&self) -> impl Iterator<Item = &str> {
        self.session.outputs().iter().map(|o| o.name.as_str())
    }

    /// Whether there is an output of this name.
    pub fn has_output(&self, name: &str) -> bool {
        self.output_names().any(|o| o == name)
    }

    /// The error that there is no output `wanted`.
    pub fn missing_output(&self, wanted: &str) -> Error {
        let names: Vec<String> = self.session.outputs().iter().map(IoInfo::to_string).collect();
        let what = format!("has no output {wanted}; it has {}", names.join(", "));
        Error::bad(
            &self.place,
            what,
            "Export the model again with a current optimum-onnx.",
        )
    }

    /// Runs on `samples` samples, for which `inputs` makes the inputs by index, and returns the named outputs for all.
    /// Where the export fixes the batch, runs as often as that takes, repeating the last sample to fill up.
    ///
    /// # Errors
    /// The run fails, or an output is missing or does not have the batch first.
    pub fn run(
        &mut self,
        samples: usize,
        inputs: &InputsOf<'_>,
        outputs: &[&str],
    ) -> Result<Vec<ArrayD<f32>>> {
        let batch = self.batch.unwrap_or(samples).max(1);
        let mut parts: Vec<Vec<ArrayD<f32>>> = vec![Vec::new(); outputs.len()];
        for start in (0..samples).step_by(batch) {
            let indices: Vec<usize> = (start..start + batch).map(|i| i.min(samples - 1)).collect();
            let inputs = inputs(&indices)?;
            let views: Vec<(&str, TensorView)> = inputs
                .iter()
                .map(|(name, tensor)| (*name, TensorView::from(tensor)))
                .collect();
            let mut made = self.session.run(&views)?;
            for (name, parts) in outputs.iter().zip(&mut parts) {
                let part = made.take(name)?.into_f32(&self.place)?;
                if part.shape().first() != Some(&batch) {
                    let what = format!("gave {name} of shape {:?} for {batch} samples", part.shape());
                    let remedy = "Export the model again with its batch first.";
                    return Err(Error::bad(&self.place, what, remedy));
                }
                let wanted = batch.min(samples - start);
                parts.push(part.slice_axis(Axis(0), Slice::from(..wanted)).to_owned());
            }
        }
        let join = |(name, parts): (&&str, Vec<ArrayD<f32>>)| {
            let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
            concatenate(Axis(0), &views).map_err(|e| {
                let what = format!("gave {name} of changing shapes: {e}");
                Error::bad(&self.place, what, "Export the model again.")
            })
        };
        outputs.iter().zip(parts).map(join).collect()
    }
}

/// Maps the external weights of `graph` once, for all sessions over graphs that share them.
///
/// # Errors
/// A file of weights is missing or too short.
pub fn map_weights(graph: &Graph) -> Result<SharedWeights> {
    use crate::onnx::TensorData;
    let source = |(value, constant): (&crate::onnx::ValueId, &crate::onnx::Constant)| match &constant.data {
        TensorData::Inline(_) => None,
        TensorData::External { file, offset, .. } => Some(WeightSource {
            name: graph.name(*value),
            dtype: constant.dtype,
            dims: constant.shape.clone(),
            file: file.as_path().to_path_buf(),
            offset: *offset,
        }),
    };
    SharedWeights::map(graph.constants.iter().filter_map(source))
}

/// Where the files of the graph's weights lie, if it has any.
fn data_folder(graph: &Graph) -> Option<&Path> {
    use crate::onnx::TensorData;
    graph
        .constants
        .values()
        .find_map(|constant| match &constant.data {
            TensorData::Inline(_) => None,
            TensorData::External { file, .. } => file.parent(),
        })
}

/// A session over `graph` whose external weights come from `weights`; `folder` is where the model lies.
///
/// # Errors
/// ONNX Runtime refuses the graph.
pub fn session_over(
    graph: &Graph,
    folder: &Path,
    weights: &SharedWeights,
    options: &SessionOptions,
) -> Result<Session> {
    let folder = data_folder(graph)
        .filter(|own| !own.starts_with(folder))
        .unwrap_or(folder);
    let bytes = write::to_bytes(graph, Some(folder))?;
    Session::with_weights(&bytes, Some(folder), weights, options)
}
