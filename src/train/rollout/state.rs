//! What a checkpoint keeps of rollouts: where they stand as JSON, latents and value network as tensors.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::advantage::RewardHistory;
use super::items::{Item, Pool};
use super::value::ValueState;
use crate::params::{Layout, ParamSet};
use crate::{Error, Result};

/// Where rollouts stand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutState {
    /// Rounds made.
    pub round: u64,
    /// What the last round left to learn from, in its order.
    pub(super) items: Vec<Item>,
    /// How many of them were taken.
    pub(super) taken: usize,
    /// Number of the first of them, counted over the whole run.
    pub(super) first_id: u64,
    /// Rewards that advantages are measured by.
    pub(super) history: RewardHistory,
    /// Mean and standard deviation of the first round's rewards.
    pub(super) first_rewards: Option<(f64, f64)>,
    /// Fitting steps of the value network.
    value_steps: u64,
}

/// A state that was read.
pub(super) struct Unpacked {
    pub state: RolloutState,
    pub pool: Pool,
    pub value: Option<ValueState>,
}

const LATENTS: &str = "latents";
const VALUE: [&str; 3] = ["value.", "value_first_moment.", "value_second_moment."];

/// The state with the tensors that belong to it; `shape` is that of one latent.
pub(super) fn pack(
    state: &RolloutState,
    pool: &Pool,
    shape: [usize; 3],
    value: Option<ValueState>,
) -> Result<(RolloutState, ParamSet)> {
    let [c, h, w] = shape;
    let mut tensors = vec![(LATENTS.to_owned(), vec![pool.0.len(), c, h, w])];
    for (prefix, set) in VALUE.iter().zip(value.iter().flat_map(|value| &value.sets)) {
        let names = set.layout().names().iter().enumerate();
        tensors.extend(names.map(|(i, name)| (format!("{prefix}{name}"), set.layout().shape(i).to_vec())));
    }
    let layout = Layout::new(tensors)?;
    let mut packed = ParamSet::zeros(&layout);
    let mut put = |name: &str, values: &[f32]| {
        let index = layout.index_of(name).expect("the layout was made of these names");
        packed.tensor_mut(index).copy_from_slice(values);
    };
    put(LATENTS, &pool.0.concat());
    for (prefix, set) in VALUE.iter().zip(value.iter().flat_map(|value| &value.sets)) {
        set.iter()
            .for_each(|(name, values)| put(&format!("{prefix}{name}"), values));
    }
    let state = RolloutState {
        value_steps: value.map_or(0, |value| value.steps),
        ..state.clone()
    };
    Ok((state, packed))
}

/// The opposite of [`pack`]; `value` is the layout of the value network, where there is one.
pub(super) fn unpack(
    state: RolloutState,
    tensors: &ParamSet,
    value: Option<&Arc<Layout>>,
) -> Result<Unpacked> {
    let missing = |name: &str| {
        Error::bad(
            "checkpoint: rollouts.safetensors",
            format!("has no {name:?}"),
            "Resume with the configuration that the run was started with.",
        )
    };
    let tensor = |name: &str| {
        let index = tensors.layout().index_of(name).ok_or_else(|| missing(name))?;
        Ok::<_, Error>((tensors.layout().shape(index), tensors.tensor(index)))
    };
    let (shape, latents) = tensor(LATENTS)?;
    let len: usize = shape[1..].iter().product();
    let set = |prefix: &str, layout: &Arc<Layout>| {
        let mut set = ParamSet::zeros(layout);
        for (index, name) in layout.names().iter().enumerate() {
            let name = format!("{prefix}{name}");
            let (shape, values) = tensor(&name)?;
            if shape != layout.shape(index) {
                return Err(missing(&format!("{name} of shape {:?}", layout.shape(index))));
            }
            set.tensor_mut(index).copy_from_slice(values);
        }
        Ok(set)
    };
    let value = match value {
        None => None,
        Some(layout) => Some(ValueState {
            sets: [
                set(VALUE[0], layout)?,
                set(VALUE[1], layout)?,
                set(VALUE[2], layout)?,
            ],
            steps: state.value_steps,
        }),
    };
    Ok(Unpacked {
        pool: Pool(latents.chunks_exact(len).map(<[f32]>::to_vec).collect()),
        value,
        state,
    })
}
