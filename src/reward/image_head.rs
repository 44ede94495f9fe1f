//! Ratings of pictures without a prompt: LAION's aesthetic predictors, or any network with one number per picture.
//!
//! Predictors that are stacks of linear layers without activations, such as LAION's version 2, are one affine map of
//! the embedding and are stored as such.

use std::path::Path;

use ndarray::{Array2, ArrayView2, ArrayView4};
use safetensors::{Dtype, SafeTensors};

use super::manifest::{Head, ImageTower};
use super::network::Network;
use super::{Networks, PromptUse};
use crate::runtime::SessionOptions;
use crate::{Error, Result};

struct ImageHead {
    image: Network,
    spec: ImageTower,
    head: Option<Affine>,
}

struct Affine {
    place: String,
    weight: Vec<f64>,
    bias: f64,
    l2_normalize: bool,
}

/// Loads the network and the head.
pub(super) fn open(
    folder: &Path,
    options: &SessionOptions,
    shape: [usize; 3],
    spec: &ImageTower,
    head: Option<&Head>,
) -> Result<Box<dyn Networks>> {
    let image = Network::open(&folder.join(&spec.model), options)?;
    image.check(&spec.inputs(), &[&spec.output])?;
    image.check_pictures(&spec.input, shape)?;
    let head = head.map(|head| Affine::read(&folder.join(&head.file), head.l2_normalize));
    let head = head.transpose()?;
    match (image.width(&spec.output), &head) {
        (Some(width), Some(head)) => head.check(width)?,
        (Some(width), None) => check_rating(spec, width)?,
        // Then the first pictures show it.
        (None, _) => {}
    }
    Ok(Box::new(ImageHead {
        image,
        spec: spec.clone(),
        head,
    }))
}

impl Networks for ImageHead {
    fn prompt_use(&self) -> PromptUse {
        PromptUse::Ignored
    }

    fn features(&mut self, pixels: ArrayView4<'_, f32>, _: &[&str]) -> Result<Array2<f32>> {
        self.image.features(&self.spec, pixels)
    }

    fn scores(&mut self, features: ArrayView2<'_, f32>, _: &[&str]) -> Result<Vec<f64>> {
        match &self.head {
            Some(head) => head.apply(features),
            None => single_column(&self.spec, features),
        }
    }
}

impl Affine {
    fn read(path: &Path, l2_normalize: bool) -> Result<Self> {
        let place = path.display().to_string();
        let unfit = |what: String| {
            Error::bad(
                &place,
                what,
                "Write a safetensors file with f32 `weight` [1, D] and `bias` [1], as scripts/export_rewards.py does.",
            )
        };
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let file =
            SafeTensors::deserialize(&bytes).map_err(|e| unfit(format!("is not a safetensors file: {e}")))?;
        let values = |name: &str| {
            let tensor = file
                .tensor(name)
                .map_err(|_| unfit(format!("has no tensor `{name}`")))?;
            match (tensor.dtype(), tensor.shape()) {
                (Dtype::F32, [1] | [1, _]) => {
                    let numbers = tensor.data().chunks_exact(4);
                    let number = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                    Ok(numbers.map(number).collect::<Vec<f64>>())
                }
                (dtype, shape) => Err(unfit(format!("holds `{name}` as {dtype:?} {shape:?}"))),
            }
        };
        let (weight, bias) = (values("weight")?, values("bias")?);
        match bias[..] {
            [bias] => Ok(Self {
                weight,
                bias,
                l2_normalize,
                place,
            }),
            _ => Err(unfit(format!("holds {} values of `bias`", bias.len()))),
        }
    }

    fn check(&self, width: usize) -> Result<()> {
        if width == self.weight.len() {
            return Ok(());
        }
        let weights = self.weight.len();
        let what = format!("holds {weights} weights for embeddings of {width} values");
        let remedy = "Name the embedding that the head was trained on.";
        Err(Error::bad(&self.place, what, remedy))
    }

    fn apply(&self, features: ArrayView2<'_, f32>) -> Result<Vec<f64>> {
        self.check(features.ncols())?;
        let rate = |row: ndarray::ArrayView1<f32>| {
            let sum = |f: fn(f64, f64) -> f64| -> f64 {
                row.iter()
                    .zip(&self.weight)
                    .map(|(&x, &w)| f(f64::from(x), w))
                    .sum()
            };
            let length = match self.l2_normalize {
                true => sum(|x, _| x * x).sqrt(),
                false => 1.0,
            };
            sum(|x, w| x * w) / length + self.bias
        };
        Ok(features.outer_iter().map(rate).collect())
    }
}

/// The output of a network that gives ratings itself.
pub(super) fn single_column(spec: &ImageTower, features: ArrayView2<'_, f32>) -> Result<Vec<f64>> {
    check_rating(spec, features.ncols())?;
    Ok(features.iter().map(|&rating| f64::from(rating)).collect())
}

fn check_rating(spec: &ImageTower, width: usize) -> Result<()> {
    match width {
        1 => Ok(()),
        n => Err(Error::bad(
            &spec.model,
            format!(
                "gives {n} values of `{}` per picture, not one rating",
                spec.output
            ),
            "Name the output with the rating, or give the head that makes one of an embedding.",
        )),
    }
}
