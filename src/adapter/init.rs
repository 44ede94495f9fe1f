//! Where training starts: new adapters as PEFT has them, A random and B zero, so that the adapted model is the model itself; or
//! an adapter in any form that is read.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::content::{file_of, listed};
use super::factors::Lora;
use super::file::ReadTensor;
use super::keys::ModuleName;
use super::lora::{A, B, LoraScale};
use super::names;
use crate::config::adapter::InitA;
use crate::params::{Layout, ParamSet};
use crate::rng::{Purpose, Streams};
use crate::{Error, Result};

/// A new adapter. Each factor has its own stream of random numbers, keyed by its name.
pub fn init_lora(layout: &Arc<Layout>, init: InitA, streams: &Streams) -> ParamSet {
    let mut adapter = ParamSet::zeros(layout);
    for (index, name) in layout.names().iter().enumerate() {
        if !name.ends_with(".lora_A.weight") {
            continue;
        }
        let shape = layout.shape(index);
        let mut stream = streams.named(Purpose::AdapterInit, name);
        let values = adapter.tensor_mut(index);
        match init {
            // torch's kaiming_uniform_(a=√5): gain √(2/(1+5)), bound gain·√3/√fan_in = 1/√fan_in.
            InitA::Kaiming => {
                let fan_in: usize = shape[1..].iter().product();
                let bound = 1.0 / (fan_in as f64).sqrt();
                values.fill_with(|| ((2.0 * stream.unit() - 1.0) * bound) as f32);
            }
            InitA::Gaussian => {
                stream.fill_normal(values);
                let deviation = 1.0 / shape[0] as f32;
                values.iter_mut().for_each(|value| *value *= deviation);
            }
        }
    }
    adapter
}

/// Reads an adapter of any form, or that in a folder, into the tensors of `layout`, which are of the component `prefix`. Where
/// the file has another scale than `scale`, B is multiplied, so that the adapted model is the file's.
///
/// # Errors
/// The file is no LoRA, or one of other modules or another rank: differences are counted, and some named.
pub fn load_lora(path: &Path, prefix: &str, layout: &Arc<Layout>, scale: LoraScale) -> Result<ParamSet> {
    let path = file_of(path)?;
    let (lora, _) = Lora::read(&path)?;
    let place = || path.display().to_string();
    let others: Vec<String> = lora
        .modules
        .iter()
        .filter(|m| m.component.folder() != prefix)
        .map(|m| m.place())
        .collect();
    if !others.is_empty() {
        let names: Vec<&str> = others.iter().map(String::as_str).collect();
        return Err(Error::bad(
            place(),
            format!("adapts {}, where only `{prefix}` is trained", listed(&names)),
            "Give an adapter of this network alone: what it does to others would be lost.",
        ));
    }
    let factor_of = |module_scale: f64| module_scale / (scale.alpha / scale.rank as f64);
    let tensors = by_our_names(lora, layout, factor_of);
    check_against(&place(), &tensors, layout)?;
    let mut adapter = ParamSet::zeros(layout);
    for (name, tensor) in &tensors {
        let index = layout.index_of(name).expect("the names were found equal");
        adapter.tensor_mut(index).copy_from_slice(&tensor.values);
    }
    Ok(adapter)
}

/// Factors under the names of `layout`, each B multiplied by what `factor_of` says of its module's scale.
fn by_our_names(lora: Lora, layout: &Layout, factor_of: impl Fn(f64) -> f64) -> BTreeMap<String, ReadTensor> {
    let trained = layout.names().iter().filter_map(|name| name.strip_suffix(A));
    let by_flat_name: HashMap<String, &str> = trained.map(|module| (names::flat(module), module)).collect();
    let mut tensors = BTreeMap::new();
    for module in lora.modules {
        let factor = factor_of(module.scale());
        let path = match &module.module {
            ModuleName::Path(path) => path.as_str(),
            ModuleName::Flat(flat) => by_flat_name.get(flat).copied().unwrap_or(flat),
        };
        let mut up = module.up;
        for value in &mut up.values {
            // Multiplying by 1 keeps every bit.
            *value = (f64::from(*value) * factor) as f32;
        }
        tensors.insert(format!("{path}{B}"), up);
        tensors.insert(format!("{path}{A}"), module.down);
    }
    tensors
}

/// Refuses an adapter that is not of exactly the tensors of `layout`, with the number of each kind of difference. Linear
/// factors may be given as those of 1×1 convolutions, and the other way round.
fn check_against(place: &str, tensors: &BTreeMap<String, ReadTensor>, layout: &Layout) -> Result<()> {
    let mut differences = Vec::new();
    let foreign: Vec<&str> = tensors
        .keys()
        .map(String::as_str)
        .filter(|name| layout.index_of(name).is_none())
        .collect();
    if !foreign.is_empty() {
        differences.push(format!(
            "adapts {} not among the trained layers ({} of {} tensors)",
            listed(&foreign),
            foreign.len(),
            tensors.len()
        ));
    }
    let trained = || layout.names().iter().enumerate();
    let missing: Vec<&str> = trained()
        .map(|(_, name)| name.as_str())
        .filter(|name| !tensors.contains_key(*name))
        .collect();
    if !missing.is_empty() {
        differences.push(format!("has no {}, to be trained", listed(&missing)));
    }
    let without_ones = |shape: &[usize]| shape.iter().copied().filter(|d| *d != 1).collect::<Vec<_>>();
    let mut shapes = trained().filter_map(|(index, name)| {
        let (tensor, expected) = (tensors.get(name)?, layout.shape(index));
        (without_ones(&tensor.shape) != without_ones(expected))
            .then(|| format!("`{name}` of shape {:?} instead of {expected:?}", tensor.shape))
    });
    if let Some(first) = shapes.next() {
        let more = match shapes.count() {
            0 => String::new(),
            more => format!(" and {more} more of other shapes"),
        };
        differences.push(format!("holds {first}{more}"));
    }
    match differences.is_empty() {
        true => Ok(()),
        false => Err(Error::bad(
            place,
            differences.join("; "),
            "Set adapter.targets and adapter.rank to those of the file, or give one of this kind of model.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Arc<Layout> {
        let tensors = [
            ("conv.lora_A.weight", vec![16, 32, 3, 3]),
            ("conv.lora_B.weight", vec![64, 16, 1, 1]),
            ("to_q.lora_A.weight", vec![16, 400]),
            ("to_q.lora_B.weight", vec![64, 16]),
        ];
        Layout::new(tensors.map(|(name, shape)| (name.to_owned(), shape))).unwrap()
    }

    fn deviation(values: &[f32]) -> f64 {
        let count = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
        (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count).sqrt()
    }

    #[test]
    fn distributions_are_those_of_peft() {
        let layout = layout();
        let uniform = init_lora(&layout, InitA::Kaiming, &Streams::new(1));
        for (index, fan_in) in [(0, 288.0f64), (2, 400.0)] {
            let (values, bound) = (uniform.tensor(index), 1.0 / fan_in.sqrt());
            let largest = values.iter().fold(0.0f32, |max, v| max.max(v.abs()));
            assert!(
                f64::from(largest) <= bound * 1.000_001 && f64::from(largest) > 0.99 * bound,
                "{largest}"
            );
            assert!((deviation(values) / (bound / 3f64.sqrt()) - 1.0).abs() < 0.03);
        }
        let normal = init_lora(&layout, InitA::Gaussian, &Streams::new(1));
        assert!((deviation(normal.tensor(2)) * 16.0 - 1.0).abs() < 0.03);
        for adapter in [uniform, normal] {
            assert!(
                [1, 3]
                    .iter()
                    .all(|b| adapter.tensor(*b).iter().all(|value| *value == 0.0))
            );
        }
    }

    #[test]
    fn the_seed_decides_and_other_layers_do_not() {
        let layout = layout();
        let init = |seed| init_lora(&layout, InitA::Kaiming, &Streams::new(seed));
        assert_eq!(init(1), init(1));
        assert_ne!(init(1), init(2));
        let alone = Layout::new([("to_q.lora_A.weight".to_owned(), vec![16, 400])]).unwrap();
        assert_eq!(
            init_lora(&alone, InitA::Kaiming, &Streams::new(1)).tensor(0),
            init(1).tensor(2)
        );
    }
}
