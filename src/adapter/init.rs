//! Where new adapters start, as PEFT has it: A random, B zero, so that the adapted model is the model itself.

use std::sync::Arc;

use crate::config::adapter::InitA;
use crate::params::{Layout, ParamSet};
use crate::rng::{Purpose, Streams};

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
