//! Similarity of two embeddings: CLIP (Radford et al. 2021) and its descendants PickScore, HPSv2, SigLIP.

use std::collections::HashMap;
use std::path::Path;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayView4};

use super::manifest::{ImageTower, Scale, TextTower};
use super::network::{Network, Values};
use super::prompt::{PromptReader, TokenRows};
use super::{Networks, PromptUse};
use crate::runtime::SessionOptions;
use crate::{Error, Result};

/// Embeddings of prompts that are kept; 16,384 of 1,024 values are 64 MiB.
const PROMPTS_KEPT: usize = 16_384;

struct DualTower {
    /// The image tower; the text tower as well where one file holds both.
    image: Network,
    text: Option<Network>,
    image_spec: ImageTower,
    text_spec: TextTower,
    prompts: PromptReader,
    scale: Scale,
    embedded: HashMap<String, Array1<f32>>,
}

/// Loads both towers.
pub(super) fn open(
    folder: &Path,
    options: &SessionOptions,
    shape: [usize; 3],
    image_spec: &ImageTower,
    text_spec: &TextTower,
    scale: &Scale,
) -> Result<Box<dyn Networks>> {
    let prompts = PromptReader::open(folder, &text_spec.prompt)?;
    let image = Network::open(&folder.join(&image_spec.model), options)?;
    let is_shared = image_spec.model == text_spec.model;
    let text = match is_shared {
        true => None,
        false => Some(Network::open(&folder.join(&text_spec.model), options)?),
    };
    let mut of_image = image_spec.inputs();
    match &text {
        Some(text) => text.check(&prompts.inputs(), &[&text_spec.output])?,
        None => of_image.extend(prompts.inputs()),
    }
    image.check(&of_image, &[&image_spec.output])?;
    image.check_pictures(&image_spec.input, shape)?;
    let of_prompts = text.as_ref().unwrap_or(&image);
    prompts.check(of_prompts)?;
    if let Some(image) = image.width(&image_spec.output)
        && let Some(text) = of_prompts.width(&text_spec.output)
    {
        check_lengths(image, text)?;
    }
    Ok(Box::new(DualTower {
        image,
        text,
        image_spec: image_spec.clone(),
        text_spec: text_spec.clone(),
        prompts,
        scale: scale.clone(),
        embedded: HashMap::new(),
    }))
}

impl Networks for DualTower {
    fn prompt_use(&self) -> PromptUse {
        PromptUse::Afterwards
    }

    fn features(&mut self, pixels: ArrayView4<'_, f32>, _: &[&str]) -> Result<Array2<f32>> {
        let mut idle = self.image_spec.unused();
        if self.text.is_none() {
            idle.extend(self.prompts.inputs());
        }
        let input = (self.image_spec.input.as_str(), Values::Floats(pixels.into_dyn()));
        let mut outputs = self.image.run(&[input], &idle, &[&self.image_spec.output])?;
        Ok(outputs.remove(0))
    }

    fn tokens(&self, prompts: &[&str]) -> Result<Option<TokenRows>> {
        self.prompts.read(prompts).map(Some)
    }

    fn embed_prompts(&mut self, prompts: &[&str]) -> Result<Option<Array2<f32>>> {
        self.embed(prompts)?;
        let rows: Vec<_> = prompts
            .iter()
            .map(|prompt| self.embedded[*prompt].view())
            .collect();
        Ok(ndarray::stack(ndarray::Axis(0), &rows).ok())
    }

    fn scores(&mut self, features: ArrayView2<'_, f32>, prompts: &[&str]) -> Result<Vec<f64>> {
        self.embed(prompts)?;
        let rows = features.outer_iter().zip(prompts);
        rows.map(|(image, prompt)| {
            let text = &self.embedded[*prompt];
            check_lengths(image.len(), text.len())?;
            Ok(scaled(cosine(image, text.view()), &self.scale))
        })
        .collect()
    }
}

impl DualTower {
    /// Sees to it that every prompt's embedding is there.
    fn embed(&mut self, prompts: &[&str]) -> Result<()> {
        if self.embedded.len() + prompts.len() > PROMPTS_KEPT {
            self.embedded.clear();
        }
        let mut missing: Vec<&str> = prompts
            .iter()
            .copied()
            .filter(|p| !self.embedded.contains_key(*p))
            .collect();
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        let tokens = self.prompts.read(&missing)?;
        let (network, idle) = match &mut self.text {
            Some(text) => (text, vec![]),
            None => (&mut self.image, self.image_spec.inputs()),
        };
        let outputs = network.run(&self.prompts.values(&tokens), &idle, &[&self.text_spec.output])?;
        for (prompt, row) in missing.iter().zip(outputs[0].outer_iter()) {
            self.embedded.insert((*prompt).to_owned(), row.to_owned());
        }
        Ok(())
    }
}

fn check_lengths(image: usize, text: usize) -> Result<()> {
    match image == text {
        true => Ok(()),
        false => Err(Error::bad(
            "scorer.text.output",
            format!("gives embeddings of {text} values, but scorer.image.output gives {image}"),
            "Name outputs of the same length in the manifest.",
        )),
    }
}

fn cosine(a: ArrayView1<f32>, b: ArrayView1<f32>) -> f64 {
    let products = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
    let square = |v: ArrayView1<f32>| v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    products.sum::<f64>() / (square(a) * square(b)).sqrt()
}

fn scaled(cosine: f64, scale: &Scale) -> f64 {
    match *scale {
        Scale::Cosine {} => cosine,
        Scale::Logit {
            logit_scale,
            logit_bias,
        } => logit_scale.exp() * cosine + logit_bias,
        Scale::Factor { factor, minimum } => {
            let score = factor * cosine;
            // Not `max`, which would hide a score that is not a number.
            minimum.map_or(score, |least| if score < least { least } else { score })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scale_is_what_its_paper_says() {
        let factor = |factor, minimum| Scale::Factor { factor, minimum };
        let logit = |logit_scale, logit_bias| Scale::Logit {
            logit_scale,
            logit_bias,
        };
        for (scale, cosine, score) in [
            (Scale::Cosine {}, 0.27, 0.27),
            (factor(100.0, None), -0.25, -25.0),
            (factor(2.5, Some(0.0)), -0.25, 0.0),
            (factor(2.5, Some(0.0)), 0.25, 0.625),
            (logit(100f64.ln(), 0.0), 0.21, 21.0),
            (logit(0.0, -10.0), 0.5, -9.5),
        ] {
            assert!((scaled(cosine, &scale) - score).abs() < 1e-12, "{scale:?}");
        }
        assert!(scaled(f64::NAN, &factor(1.0, Some(0.0))).is_nan());
    }

    #[test]
    fn the_cosine_does_not_depend_on_lengths() {
        let (a, b) = (Array1::from(vec![3.0f32, 4.0]), Array1::from(vec![0.0f32, 20.0]));
        assert!((cosine(a.view(), b.view()) - 0.8).abs() < 1e-12);
    }
}
