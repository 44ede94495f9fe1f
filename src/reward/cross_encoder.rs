//! One network for picture and prompt together: ImageReward (Xu et al. 2023) and other cross encoders.

use std::path::Path;

use ndarray::{Array2, ArrayView2, ArrayView4};

use super::image_head::single_column;
use super::manifest::{ImageTower, PromptInput, Standardize};
use super::network::{Network, Values};
use super::prompt::{PromptReader, TokenRows};
use super::{Networks, PromptUse};
use crate::Result;
use crate::runtime::SessionOptions;

struct CrossEncoder {
    network: Network,
    spec: ImageTower,
    prompts: PromptReader,
    standardize: Option<Standardize>,
}

/// Loads the network and its tokenizer.
pub(super) fn open(
    folder: &Path,
    options: &SessionOptions,
    shape: [usize; 3],
    spec: &ImageTower,
    prompt: &PromptInput,
    standardize: Option<Standardize>,
) -> Result<Box<dyn Networks>> {
    let prompts = PromptReader::open(folder, prompt)?;
    let network = Network::open(&folder.join(&spec.model), options)?;
    let inputs: Vec<&str> = spec.inputs().into_iter().chain(prompts.inputs()).collect();
    network.check(&inputs, &[&spec.output])?;
    network.check_pictures(&spec.input, shape)?;
    prompts.check(&network)?;
    Ok(Box::new(CrossEncoder {
        network,
        spec: spec.clone(),
        prompts,
        standardize,
    }))
}

impl Networks for CrossEncoder {
    fn prompt_use(&self) -> PromptUse {
        PromptUse::Together
    }

    fn features(&mut self, pixels: ArrayView4<'_, f32>, prompts: &[&str]) -> Result<Array2<f32>> {
        let tokens = self.prompts.read(prompts)?;
        let mut inputs = vec![(self.spec.input.as_str(), Values::Floats(pixels.into_dyn()))];
        inputs.extend(self.prompts.values(&tokens));
        let mut outputs = self
            .network
            .run(&inputs, &self.spec.unused(), &[&self.spec.output])?;
        Ok(outputs.remove(0))
    }

    fn tokens(&self, prompts: &[&str]) -> Result<Option<TokenRows>> {
        self.prompts.read(prompts).map(Some)
    }

    fn scores(&mut self, features: ArrayView2<'_, f32>, _: &[&str]) -> Result<Vec<f64>> {
        let raw = single_column(&self.spec, features)?;
        Ok(match &self.standardize {
            Some(Standardize { mean, std }) => raw.into_iter().map(|x| (x - mean) / std).collect(),
            None => raw,
        })
    }
}
