//! What a finished run leaves for others to load.

use std::borrow::Cow;
use std::path::Path;

use super::engine::Engine;
use super::folder::RunFolder;
use super::model::Model;
use crate::Result;
use crate::adapter::{self, LoraScale, NamedTensor, Precision};
use crate::config::Config;
use crate::config::adapter::AdapterConfig;
use crate::data::{Dataset, Preference};
use crate::margin::MarginMeter;
use crate::params::ParamSet;
use crate::traingraph::TrainableKind;

/// Writes the adapter under PEFT's names, or the trained weights under PyTorch's.
pub fn write(
    folder: &RunFolder,
    config: &Config,
    model: &Model,
    engine: &Engine,
    policy: &ParamSet,
) -> Result<()> {
    let path = match &config.adapter {
        AdapterConfig::Lora(_) => folder.adapter(),
        AdapterConfig::Full(_) => folder.weights(),
    };
    write_to(&path, config, model, engine, policy)
}

/// Writes what [`write()`] does to a file of any name.
pub fn write_to(
    path: &Path,
    config: &Config,
    model: &Model,
    engine: &Engine,
    policy: &ParamSet,
) -> Result<()> {
    match &config.adapter {
        AdapterConfig::Lora(lora) => {
            let scale = LoraScale {
                rank: lora.rank,
                alpha: lora.alpha(),
            };
            adapter::save_lora(path, model.prefix(), policy, scale, Precision::Fp32)
        }
        AdapterConfig::Full(_) => adapter::save_full(path, torch_tensors(engine, policy)),
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
        let (transposed, columns) = (*transposed, *t.shape.last().unwrap_or(&1));
        Some(NamedTensor {
            name: t.name.clone(),
            shape: torch_shape.clone(),
            precision: Precision::Fp32,
            values: Box::new(move || match transposed {
                false => Cow::Borrowed(policy.tensor(index)),
                true => Cow::Owned(transpose(policy.tensor(index), columns)),
            }),
        })
    };
    engine.trainables().tensors.iter().filter_map(named).collect()
}

fn transpose(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns.max(1);
    (0..values.len())
        .map(|i| values[(i % rows) * columns + i / rows])
        .collect()
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

#[cfg(test)]
mod tests {
    #[test]
    fn a_transposed_weight_goes_back_to_pytorchs_layout() {
        // Graph layout [inputs 2, outputs 3].
        let graph = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(super::transpose(&graph, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
