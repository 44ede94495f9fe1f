//! What a VAE encoder says about an image, and drawing latents from it.

use ndarray::{Array3, ArrayD, Ix3};

use crate::Result;
use crate::model_folder::{Component, JsonFile, ModelFolder};
use crate::rng::Stream;

/// Bounds within which diffusers' `DiagonalGaussianDistribution` keeps the log variance.
const LOGVAR_BOUNDS: (f32, f32) = (-30.0, 20.0);

/// Mean and log variance of an image's latent distribution, each (C,H,W) and not yet scaled.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Mean.
    pub mean: Array3<f32>,
    /// Log variance; `None` where the export gives one latent instead of its distribution.
    pub logvar: Option<Array3<f32>>,
}

impl Moments {
    /// A latent drawn with the normal numbers of `stream`, scaled for the denoiser; (C,H,W).
    pub fn sample(&self, scaling: LatentScaling, stream: &mut Stream) -> Array3<f32> {
        let mut latent = self.mean.clone();
        if let Some(logvar) = &self.logvar {
            let mut noise = vec![0.0; latent.len()];
            stream.fill_normal(&mut noise);
            for ((value, logvar), noise) in latent.iter_mut().zip(logvar).zip(noise) {
                *value += (0.5 * logvar.clamp(LOGVAR_BOUNDS.0, LOGVAR_BOUNDS.1)).exp() * noise;
            }
        }
        latent.mapv_inplace(|value| scaling.apply(value));
        latent
    }

    /// The most likely latent, scaled for the denoiser; (C,H,W).
    pub fn mode(&self, scaling: LatentScaling) -> Array3<f32> {
        self.mean.mapv(|value| scaling.apply(value))
    }

    /// `None` if the tensors are not those of [`Moments::tensors`].
    pub(crate) fn from_tensors(tensors: Vec<ArrayD<f32>>) -> Option<Self> {
        let mut tensors = tensors.into_iter().map(|t| t.into_dimensionality::<Ix3>().ok());
        let mean = tensors.next()??;
        let logvar = match tensors.next() {
            Some(logvar) => Some(logvar.filter(|l| l.dim() == mean.dim())?),
            None => None,
        };
        Some(Self { mean, logvar })
    }

    /// The form in which the cache keeps them.
    pub(crate) fn tensors(&self) -> Vec<ndarray::ArrayViewD<'_, f32>> {
        let logvar = self.logvar.as_ref().map(|l| l.view().into_dyn());
        std::iter::once(self.mean.view().into_dyn())
            .chain(logvar)
            .collect()
    }

    /// Whether all values are numbers: VAEs in half precision overflow on some images.
    pub(crate) fn is_finite(&self) -> bool {
        let finite = |a: &Array3<f32>| a.iter().all(|v| v.is_finite());
        finite(&self.mean) && self.logvar.as_ref().is_none_or(finite)
    }
}

/// How a VAE's latents become the denoiser's: `(latent − shift) · factor`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentScaling {
    /// `scaling_factor` of the VAE's config: 0.18215 for SD1.5, 0.13025 for SDXL.
    pub factor: f32,
    /// `shift_factor`; 0 where the config has none.
    pub shift: f32,
}

impl LatentScaling {
    /// Reads `vae_encoder/config.json`.
    ///
    /// # Errors
    /// The file is missing or has no `scaling_factor`.
    pub fn of(model: &ModelFolder) -> Result<Self> {
        Self::read(&model.config(Component::VaeEncoder)?)
    }

    /// Reads the config of either half of a VAE.
    ///
    /// # Errors
    /// It has no `scaling_factor`.
    pub fn read(config: &JsonFile) -> Result<Self> {
        let shift = match config.get("shift_factor") {
            Some(_) => config.number("shift_factor")?,
            None => 0.0,
        };
        Ok(Self {
            factor: config.number("scaling_factor")? as f32,
            shift: shift as f32,
        })
    }

    fn apply(self, value: f32) -> f32 {
        (value - self.shift) * self.factor
    }

    /// The VAE's latent from the denoiser's.
    pub fn undo(self, value: f32) -> f32 {
        value / self.factor + self.shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{PairId, Purpose, Streams, Visit};

    const SCALING: LatentScaling = LatentScaling {
        factor: 0.5,
        shift: 1.0,
    };

    fn stream() -> Stream {
        Streams::new(3).pair(Purpose::Latent, PairId(1), Visit(0))
    }

    #[test]
    fn samples_have_the_moments_they_are_drawn_from() {
        let shape = (4, 100, 100);
        let moments = Moments {
            mean: Array3::from_elem(shape, 3.0),
            logvar: Some(Array3::from_elem(shape, 4f32.ln())),
        };
        let sample = moments.sample(SCALING, &mut stream());
        // Mean (3 − 1) · 0.5 and standard deviation 2 · 0.5, within five standard errors of 40,000 draws.
        assert!((sample.mean().unwrap() - 1.0).abs() < 0.025);
        assert!((sample.std(0.0) - 1.0).abs() < 0.018);
        assert_eq!(sample, moments.sample(SCALING, &mut stream()));
        assert_eq!(moments.mode(SCALING), Array3::from_elem(shape, 1.0));
    }

    #[test]
    fn extreme_log_variances_are_clamped_as_in_diffusers() {
        let spread = |logvar: f32| {
            let logvar = Some(Array3::from_elem((1, 1, 1), logvar));
            Moments {
                mean: Array3::zeros((1, 1, 1)),
                logvar,
            }
            .sample(SCALING, &mut stream())
        };
        assert_eq!(spread(1e9), spread(20.0));
        assert_eq!(spread(-1e9), spread(-30.0));
        assert_ne!(spread(20.0), spread(19.0));
    }

    #[test]
    fn without_a_log_variance_the_latent_itself_is_taken() {
        let moments = Moments {
            mean: Array3::from_elem((1, 2, 2), 2.0),
            logvar: None,
        };
        assert_eq!(
            moments.sample(SCALING, &mut stream()),
            Array3::from_elem((1, 2, 2), 0.5)
        );
        let read =
            |m: &Moments| Moments::from_tensors(m.tensors().iter().map(|t| t.to_owned()).collect()).unwrap();
        assert_eq!(read(&moments), moments);
        let both = Moments {
            logvar: Some(Array3::zeros((1, 2, 2))),
            ..moments
        };
        assert_eq!(read(&both), both);
        assert!(
            Moments {
                logvar: Some(Array3::from_elem((1, 2, 2), f32::NAN)),
                ..both
            }
            .is_finite()
            .eq(&false)
        );
    }
}
