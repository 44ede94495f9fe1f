//! The denoiser of a pipeline folder: as a static graph with one timestep per sample, and in a session.

use std::path::PathBuf;

use half::f16;
use ndarray::{ArrayD, IxDyn};

use super::micro::{TIME_IDS, TimeIds};
use super::network::{map_weights, session_over};
use super::weight_copies::{self, WeightCopies};
use crate::onnx::{Dim, Dims, Graph, InputInfo, Model, SpecializeOptions, specialize};
use crate::runtime::{Session, SessionOptions, TensorView};
use crate::tensor::{DType, Tensor};
use crate::traingraph::{attention, timestep};
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
    /// What SDXL's denoiser takes besides.
    pub added: Option<Added>,
}

/// SDXL's conditions beside the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Added {
    /// Width of the pooled text embedding.
    pub pooled: usize,
    /// Height and width in pixels of pictures that are made.
    pub size: [usize; 2],
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

    /// Values of one pooled text embedding; 0 without.
    pub fn pooled_len(&self) -> usize {
        self.added.map_or(0, |added| added.pooled)
    }

    /// The same sizes for another number of samples.
    pub fn with_samples(self, samples: usize) -> Self {
        Self { samples, ..self }
    }

    /// Micro-conditioning of pictures that are made in this size; without meaning where the model takes none.
    pub fn picture_ids(&self) -> TimeIds {
        TimeIds::whole(self.added.map_or([0; 2], |added| added.size))
    }

    /// Height and width of a latent.
    pub fn latent_size(&self) -> [usize; 2] {
        [self.latent[1], self.latent[2]]
    }

    /// The same for latents of another height and width.
    pub fn with_latent_size(self, [height, width]: [usize; 2]) -> Self {
        let scaled = |side: usize, latent: usize, own: usize| side * latent / own.max(1);
        Self {
            latent: [self.latent[0], height, width],
            added: self.added.map(|added| Added {
                size: [
                    scaled(added.size[0], height, self.latent[1]),
                    scaled(added.size[1], width, self.latent[2]),
                ],
                ..added
            }),
            ..self
        }
    }
}

/// Reads `model` and fixes its dimensions. `split_shared` makes parameters that the exporter merged separate again.
///
/// # Errors
/// The model takes other inputs than a Stable Diffusion UNet, or other sizes.
pub fn load(model: &Model, geometry: &Geometry, split_shared: bool) -> Result<Graph> {
    let mut dims = Dims::default();
    for input in model.inputs()? {
        let declared = input.dims.as_deref();
        let shape = match input.name.as_str() {
            "sample" => {
                let [c, h, w] = geometry.latent;
                if let Some(fixed) = fixed_size(&input)
                    && fixed != [h, w]
                {
                    return Err(other_size(model, fixed, [h, w]));
                }
                vec![geometry.samples, c, h, w]
            }
            "encoder_hidden_states" => vec![geometry.samples, geometry.text[0], geometry.text[1]],
            "timestep" => match declared {
                Some([]) => vec![],
                Some([Dim::Fixed(n)]) => vec![*n],
                _ => vec![geometry.samples],
            },
            "text_embeds" => {
                let added = geometry.added.ok_or_else(|| no_pooled(model))?;
                vec![geometry.samples, added.pooled]
            }
            "time_ids" => vec![geometry.samples, TIME_IDS],
            other => {
                return Err(Error::bad(
                    model.path.display().to_string(),
                    format!(
                        "has an input `{other}`, which is not one of sample, timestep, encoder_hidden_states, \
                         text_embeds, time_ids"
                    ),
                    "Export a UNet of the Stable Diffusion 1.x, 2.x or XL kind.",
                ));
            }
        };
        dims.shapes.insert(input.name, shape);
    }
    let graph = specialize(model, &SpecializeOptions { dims, split_shared })?;
    timestep::per_sample(graph, geometry.samples)
}

/// Height and width of latents, where the export fixed those of this input.
fn fixed_size(input: &InputInfo) -> Option<[usize; 2]> {
    match input.dims.as_deref() {
        Some([_, _, Dim::Fixed(height), Dim::Fixed(width)]) => Some([*height, *width]),
        _ => None,
    }
}

/// Height and width of the only latents that the denoiser takes; `None` where its sizes are open.
///
/// # Errors
/// The file is damaged.
pub fn only_size(model: &Model) -> Result<Option<[usize; 2]>> {
    let inputs = model.inputs()?;
    Ok(inputs
        .iter()
        .find(|input| input.name == "sample")
        .and_then(fixed_size))
}

fn other_size(model: &Model, [height, width]: [usize; 2], [h, w]: [usize; 2]) -> Error {
    Error::bad(
        model.path.display().to_string(),
        format!("was exported for latents of {height}×{width} alone, and {h}×{w} are asked for"),
        "Give pictures of the size that belongs to them (data.resolution, for Stable Diffusion eight times as many \
         pixels, and without data.buckets; --height and --width, or --latent, elsewhere), or export the model with open sizes.",
    )
}

fn no_pooled(model: &Model) -> Error {
    Error::bad(
        model.path.display().to_string(),
        "takes a pooled text embedding (text_embeds), but the pipeline has no second text encoder to give one",
        "Export the whole pipeline with `optimum-cli export onnx`.",
    )
}

/// What a batch of samples is conditioned on, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditioning {
    /// Hidden states of the text encoders, (N,L,D) flat.
    pub text: Vec<f32>,
    /// Pooled embeddings, (N,P) flat; empty where the denoiser takes none.
    pub pooled: Vec<f32>,
}

/// A denoiser ready to predict a fixed number of samples at a time.
#[derive(Debug)]
pub struct Denoiser {
    session: Session,
    geometry: Geometry,
    path: PathBuf,
    output: String,
}

impl Denoiser {
    /// A session over `graph`, which [`load`] made of `model` for `geometry`.
    ///
    /// # Errors
    /// ONNX Runtime refuses the graph, or the weights are missing.
    pub fn new(model: &Model, graph: &Graph, geometry: Geometry, options: &SessionOptions) -> Result<Self> {
        let (_, options) = weight_copies::apply(WeightCopies::Auto, graph, options.clone());
        let graph = &attention::fused_for(graph.clone(), options.ep)?;
        let session = session_over(graph, model.folder(), &map_weights(graph)?, &options)?;
        let output = session.outputs().first().map(|o| o.name.clone());
        let output = output.ok_or_else(|| {
            Error::bad(
                model.path.display().to_string(),
                "has no output",
                "Export the UNet again.",
            )
        })?;
        Ok(Self {
            session,
            geometry,
            path: model.path.clone(),
            output,
        })
    }

    /// Sizes of a run.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Predictions (N,C,H,W) for `latents` (N,C,H,W), all at `timestep`.
    ///
    /// # Errors
    /// The run fails, or predicts values that are no numbers.
    pub fn predict(&mut self, latents: &[f32], timestep: f64, given: &Conditioning) -> Result<Vec<f32>> {
        let n = self.geometry.samples;
        let [c, h, w] = self.geometry.latent;
        let [tokens, width] = self.geometry.text;
        let pooled = self.geometry.pooled_len();
        let time_ids = self.geometry.picture_ids().0.repeat(n);
        let mut inputs: Vec<(String, Tensor)> = Vec::new();
        for input in self.session.inputs() {
            let tensor = match input.name.as_str() {
                "sample" => typed(&[n, c, h, w], latents, input.dtype),
                "encoder_hidden_states" => typed(&[n, tokens, width], &given.text, input.dtype),
                "text_embeds" => typed(&[n, pooled], &given.pooled, input.dtype),
                "time_ids" => typed(&[n, TIME_IDS], &time_ids, input.dtype),
                _ => timesteps(timestep, n, input.dtype),
            };
            inputs.push((input.name.clone(), tensor));
        }
        let views: Vec<(&str, TensorView)> =
            inputs.iter().map(|(name, t)| (name.as_str(), t.into())).collect();
        let place = self.path.display().to_string();
        let made = self.session.run(&views)?.take(&self.output)?.into_f32(&place)?;
        if made.iter().any(|value| !value.is_finite()) {
            let what = format!("predicts values that are no numbers at timestep {timestep}");
            let remedy = "In half precision (fp16) a denoiser can overflow: export it in fp32. Otherwise its weights, \
                          or those of an adapter, are damaged.";
            return Err(Error::bad(place, what, remedy));
        }
        Ok(made.into_raw_vec_and_offset().0)
    }
}

fn typed(shape: &[usize], values: &[f32], dtype: DType) -> Tensor {
    match dtype {
        DType::F16 => {
            let halves = values.iter().map(|v| f16::from_f32(*v)).collect();
            Tensor::F16(
                ArrayD::from_shape_vec(IxDyn(shape), halves).expect("shape and values are built together"),
            )
        }
        _ => Tensor::f32(shape, values.to_vec()),
    }
}

/// The same timestep for every sample. Samplers that space timesteps unevenly ask for fractions, which a model with
/// whole timesteps gets rounded.
fn timesteps(timestep: f64, samples: usize, dtype: DType) -> Tensor {
    match dtype {
        DType::F32 | DType::F16 => typed(&[samples], &vec![timestep as f32; samples], dtype),
        DType::I32 => Tensor::I32(ArrayD::from_elem(IxDyn(&[samples]), timestep.round() as i32)),
        _ => Tensor::i64(&[samples], vec![timestep.round() as i64; samples]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Graph, TensorType, save};

    /// A model that predicts `sample · timestep`, in `dtype` with timesteps of `time`.
    fn model(folder: &std::path::Path, dtype: DType, time: DType, geometry: Geometry) -> Model {
        let [c, h, w] = geometry.latent;
        let n = geometry.samples;
        let mut g = Graph::new("denoiser", 17);
        let sample = g.add_input("sample", TensorType::new(dtype, [n, c, h, w]));
        let timestep = g.add_input("timestep", TensorType::new(time, [n]));
        g.add_input("encoder_hidden_states", TensorType::new(dtype, [n, 1, 1]));
        let timestep = g.cast(timestep, dtype).unwrap();
        let timestep = g.reshape(timestep, &[n, 1, 1, 1]).unwrap();
        let product = g.mul(sample, timestep).unwrap();
        let out = g.as_output(product, "out_sample").unwrap();
        g.outputs.push(out);
        let path = folder.join("model.onnx");
        save(&g, &path).unwrap();
        Model::read(path).unwrap()
    }

    fn predicted(dtype: DType, time: DType, value: f32, timestep: f64) -> Result<Vec<f32>> {
        let folder = tempfile::tempdir().unwrap();
        let geometry = Geometry {
            samples: 2,
            latent: [1, 1, 2],
            text: [1, 1],
            added: None,
        };
        let model = model(folder.path(), dtype, time, geometry);
        let graph = load(&model, &geometry, false)?;
        let mut denoiser = Denoiser::new(&model, &graph, geometry, &SessionOptions::default())?;
        let given = Conditioning {
            text: vec![0.0; 2],
            pooled: Vec::new(),
        };
        denoiser.predict(&[value; 4], timestep, &given)
    }

    #[test]
    fn inputs_are_given_in_the_types_that_the_export_takes() {
        for dtype in [DType::F32, DType::F16] {
            for (time, expected) in [(DType::I64, 4.0), (DType::I32, 4.0), (DType::F32, 3.75)] {
                let found = predicted(dtype, time, 0.5, 7.5).unwrap();
                assert_eq!(found, [expected; 4], "{dtype} {time}");
            }
        }
    }

    #[test]
    fn a_prediction_that_overflows_is_refused() {
        let error = predicted(DType::F16, DType::I64, 6e4, 800.0)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no numbers at timestep 800") && error.contains("fp16"),
            "{error}"
        );
        assert!(predicted(DType::F32, DType::I64, 6e4, 800.0).is_ok());
    }
}
