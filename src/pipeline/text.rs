//! Prompts to what the denoiser is conditioned on, by the one or two text encoders of a pipeline.
//!
//! | pipeline | hidden states (L,D) | pooled |
//! |---|---|---|
//! | SD 1.x, 2.x | the last ones, after the final layer norm; with CLIP-skip k those k layers earlier, after the same norm | |
//! | SDXL | of both encoders the ones before the last layer, without norm, side by side; with CLIP-skip k, k layers earlier | `text_embeds` of the second encoder |
//!
//! optimum exports SDXL's encoders with every layer's output (`hidden_states.N`), SD's without; what is not an output
//! is found inside the graph ([`hidden_states`](super::hidden_states)).

use ndarray::{Array1, Array2, ArrayD, ArrayViewD, Axis, Ix2, Ix3, concatenate};

use super::adapters::{Adapted, Adapters};
use super::hidden_states;
use super::network::Network;
use crate::model_folder::{Component, ModelFolder};
use crate::onnx::{Dims, Model, SpecializeOptions, specialize};
use crate::runtime::SessionOptions;
use crate::tensor::{DType, Tensor};
use crate::text::{Tokenizer, Tokens};
use crate::{Error, Result};

/// Prompts that an encoder with a rewritten graph reads at once.
const GRAPH_BATCH: usize = 4;

/// A prompt as every tokenizer of the pipeline reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTokens(pub Vec<Tokens>);

impl PromptTokens {
    /// Whether the prompt was too long and lost its end.
    pub fn truncated(&self) -> bool {
        self.0.iter().any(|tokens| tokens.truncated)
    }
}

/// What one prompt conditions the denoiser on.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// Hidden states, (L,D).
    pub hidden: Array2<f32>,
    /// Pooled embedding (P), where the denoiser takes one.
    pub pooled: Option<Array1<f32>>,
}

impl Embedding {
    /// All zeros, as SDXL takes for a negative prompt that is not given.
    pub fn zeroed(&self) -> Self {
        Self {
            hidden: Array2::zeros(self.hidden.dim()),
            pooled: self.pooled.as_ref().map(|pooled| Array1::zeros(pooled.dim())),
        }
    }

    /// `None` if the tensors are not those of [`Embedding::tensors`].
    pub(crate) fn from_tensors(tensors: Vec<ArrayD<f32>>) -> Option<Self> {
        let mut tensors = tensors.into_iter();
        let hidden = tensors.next()?.into_dimensionality().ok()?;
        let pooled = match tensors.next() {
            Some(pooled) => Some(pooled.into_dimensionality().ok()?),
            None => None,
        };
        Some(Self { hidden, pooled })
    }

    /// The form in which the cache keeps them.
    pub(crate) fn tensors(&self) -> Vec<ArrayViewD<'_, f32>> {
        let pooled = self.pooled.as_ref().map(|p| p.view().into_dyn());
        std::iter::once(self.hidden.view().into_dyn())
            .chain(pooled)
            .collect()
    }
}

/// The tokenizers and text encoders of a pipeline.
#[derive(Debug)]
pub struct TextEncoders {
    encoders: Vec<TextEncoder>,
}

/// A text encoder's place in the layout of pipelines.
const PARTS: [(Component, Component); 2] = [
    (Component::Tokenizer, Component::TextEncoder),
    (Component::Tokenizer2, Component::TextEncoder2),
];

/// The tokenizers and text encoders that `model` has, in the order in which their hidden states are joined.
///
/// # Errors
/// It has none, or three as SD3 has.
pub fn parts(model: &ModelFolder) -> Result<Vec<(Component, Component)>> {
    let place = || model.root().join("model_index.json").display().to_string();
    let announced = model.components();
    if announced.contains(&Component::TextEncoder3) {
        let what = format!("is a {} with three text encoders", model.class_name());
        return Err(Error::bad(
            place(),
            what,
            "Give a pipeline of the Stable Diffusion 1.x, 2.x or XL kind.",
        ));
    }
    let found: Vec<_> = PARTS
        .into_iter()
        .filter(|(_, encoder)| announced.contains(encoder))
        .collect();
    match found.is_empty() {
        false => Ok(found),
        true => Err(Error::bad(
            place(),
            "names no text encoder",
            "Export the whole pipeline with `optimum-cli export onnx`.",
        )),
    }
}

/// All of [`parts`], one after the other.
///
/// # Errors
/// As [`parts`].
pub fn components(model: &ModelFolder) -> Result<Vec<Component>> {
    let parts = parts(model)?.into_iter();
    Ok(parts
        .flat_map(|(tokenizer, encoder)| [tokenizer, encoder])
        .collect())
}

/// Whether the denoiser of `model` is of SDXL's kind: hidden states without norm, pooled embedding, time ids.
pub fn is_xl(model: &ModelFolder) -> bool {
    model.components().contains(&Component::TextEncoder2)
}

impl TextEncoders {
    /// Loads them. `clip_skip` leaves out so many layers at the end; `adapters` are applied to them.
    ///
    /// # Errors
    /// A file is missing or is not what it should be; there are not as many layers to skip.
    pub fn load(
        model: &ModelFolder,
        options: &SessionOptions,
        clip_skip: usize,
        adapters: &Adapters,
    ) -> Result<Self> {
        let xl = is_xl(model);
        let load = |(tokenizer, encoder)| {
            let part = Part {
                model,
                tokenizer,
                encoder,
                clip_skip,
                xl,
            };
            TextEncoder::load(&part, options, adapters)
        };
        Ok(Self {
            encoders: parts(model)?.into_iter().map(load).collect::<Result<_>>()?,
        })
    }

    /// Token ids of a prompt.
    ///
    /// # Errors
    /// A tokenizer cannot read it.
    pub fn tokenize(&self, prompt: &str) -> Result<PromptTokens> {
        let tokens = self.encoders.iter().map(|e| e.tokenizer.encode(prompt));
        Ok(PromptTokens(tokens.collect::<Result<_>>()?))
    }

    /// Encodes tokenized prompts.
    ///
    /// # Errors
    /// A model fails or gives something else than embeddings.
    pub fn encode(&mut self, prompts: &[&PromptTokens]) -> Result<Vec<Embedding>> {
        let mut joined: Vec<Embedding> = Vec::new();
        for (index, encoder) in self.encoders.iter_mut().enumerate() {
            let tokens: Vec<&Tokens> = prompts.iter().map(|prompt| &prompt.0[index]).collect();
            let embeddings = encoder.encode(&tokens)?;
            if index == 0 {
                joined = embeddings;
                continue;
            }
            for (whole, part) in joined.iter_mut().zip(embeddings) {
                let sides = [whole.hidden.view(), part.hidden.view()];
                whole.hidden = concatenate(Axis(1), &sides).map_err(|_| encoder.other_length())?;
                whole.pooled = part.pooled;
            }
        }
        Ok(joined)
    }
}

/// Which encoder of which pipeline, and how it is used.
struct Part<'a> {
    model: &'a ModelFolder,
    tokenizer: Component,
    encoder: Component,
    clip_skip: usize,
    xl: bool,
}

impl Part<'_> {
    /// Which of `hidden_states` the denoiser takes, where that is not the last one with its norm; 0 would be the
    /// embeddings, which no layer has seen.
    fn hidden_state(&self) -> Result<Option<usize>> {
        let config = self.model.config(self.encoder)?;
        let layers = config.number("num_hidden_layers")? as usize;
        let left_out = self.clip_skip + usize::from(self.xl);
        match (left_out, layers.checked_sub(left_out)) {
            (0, _) => Ok(None),
            (_, Some(index @ 1..)) => Ok(Some(index)),
            _ => Err(Error::bad(
                "--clip-skip",
                format!(
                    "is {}, but {} of {} has {layers} layers",
                    self.clip_skip,
                    self.encoder,
                    self.model.root().display()
                ),
                "Skip fewer layers; 1 or 2 are usual.",
            )),
        }
    }

    /// The network with an output of the wanted hidden states, and that output's name.
    fn network(
        &self,
        options: &SessionOptions,
        context: usize,
        adapters: &Adapters,
    ) -> Result<(Network, String)> {
        let wanted = self.hidden_state()?;
        let output = match wanted {
            Some(index) if self.xl => format!("hidden_states.{index}"),
            _ => "last_hidden_state".to_owned(),
        };
        let rewritten = adapters.adapts(self.encoder) || wanted.is_some() && !self.xl;
        if !rewritten {
            let network = Network::load(self.model, self.encoder, options, "input_ids")?;
            if network.has_output(&output) || wanted.is_none() {
                return Ok((network, output));
            }
        }
        let path = self.model.network(self.encoder)?;
        let model = Model::read(&path)?;
        let mut dims = Dims::default();
        for input in model.inputs()? {
            dims.shapes.insert(input.name, vec![GRAPH_BATCH, context]);
        }
        let split_shared = adapters.replaces(self.encoder);
        let mut graph = specialize(&model, &SpecializeOptions { dims, split_shared })?;
        if let Some(index) = wanted {
            match self.xl {
                true => hidden_states::expose(&mut graph, index, &output, &path)?,
                false => hidden_states::end_after(&mut graph, index, &path)?,
            }
        }
        let Adapted { graph, .. } = adapters.apply(graph, self.encoder)?;
        let network = Network::over_graph(&path, self.encoder, &graph, options, "input_ids")?;
        Ok((network, output))
    }
}

/// One tokenizer with its text encoder.
#[derive(Debug)]
struct TextEncoder {
    tokenizer: Tokenizer,
    network: Network,
    /// Whether padding is masked where the export takes a mask; as in diffusers, only if the config says so.
    masked: bool,
    /// Output with the hidden states.
    hidden: String,
    /// Output with the pooled embedding.
    pooled: Option<String>,
}

impl TextEncoder {
    fn load(part: &Part, options: &SessionOptions, adapters: &Adapters) -> Result<Self> {
        let config = part.model.config(part.encoder)?;
        let positions = config
            .get("max_position_embeddings")
            .and_then(|v| v.as_u64())
            .map(|n| n as usize);
        let folder = part.model.tokenizer(part.tokenizer)?;
        let model_path = part.model.network(part.encoder)?;
        // An export with a fixed text length takes nothing else.
        let fixed = fixed_length(&Model::read(&model_path)?)?;
        let limit = [positions, fixed].into_iter().flatten().min();
        let tokenizer = Tokenizer::from_folder(&folder, limit)?;
        if let Some(fixed) = fixed.filter(|&fixed| fixed != tokenizer.context()) {
            let what = format!(
                "takes {fixed} tokens, but the tokenizer stops at {}",
                tokenizer.context()
            );
            let remedy = "Mend \"model_max_length\" in tokenizer_config.json.";
            return Err(Error::bad(model_path.display().to_string(), what, remedy));
        }
        let (network, hidden) = part.network(options, tokenizer.context(), adapters)?;
        if !network.has_output(&hidden) {
            return Err(network.missing_output(&hidden));
        }
        let pooled = (part.encoder == Component::TextEncoder2).then(|| "text_embeds".to_owned());
        if let Some(pooled) = pooled.as_ref().filter(|name| !network.has_output(name)) {
            return Err(network.missing_output(pooled));
        }
        let masked = config
            .get("use_attention_mask")
            .and_then(|v| v.as_bool())
            .unwrap_or(false);
        Ok(Self {
            tokenizer,
            network,
            masked,
            hidden,
            pooled,
        })
    }

    fn encode(&mut self, prompts: &[&Tokens]) -> Result<Vec<Embedding>> {
        let context = self.tokenizer.context();
        let wanted: Vec<(&'static str, DType)> = ["input_ids", "attention_mask"]
            .into_iter()
            .filter_map(|name| Some((name, self.network.input(name)?.dtype)))
            .collect();
        let (place, masked) = (self.network.place().to_owned(), self.masked);
        let inputs = |indices: &[usize]| {
            let value = |name, row: usize, i: usize| match name {
                "input_ids" => prompts[indices[row]].ids[i],
                _ => i64::from(!masked || i < prompts[indices[row]].used),
            };
            let rows = |name| Array2::from_shape_fn((indices.len(), context), |(row, i)| value(name, row, i));
            let wanted = wanted.iter();
            wanted
                .map(|&(name, dtype)| {
                    Ok((name, Tensor::from_integers(&place, rows(name).into_dyn(), dtype)?))
                })
                .collect()
        };
        let outputs: Vec<&str> = [Some(&self.hidden), self.pooled.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        let mut made = self.network.run(prompts.len(), &inputs, &outputs)?.into_iter();
        let unfit = |name: &str| {
            let what = format!("gives {name} of a shape that is not (N,L,D), or (N,P) for text_embeds");
            Error::bad(&place, what, "Check that it is the text encoder of a pipeline.")
        };
        let hidden = made
            .next()
            .and_then(|hidden| hidden.into_dimensionality::<Ix3>().ok());
        let hidden = hidden.ok_or_else(|| unfit(&self.hidden))?;
        let pooled = match made.next() {
            None => None,
            Some(pooled) => Some(
                pooled
                    .into_dimensionality::<Ix2>()
                    .map_err(|_| unfit("text_embeds"))?,
            ),
        };
        let embedding = |index: usize| Embedding {
            hidden: hidden.index_axis(Axis(0), index).to_owned(),
            pooled: pooled.as_ref().map(|p| p.row(index).to_owned()),
        };
        Ok((0..prompts.len()).map(embedding).collect())
    }

    fn other_length(&self) -> Error {
        Error::bad(
            self.network.place(),
            "reads prompts of another length than the first text encoder",
            "Give both tokenizers the same \"model_max_length\".",
        )
    }
}

/// Length of the text that an export fixes, if it does.
fn fixed_length(model: &Model) -> Result<Option<usize>> {
    use crate::onnx::Dim;
    let inputs = model.inputs()?;
    let ids = inputs.iter().find(|input| input.name == "input_ids");
    Ok(
        match ids
            .and_then(|input| input.dims.as_deref())
            .and_then(|dims| dims.get(1))
        {
            Some(Dim::Fixed(length)) => Some(*length),
            _ => None,
        },
    )
}
