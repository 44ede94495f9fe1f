//! Features of pictures, and nothing more: what FID, KID and other metrics of sets compare.

use std::path::Path;

use ndarray::{Array2, ArrayView2, ArrayView4};

use super::manifest::ImageTower;
use super::network::Network;
use super::{Networks, PromptUse};
use crate::runtime::SessionOptions;
use crate::{Error, Result};

struct FeatureExtractor {
    image: Network,
    spec: ImageTower,
}

/// Loads the network.
pub(super) fn open(
    folder: &Path,
    options: &SessionOptions,
    shape: [usize; 3],
    spec: &ImageTower,
) -> Result<Box<dyn Networks>> {
    let image = Network::open(&folder.join(&spec.model), options)?;
    image.check(&spec.inputs(), &[&spec.output])?;
    image.check_pictures(&spec.input, shape)?;
    Ok(Box::new(FeatureExtractor {
        image,
        spec: spec.clone(),
    }))
}

impl Networks for FeatureExtractor {
    fn prompt_use(&self) -> PromptUse {
        PromptUse::Ignored
    }

    fn features(&mut self, pixels: ArrayView4<'_, f32>, _: &[&str]) -> Result<Array2<f32>> {
        self.image.features(&self.spec, pixels)
    }

    fn scores(&mut self, _: ArrayView2<'_, f32>, _: &[&str]) -> Result<Vec<f64>> {
        Err(no_score(&self.spec.model))
    }
}

/// Someone asked for a score.
pub(super) fn no_score(place: &str) -> Error {
    Error::bad(
        place,
        "gives features of pictures, not a score",
        "Use it with `ortdpo fid`; score with a reward of another kind.",
    )
}
