//! The noise schedule of a diffusion model, read from diffusers' `scheduler_config.json`.
//!
//! A noised latent is `x_t = √ᾱ_t · x_0 + √(1−ᾱ_t) · ε` (DDPM, arXiv 2006.11239). Training needs `ᾱ_t`, the
//! signal-to-noise ratio `ᾱ_t / (1−ᾱ_t)`, and what the network is to predict. All of it is kept in f64;
//! diffusers computes in f32 and differs in the sixth digit.

use std::f64::consts::FRAC_PI_2;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A training timestep: 0 is the least noisy, `train_timesteps − 1` the noisiest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestep(pub u32);

impl Timestep {
    /// Index into tables over the training timesteps.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What the network predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PredictionType {
    /// The noise ε.
    #[serde(rename = "epsilon")]
    Epsilon,
    /// The velocity `√ᾱ_t · ε − √(1−ᾱ_t) · x_0` (arXiv 2202.00512).
    #[serde(rename = "v_prediction")]
    VPrediction,
}

/// `ᾱ_t` of every training timestep, and what the network predicts.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
    prediction_type: PredictionType,
}

/// The keys of `scheduler_config.json` that define the training schedule; samplers have many more.
#[derive(Debug, Deserialize)]
struct SchedulerConfig {
    #[serde(rename = "_class_name", default)]
    class_name: String,
    num_train_timesteps: Option<usize>,
    beta_start: Option<f64>,
    beta_end: Option<f64>,
    beta_schedule: Option<String>,
    trained_betas: Option<Vec<f64>>,
    prediction_type: Option<String>,
    #[serde(default)]
    rescale_betas_zero_snr: bool,
}

impl NoiseSchedule {
    /// Reads a `scheduler_config.json`.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        Self::from_json(&text, &path.display().to_string())
    }

    /// Reads the text of a `scheduler_config.json`; errors name it as `place`.
    pub fn from_json(text: &str, place: &str) -> Result<Self> {
        let config: SchedulerConfig = serde_json::from_str(&json_of_scheduler(text)).map_err(|error| {
            Error::bad(
                place,
                error.to_string(),
                "Export the scheduler again with diffusers' save_pretrained.",
            )
        })?;
        let betas = config.betas(place)?;
        let mut alphas_cumprod = cumulative_product(&betas);
        if config.rescale_betas_zero_snr {
            rescale_to_zero_terminal_snr(&mut alphas_cumprod);
        }
        Ok(Self {
            alphas_cumprod,
            prediction_type: config.prediction_type(place)?,
        })
    }

    /// Number of training timesteps.
    pub fn train_timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// What the network predicts.
    pub fn prediction_type(&self) -> PredictionType {
        self.prediction_type
    }

    /// `ᾱ_t`: the share of the signal's variance that is left.
    pub fn alpha_cumprod(&self, t: Timestep) -> f64 {
        self.alphas_cumprod[t.index()]
    }

    /// Signal-to-noise ratio `ᾱ_t / (1−ᾱ_t)`; 0 at the last timestep of a zero-terminal-SNR schedule.
    pub fn snr(&self, t: Timestep) -> f64 {
        let alpha = self.alpha_cumprod(t);
        alpha / (1.0 - alpha)
    }

    /// Writes `x_t = √ᾱ_t · x0 + √(1−ᾱ_t) · noise` for one sample; all slices are (C,H,W) flat.
    pub fn add_noise(&self, t: Timestep, x0: &[f32], noise: &[f32], x_t: &mut [f32]) {
        let (signal, sigma) = self.coefficients(t);
        combine(signal, x0, sigma, noise, x_t);
    }

    /// Writes what the network should predict at `t` for one sample; all slices are (C,H,W) flat.
    pub fn target(&self, t: Timestep, x0: &[f32], noise: &[f32], target: &mut [f32]) {
        let (signal, sigma) = self.coefficients(t);
        match self.prediction_type {
            PredictionType::Epsilon => target.copy_from_slice(noise),
            PredictionType::VPrediction => combine(-sigma, x0, signal, noise, target),
        }
    }

    /// `(√ᾱ_t, √(1−ᾱ_t))`.
    fn coefficients(&self, t: Timestep) -> (f32, f32) {
        let alpha = self.alpha_cumprod(t);
        (alpha.sqrt() as f32, (1.0 - alpha).sqrt() as f32)
    }
}

impl SchedulerConfig {
    fn betas(&self, place: &str) -> Result<Vec<f64>> {
        let betas = match &self.trained_betas {
            Some(betas) => betas.clone(),
            None => self.computed_betas(place)?,
        };
        let valid = !betas.is_empty() && betas.iter().all(|beta| (0.0..1.0).contains(beta) && *beta > 0.0);
        if valid {
            return Ok(betas);
        }
        Err(Error::bad(
            place,
            "gives betas that are not between 0 and 1",
            "Compare beta_start, beta_end, trained_betas and num_train_timesteps with the original model's.",
        ))
    }

    fn computed_betas(&self, place: &str) -> Result<Vec<f64>> {
        let missing = |key: &str| {
            let class = if self.class_name.is_empty() {
                "the scheduler"
            } else {
                &self.class_name
            };
            Error::bad(
                place,
                format!("has no {key}, so {class} does not define a DDPM noise schedule"),
                "Use the scheduler of an epsilon- or v-prediction model, as Stable Diffusion and SDXL have it.",
            )
        };
        let count = self
            .num_train_timesteps
            .ok_or_else(|| missing("num_train_timesteps"))?;
        let schedule = self
            .beta_schedule
            .as_deref()
            .ok_or_else(|| missing("beta_schedule"))?;
        let ends = || -> Result<(f64, f64)> {
            let start = self.beta_start.ok_or_else(|| missing("beta_start"))?;
            Ok((start, self.beta_end.ok_or_else(|| missing("beta_end"))?))
        };
        match schedule {
            "linear" => ends().map(|(start, end)| linspace(start, end, count).collect()),
            "scaled_linear" => ends().map(|(start, end)| {
                linspace(start.sqrt(), end.sqrt(), count)
                    .map(|root| root * root)
                    .collect()
            }),
            "squaredcos_cap_v2" => Ok(squared_cosine_betas(count)),
            other => Err(Error::bad(
                place,
                format!("has the unknown beta_schedule {other:?}"),
                "linear, scaled_linear and squaredcos_cap_v2 are known; others can be given as trained_betas.",
            )),
        }
    }

    fn prediction_type(&self, place: &str) -> Result<PredictionType> {
        match self.prediction_type.as_deref() {
            // Configurations older than the key, SD1.5's among them, mean epsilon.
            None | Some("epsilon") => Ok(PredictionType::Epsilon),
            Some("v_prediction") => Ok(PredictionType::VPrediction),
            Some(other) => Err(Error::bad(
                place,
                format!("has the prediction_type {other:?}"),
                "Training supports epsilon and v_prediction.",
            )),
        }
    }
}

/// Python writes infinite defaults (`lambda_min_clipped`) as `-Infinity`, which JSON has no word for; `null` stands for
/// the default as well.
pub(super) fn json_of_scheduler(text: &str) -> String {
    text.replace(": -Infinity", ": null")
}

fn linspace(start: f64, end: f64, count: usize) -> impl Iterator<Item = f64> {
    let last = count.saturating_sub(1).max(1) as f64;
    (0..count).map(move |index| start + (end - start) * index as f64 / last)
}

/// The cosine schedule of arXiv 2102.09672: `ᾱ(s) ∝ cos²((s + 0.008) / 1.008 · π/2)`, betas at most 0.999.
fn squared_cosine_betas(count: usize) -> Vec<f64> {
    let alpha_bar = |s: f64| ((s + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
    let at = |index: usize| alpha_bar(index as f64 / count as f64);
    (0..count)
        .map(|index| (1.0 - at(index + 1) / at(index)).min(0.999))
        .collect()
}

fn cumulative_product(betas: &[f64]) -> Vec<f64> {
    betas
        .iter()
        .scan(1.0, |product, beta| {
            *product *= 1.0 - beta;
            Some(*product)
        })
        .collect()
}

/// Shifts and scales `√ᾱ` so that the first stays and the last becomes 0 (arXiv 2305.08891, algorithm 1).
fn rescale_to_zero_terminal_snr(alphas_cumprod: &mut [f64]) {
    let (Some(first), Some(last)) = (alphas_cumprod.first(), alphas_cumprod.last()) else {
        return;
    };
    let (first, last) = (first.sqrt(), last.sqrt());
    for alpha in alphas_cumprod {
        let root = (alpha.sqrt() - last) * first / (first - last);
        *alpha = root * root;
    }
}

fn combine(a: f32, x: &[f32], b: f32, y: &[f32], out: &mut [f32]) {
    assert!(
        x.len() == out.len() && y.len() == out.len(),
        "a sample's tensors have one size"
    );
    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
        *out = a * x + b * y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The schedule of SD1.5 and SDXL, with the keys that SD1.5's file has.
    pub(crate) const STABLE_DIFFUSION: &str = r#"{"_class_name": "PNDMScheduler", "beta_start": 0.00085,
        "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
        "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null, "set_alpha_to_one": false}"#;

    #[test]
    fn stable_diffusion_has_its_published_constants() {
        let schedule = NoiseSchedule::from_json(STABLE_DIFFUSION, "test").unwrap();
        assert_eq!(schedule.train_timesteps(), 1000);
        assert_eq!(schedule.prediction_type(), PredictionType::Epsilon);
        for (t, expected) in [
            (0, 0.99915),
            (250, 0.67379),
            (500, 0.27633),
            (750, 0.05617),
            (900, 0.01415),
            (999, 0.00466),
        ] {
            let alpha = schedule.alpha_cumprod(Timestep(t));
            assert!((alpha - expected).abs() < 5.1e-6, "t {t}: {alpha}");
        }
    }

    #[test]
    fn velocity_and_noised_latent_give_back_signal_and_noise() {
        let config = STABLE_DIFFUSION.replace("true", "true, \"prediction_type\": \"v_prediction\"");
        let schedule = NoiseSchedule::from_json(&config, "test").unwrap();
        let (x0, noise) = ([0.5, -1.25, 2.0], [-0.75, 0.1, 1.5]);
        for t in [0, 400, 999].map(Timestep) {
            let (mut x_t, mut v) = ([0.0; 3], [0.0; 3]);
            schedule.add_noise(t, &x0, &noise, &mut x_t);
            schedule.target(t, &x0, &noise, &mut v);
            let alpha = schedule.alpha_cumprod(t);
            let (a, s) = (alpha.sqrt() as f32, (1.0 - alpha).sqrt() as f32);
            for i in 0..3 {
                assert!((a * x_t[i] - s * v[i] - x0[i]).abs() < 1e-6);
                assert!((s * x_t[i] + a * v[i] - noise[i]).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn zero_terminal_snr_ends_in_pure_noise() {
        let config = STABLE_DIFFUSION.replace("true", "true, \"rescale_betas_zero_snr\": true");
        let schedule = NoiseSchedule::from_json(&config, "test").unwrap();
        assert_eq!(schedule.snr(Timestep(999)), 0.0);
        assert!((schedule.alpha_cumprod(Timestep(0)) - 0.99915).abs() < 1e-12);
        let mut x_t = [0.0; 2];
        schedule.add_noise(Timestep(999), &[3.0, -4.0], &[0.25, 0.5], &mut x_t);
        assert_eq!(x_t, [0.25, 0.5]);
    }

    #[test]
    fn schedulers_that_cannot_train_say_why() {
        for (text, expected) in [
            (
                r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}"#,
                "FlowMatchEulerDiscreteScheduler does not define",
            ),
            (
                r#"{"num_train_timesteps": 10, "beta_schedule": "sigmoid"}"#,
                "unknown beta_schedule \"sigmoid\"",
            ),
            (
                r#"{"num_train_timesteps": 10, "beta_schedule": "linear", "beta_start": 0.1}"#,
                "no beta_end",
            ),
            (r#"{"trained_betas": [0.1, 1.5]}"#, "not between 0 and 1"),
            (
                r#"{"trained_betas": [0.1], "prediction_type": "sample"}"#,
                "prediction_type \"sample\"",
            ),
            ("{", "EOF"),
        ] {
            let error = NoiseSchedule::from_json(text, "scheduler_config.json")
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with("scheduler_config.json: ") && error.contains(expected),
                "{error}"
            );
        }
    }
}
