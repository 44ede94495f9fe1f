//! LPIPS (Zhang et al. 2018, version 0.1) from layers of any network and one weight per channel.
//!
//! LPIPS is Σ over layers of the mean over places of Σ_c w_c (f̂_c − ĝ_c)², f̂ and ĝ the activations of two pictures divided by
//! their length over channels. As the weights are not negative, this is the squared Euclidean distance of two rows
//! that hold √(w_c / places) f̂_c: features like any others, which are computed once per picture, not once per pair.

use std::path::Path;

use ndarray::{Array2, ArrayView2, ArrayView4, ArrayViewD, Axis, Ix4, concatenate};
use safetensors::{Dtype, SafeTensors};

use super::feature_extractor::no_score;
use super::manifest::LayeredTower;
use super::network::{Network, Values};
use super::{Networks, PromptUse};
use crate::runtime::SessionOptions;
use crate::{Error, Result};

/// Added to lengths, as the lpips package does.
const EPSILON: f32 = 1e-10;

struct Perceptual {
    image: Network,
    spec: LayeredTower,
    /// Per layer the weights of its channels.
    heads: Vec<Vec<f32>>,
    place: String,
}

/// Loads the network and the heads.
pub(super) fn open(
    folder: &Path,
    options: &SessionOptions,
    shape: [usize; 3],
    spec: &LayeredTower,
    heads: &str,
) -> Result<Box<dyn Networks>> {
    let image = Network::open(&folder.join(&spec.model), options)?;
    let layers: Vec<&str> = spec.layers.iter().map(String::as_str).collect();
    image.check(&[&spec.input], &layers)?;
    image.check_pictures(&spec.input, shape)?;
    let path = folder.join(heads);
    Ok(Box::new(Perceptual {
        image,
        spec: spec.clone(),
        heads: read_heads(&path, layers.len())?,
        place: path.display().to_string(),
    }))
}

fn read_heads(path: &Path, layers: usize) -> Result<Vec<Vec<f32>>> {
    let unfit = |what: String| {
        let remedy = "Write f32 `lin0`, `lin1`, … of shape [1, C, 1, 1], one for each layer, as the lpips package has them.";
        Error::bad(path.display().to_string(), what, remedy)
    };
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|e| unfit(format!("is not a safetensors file: {e}")))?;
    let head = |layer: usize| {
        let name = format!("lin{layer}");
        let tensor = file
            .tensor(&name)
            .map_err(|_| unfit(format!("has no tensor `{name}`")))?;
        if tensor.dtype() != Dtype::F32 {
            return Err(unfit(format!("holds `{name}` as {:?}", tensor.dtype())));
        }
        let numbers = tensor.data().chunks_exact(4);
        let weights: Vec<f32> = numbers
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        match weights
            .iter()
            .find(|weight| !weight.is_finite() || **weight < 0.0)
        {
            None => Ok(weights),
            Some(weight) => Err(unfit(format!(
                "holds {weight} in `{name}`, which is no weight of a distance"
            ))),
        }
    };
    (0..layers).map(head).collect()
}

impl Networks for Perceptual {
    fn prompt_use(&self) -> PromptUse {
        PromptUse::Ignored
    }

    fn features(&mut self, pixels: ArrayView4<'_, f32>, _: &[&str]) -> Result<Array2<f32>> {
        let input = (self.spec.input.as_str(), Values::Floats(pixels.into_dyn()));
        let layers: Vec<&str> = self.spec.layers.iter().map(String::as_str).collect();
        let found = self.image.run_layers(&[input], &[], &layers)?;
        let parts = found
            .iter()
            .enumerate()
            .map(|(i, activations)| self.part(i, activations.view()));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        Ok(concatenate(Axis(1), &views).expect("every layer has one row per picture"))
    }

    fn scores(&mut self, _: ArrayView2<'_, f32>, _: &[&str]) -> Result<Vec<f64>> {
        Err(no_score(&self.place))
    }
}

impl Perceptual {
    /// One layer's part of the rows: activations (N,C,H,W) to (N, C·H·W).
    fn part(&self, layer: usize, activations: ArrayViewD<'_, f32>) -> Result<Array2<f32>> {
        let (name, weights) = (&self.spec.layers[layer], &self.heads[layer]);
        let unfit = |what: String| {
            Error::bad(
                &self.place,
                what,
                "Give the heads that were trained for these layers.",
            )
        };
        let shape = activations.shape().to_vec();
        let Ok(activations) = activations.into_dimensionality::<Ix4>() else {
            return Err(unfit(format!(
                "is for layers (N,C,H,W), but `{name}` has shape {shape:?}"
            )));
        };
        let (samples, channels, height, width) = activations.dim();
        if channels != weights.len() {
            return Err(unfit(format!(
                "holds {} weights for the {channels} channels of `{name}`",
                weights.len()
            )));
        }
        let places = height * width;
        let mut part = activations.to_owned();
        for mut picture in part.axis_iter_mut(Axis(0)) {
            let lengths = picture.fold_axis(Axis(0), 0.0f32, |sum, value| sum + value * value);
            let lengths = lengths.mapv(|square| square.sqrt() + EPSILON);
            for (mut channel, weight) in picture.axis_iter_mut(Axis(0)).zip(weights) {
                channel /= &lengths;
                channel *= (weight / places as f32).sqrt();
            }
        }
        let rows = part.into_shape_with_order((samples, channels * places));
        Ok(rows.expect("as many values in another shape"))
    }
}
