//! The denoiser of a pipeline folder as a static graph with one timestep per sample.

use std::path::Path;

use crate::onnx::{Dim, Dims, Graph, Model, SpecializeOptions, TensorData, specialize, write};
use crate::runtime::{Session, SessionOptions, SharedWeights, WeightSource};
use crate::traingraph::timestep;
use crate::{Error, Result};

/// Sizes of everything the denoiser is fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Samples per run; twice the pairs where samples come in pairs.
    pub samples: usize,
    /// Latent channels, height and width.
    pub latent: [usize; 3],
    /// Tokens and width of the text conditioning.
    pub text: [usize; 2],
}

impl Geometry {
    /// Values of one latent.
    pub fn latent_len(&self) -> usize {
        self.latent.iter().product()
    }

    /// Values of one text conditioning.
    pub fn text_len(&self) -> usize {
        self.text.iter().product()
    }

    /// The same sizes for another number of samples.
    pub fn with_samples(self, samples: usize) -> Self {
        Self { samples, ..self }
    }
}

/// Reads `model` and fixes its dimensions. `split_shared` makes parameters that the exporter merged separate again.
pub fn load(model: &Model, geometry: &Geometry, split_shared: bool) -> Result<Graph> {
    let mut dims = Dims::default();
    for input in model.inputs()? {
        let declared = input.dims.as_deref();
        let shape = match input.name.as_str() {
            "sample" => {
                let [c, h, w] = geometry.latent;
                vec![geometry.samples, c, h, w]
            }
            "encoder_hidden_states" => vec![geometry.samples, geometry.text[0], geometry.text[1]],
            "timestep" => match declared {
                Some([]) => vec![],
                Some([Dim::Fixed(n)]) => vec![*n],
                _ => vec![geometry.samples],
            },
            other => {
                return Err(Error::bad(
                    model.path.display().to_string(),
                    format!(
                        "has an input `{other}`, which is not one of sample, timestep, encoder_hidden_states"
                    ),
                    "Export a UNet of the Stable Diffusion 1.x or 2.x kind.",
                ));
            }
        };
        dims.shapes.insert(input.name, shape);
    }
    let graph = specialize(model, &SpecializeOptions { dims, split_shared })?;
    timestep::per_sample(graph, geometry.samples)
}

/// Maps the external weights of `graph` once, for all sessions over graphs that share them.
pub fn map_weights(graph: &Graph) -> Result<SharedWeights> {
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

/// A session over `graph` whose external weights come from `weights`.
pub fn session(
    graph: &Graph,
    folder: &Path,
    weights: &SharedWeights,
    options: &SessionOptions,
) -> Result<Session> {
    let bytes = write::to_bytes(graph, Some(folder))?;
    Session::with_weights(&bytes, Some(folder), weights, options)
}
