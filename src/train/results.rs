//! What a finished run leaves for others to load.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::engine::Engine;
use super::folder::RunFolder;
use super::model::Model;
use super::untouched::Untouched;
use crate::Result;
use crate::adapter::kohya::Naming;
use crate::adapter::{self, BaseModel, Lora, LoraScale, NamedTensor, Precision};
use crate::config::Config;
use crate::config::adapter::{AdapterConfig, LoraConfig};
use crate::data::{Dataset, Preference};
use crate::diffusion::PredictionType;
use crate::fsutil::write_atomically;
use crate::margin::MarginMeter;
use crate::params::ParamSet;
use crate::tensor;
use crate::traingraph::TrainableKind;

/// Writes the adapter under PEFT's names; or the whole model under PyTorch's, with weights that were not trained as they were
/// and the configuration that diffusers' `from_pretrained` wants beside it.
pub fn write(
    folder: &RunFolder,
    config: &Config,
    model: &Model,
    engine: &Engine,
    policy: &ParamSet,
) -> Result<()> {
    if let AdapterConfig::Lora(lora) = &config.adapter {
        let trained = trained(lora, config, model, policy);
        if lora.format.has_diffusers() {
            adapter::diffusers::write(&folder.adapter(), &trained)?;
        }
        if lora.format.has_kohya() {
            adapter::kohya::write(&folder.kohya_adapter(), &trained, Naming::Auto)?;
        }
        return Ok(());
    }
    let untouched = Untouched::of(model, policy.layout())?;
    let mut tensors = torch_tensors(engine, policy);
    tensors.extend(untouched.iter().flat_map(Untouched::tensors));
    let note = untouched.as_ref().and_then(Untouched::note);
    adapter::save_full(&folder.weights(), tensors, note)?;
    let described = model.folder.root().join(model.component.folder()).join(CONFIG);
    match fs::read(&described) {
        Ok(text) => write_atomically(&folder.root().join(CONFIG), &text),
        Err(_) => Ok(()),
    }
}

/// diffusers' description of a network.
const CONFIG: &str = "config.json";

/// Writes what was trained, and nothing else, to a file of any name.
pub fn write_to(
    path: &Path,
    config: &Config,
    model: &Model,
    engine: &Engine,
    policy: &ParamSet,
) -> Result<()> {
    match &config.adapter {
        AdapterConfig::Lora(lora) => adapter::diffusers::write(path, &trained(lora, config, model, policy)),
        AdapterConfig::Full(_) => adapter::save_full(path, torch_tensors(engine, policy), None),
    }
}

/// The trained adapter, with a note on what it is for: by their names alone, not all adapters of SDXL can be told from others.
fn trained(lora: &LoraConfig, config: &Config, model: &Model, policy: &ParamSet) -> Lora {
    let scale = LoraScale {
        rank: lora.rank,
        alpha: lora.alpha(),
    };
    let mut notes = BTreeMap::new();
    if let Some(base) = family(model) {
        notes.insert("ss_base_model_version".to_owned(), base.version().to_owned());
        let prediction = match model.schedule.prediction_type() {
            PredictionType::VPrediction => "v",
            PredictionType::Epsilon => "epsilon",
        };
        notes.insert("modelspec.prediction_type".to_owned(), prediction.to_owned());
        let side = config.data.resolution;
        notes.insert("modelspec.resolution".to_owned(), format!("{side}x{side}"));
    }
    adapter::trained(model.prefix(), policy, scale, notes)
}

/// The family of a model whose captions have the width of one.
fn family(model: &Model) -> Option<BaseModel> {
    let config = model.folder.config(model.component).ok()?;
    match config.number("cross_attention_dim").ok()? as usize {
        768 => Some(BaseModel::Sd1),
        1024 => Some(BaseModel::Sd2),
        2048 => Some(BaseModel::Sdxl),
        _ => None,
    }
}

/// Trained weights in PyTorch's layout.
fn torch_tensors<'a>(engine: &Engine, policy: &'a ParamSet) -> Vec<NamedTensor<'a>> {
    let named = |t: &crate::traingraph::Trainable| {
        let TrainableKind::Weight {
            transposed,
            torch_shape,
            ..
        } = &t.kind
        else {
            return None;
        };
        let index = policy.layout().index_of(&t.name)?;
        let sides = match t.shape.as_slice() {
            [rows, columns] if *transposed => Some((*rows, *columns)),
            _ => None,
        };
        Some(NamedTensor {
            name: t.name.clone(),
            shape: torch_shape.clone(),
            precision: Precision::Fp32,
            values: Box::new(move || match sides {
                None => Ok(Cow::Borrowed(policy.tensor(index))),
                Some((rows, columns)) => Ok(Cow::Owned(tensor::transposed(
                    policy.tensor(index),
                    rows,
                    columns,
                ))),
            }),
        })
    };
    engine.trainables().tensors.iter().filter_map(named).collect()
}

/// Accuracy, on the held-out pairs, of the scorer whose scores the data set holds: no model that learns from such labels
/// can be expected to do better.
pub fn ceiling(heldout: &Dataset) -> Option<f64> {
    let mut meter = MarginMeter::default();
    for pair in heldout.pairs() {
        let [first, second] = pair.scores?.map(f64::from);
        match pair.preference {
            Preference::First => meter.add(first - second),
            Preference::Second => meter.add(second - first),
            Preference::Tie => {}
        }
    }
    meter.accuracy()
}
