//! The VAE encoder and the text encoder of a pipeline folder, run by ONNX Runtime.

use ndarray::{Array2, ArrayD, ArrayView4, Axis, Ix3, Ix4, Slice, concatenate};

use super::encoder::{CaptionEncoder, Encoders, Identity, ImageEncoder};
use super::latent::{LatentScaling, Moments};
use crate::model_folder::{Component, ContentHash, ModelFolder};
use crate::runtime::{IoInfo, Session, SessionOptions, TensorView};
use crate::tensor::{DType, Tensor};
use crate::text::{self, Tokenizer, Tokens};
use crate::{Error, Result};

/// Encoders of a pipeline folder; sessions are made when they are asked for.
#[derive(Debug)]
pub struct OnnxEncoders<'a> {
    /// The pipeline.
    pub model: &'a ModelFolder,
    /// How sessions are built.
    pub options: SessionOptions,
}

impl Encoders for OnnxEncoders<'_> {
    fn identity(&self) -> Result<Identity> {
        let captions = self.model.hash(&[Component::Tokenizer, Component::TextEncoder])?;
        let version = text::TOKENIZER_VERSION.to_le_bytes();
        let captions = blake3::Hasher::new()
            .update(&captions.0)
            .update(&version)
            .finalize();
        Ok(Identity {
            images: self.model.hash(&[Component::VaeEncoder])?,
            captions: ContentHash(*captions.as_bytes()),
        })
    }

    fn scaling(&self) -> Result<LatentScaling> {
        LatentScaling::of(self.model)
    }

    fn images(&self, resolution: u32) -> Result<Box<dyn ImageEncoder + '_>> {
        Ok(Box::new(VaeEncoder::load(
            self.model,
            &self.options,
            resolution as usize,
        )?))
    }

    fn captions(&self) -> Result<Box<dyn CaptionEncoder + '_>> {
        Ok(Box::new(TextEncoder::load(self.model, &self.options)?))
    }
}

/// A network with one main input whose first dimension is the batch.
#[derive(Debug)]
struct Network {
    place: String,
    session: Session,
    /// Samples a run must have, if the export fixes that.
    batch: Option<usize>,
}

impl Network {
    fn load(
        model: &ModelFolder,
        component: Component,
        options: &SessionOptions,
        input: &str,
    ) -> Result<Self> {
        let path = model.network(component)?;
        let session = Session::from_file(&path, options)?;
        let place = path.display().to_string();
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

    fn input(&self, name: &str) -> Option<&IoInfo> {
        self.session.inputs().iter().find(|i| i.name == name)
    }

    fn has_output(&self, name: &str) -> bool {
        self.session.outputs().iter().any(|o| o.name == name)
    }

    fn missing_output(&self, wanted: &str) -> Error {
        let names: Vec<String> = self.session.outputs().iter().map(IoInfo::to_string).collect();
        let what = format!("has no output {wanted}; it has {}", names.join(", "));
        Error::bad(
            &self.place,
            what,
            "Export the model again with a current optimum-onnx.",
        )
    }

    /// Runs on `samples` samples, for which `inputs` makes the inputs by index, and returns one output for all.
    /// Where the export fixes the batch, runs as often as that takes, repeating the last sample to fill up.
    fn run(&mut self, samples: usize, inputs: &InputsOf<'_>, output: &str) -> Result<ArrayD<f32>> {
        let batch = self.batch.unwrap_or(samples).max(1);
        let mut parts = Vec::new();
        for start in (0..samples).step_by(batch) {
            let indices: Vec<usize> = (start..start + batch).map(|i| i.min(samples - 1)).collect();
            let inputs = inputs(&indices)?;
            let views: Vec<(&str, TensorView)> = inputs
                .iter()
                .map(|(name, tensor)| (*name, TensorView::from(tensor)))
                .collect();
            let part = self.session.run(&views)?.take(output)?.into_f32(&self.place)?;
            if part.shape().first() != Some(&batch) {
                let what = format!("gave {output} of shape {:?} for {batch} samples", part.shape());
                return Err(Error::bad(
                    &self.place,
                    what,
                    "Export the model again with its batch first.",
                ));
            }
            let wanted = batch.min(samples - start);
            parts.push(part.slice_axis(Axis(0), Slice::from(..wanted)).to_owned());
        }
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        concatenate(Axis(0), &views).map_err(|e| {
            let what = format!("gave {output} of changing shapes: {e}");
            Error::bad(&self.place, what, "Export the model again.")
        })
    }
}

/// Makes the inputs of a run for samples by index.
type InputsOf<'a> = dyn Fn(&[usize]) -> Result<Vec<(&'static str, Tensor)>> + 'a;

/// Moments or latents from images.
#[derive(Debug)]
struct VaeEncoder {
    network: Network,
    /// The export gives means and log variances, one behind the other on the channel axis.
    moments: bool,
}

impl VaeEncoder {
    fn load(model: &ModelFolder, options: &SessionOptions, resolution: usize) -> Result<Self> {
        let network = Network::load(model, Component::VaeEncoder, options, "sample")?;
        let fixed = network
            .input("sample")
            .map(|i| i.dims.iter().skip(2).flatten().copied().collect());
        let fixed: Vec<usize> = fixed.unwrap_or_default();
        if let Some(size) = fixed.into_iter().find(|&size| size != resolution) {
            let what = format!("takes images of {size} pixels, but data.resolution is {resolution}");
            let remedy = "Set data.resolution to that, or export the model with dynamic height and width.";
            return Err(Error::bad(&network.place, what, remedy));
        }
        let moments = network.has_output("latent_parameters");
        match moments || network.has_output("latent_sample") {
            true => Ok(Self { network, moments }),
            false => Err(network.missing_output("latent_parameters (nor latent_sample)")),
        }
    }
}

impl ImageEncoder for VaeEncoder {
    fn encode(&mut self, images: ArrayView4<f32>) -> Result<Vec<Moments>> {
        let dtype = self.network.input("sample").map_or(DType::F32, |i| i.dtype);
        let place = self.network.place.clone();
        let inputs = |indices: &[usize]| {
            let chosen = images.select(Axis(0), indices).into_dyn();
            Ok(vec![("sample", Tensor::from_floats(&place, chosen, dtype)?)])
        };
        let output = if self.moments {
            "latent_parameters"
        } else {
            "latent_sample"
        };
        let latents = self.network.run(images.len_of(Axis(0)), &inputs, output)?;
        let unfit = |shape: &[usize]| {
            let what = format!("gives {output} of shape {shape:?}, which are no latents");
            Error::bad(
                &self.network.place,
                what,
                "Check that it is the VAE encoder of a pipeline.",
            )
        };
        let shape = latents.shape().to_vec();
        let latents = latents.into_dimensionality::<Ix4>().map_err(|_| unfit(&shape))?;
        if self.moments && shape[1] % 2 != 0 {
            return Err(unfit(&shape));
        }
        let split = |latent: ndarray::ArrayView3<f32>| match self.moments {
            true => {
                let (mean, logvar) = latent.split_at(Axis(0), shape[1] / 2);
                Moments {
                    mean: mean.to_owned(),
                    logvar: Some(logvar.to_owned()),
                }
            }
            false => Moments {
                mean: latent.to_owned(),
                logvar: None,
            },
        };
        Ok(latents.outer_iter().map(split).collect())
    }
}

/// Last hidden states from token ids.
#[derive(Debug)]
struct TextEncoder {
    tokenizer: Tokenizer,
    network: Network,
    /// Whether padding is masked where the export takes a mask; as in diffusers, only if the config says so.
    masked: bool,
}

impl TextEncoder {
    fn load(model: &ModelFolder, options: &SessionOptions) -> Result<Self> {
        let config = model.config(Component::TextEncoder)?;
        let positions = config
            .get("max_position_embeddings")
            .and_then(|v| v.as_u64())
            .map(|n| n as usize);
        let network = Network::load(model, Component::TextEncoder, options, "input_ids")?;
        if !network.has_output("last_hidden_state") {
            return Err(network.missing_output("last_hidden_state"));
        }
        // An export with a fixed text length takes nothing else.
        let fixed = network
            .input("input_ids")
            .and_then(|i| i.dims.get(1).copied().flatten());
        let limit = [positions, fixed].into_iter().flatten().min();
        let tokenizer = Tokenizer::from_folder(&model.tokenizer(Component::Tokenizer)?, limit)?;
        if let Some(fixed) = fixed.filter(|&fixed| fixed != tokenizer.context()) {
            let what = format!(
                "takes {fixed} tokens, but the tokenizer stops at {}",
                tokenizer.context()
            );
            return Err(Error::bad(
                &network.place,
                what,
                "Mend \"model_max_length\" in tokenizer_config.json.",
            ));
        }
        let masked = config
            .get("use_attention_mask")
            .and_then(|v| v.as_bool())
            .unwrap_or(false);
        Ok(Self {
            tokenizer,
            network,
            masked,
        })
    }
}

impl CaptionEncoder for TextEncoder {
    fn tokenize(&self, caption: &str) -> Result<Tokens> {
        self.tokenizer.encode(caption)
    }

    fn encode(&mut self, captions: &[&Tokens]) -> Result<Vec<Array2<f32>>> {
        let context = self.tokenizer.context();
        let wanted: Vec<(&'static str, DType)> = ["input_ids", "attention_mask"]
            .into_iter()
            .filter_map(|name| Some((name, self.network.input(name)?.dtype)))
            .collect();
        let (place, masked) = (self.network.place.clone(), self.masked);
        let inputs = |indices: &[usize]| {
            let value = |name, row: usize, i: usize| match name {
                "input_ids" => captions[indices[row]].ids[i],
                _ => i64::from(!masked || i < captions[indices[row]].used),
            };
            let rows = |name| Array2::from_shape_fn((indices.len(), context), |(row, i)| value(name, row, i));
            let wanted = wanted.iter();
            wanted
                .map(|&(name, dtype)| {
                    Ok((name, Tensor::from_integers(&place, rows(name).into_dyn(), dtype)?))
                })
                .collect()
        };
        let hidden = self.network.run(captions.len(), &inputs, "last_hidden_state")?;
        let shape = hidden.shape().to_vec();
        let hidden = hidden.into_dimensionality::<Ix3>().map_err(|_| {
            let what = format!("gives last_hidden_state of shape {shape:?}, not (N,L,D)");
            Error::bad(
                &self.network.place,
                what,
                "Check that it is the text encoder of a pipeline.",
            )
        })?;
        Ok(hidden.outer_iter().map(|one| one.to_owned()).collect())
    }
}
