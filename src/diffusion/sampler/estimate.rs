//! What a model output says about the clean latents and the noise, as linear combinations.

use crate::diffusion::PredictionType;

/// `latents · x + output · m` for latents x and model output m.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Combination {
    pub latents: f64,
    pub output: f64,
}

impl Combination {
    pub(super) fn of(self, x: f32, m: f32) -> f64 {
        self.latents * f64::from(x) + self.output * f64::from(m)
    }
}

/// The clean latents, for latents `√ᾱ · x_0 + √(1−ᾱ) · ε`. Infinite for ε predictions at `ᾱ = 0`.
pub(super) fn clean(prediction: PredictionType, alpha: f64) -> Combination {
    let (signal, sigma) = (alpha.sqrt(), (1.0 - alpha).sqrt());
    match prediction {
        PredictionType::Epsilon => Combination {
            latents: 1.0 / signal,
            output: -sigma / signal,
        },
        PredictionType::VPrediction => Combination {
            latents: signal,
            output: -sigma,
        },
    }
}

/// The noise, for latents `√ᾱ · x_0 + √(1−ᾱ) · ε`.
pub(super) fn noise(prediction: PredictionType, alpha: f64) -> Combination {
    match prediction {
        PredictionType::Epsilon => Combination {
            latents: 0.0,
            output: 1.0,
        },
        PredictionType::VPrediction => Combination {
            latents: (1.0 - alpha).sqrt(),
            output: alpha.sqrt(),
        },
    }
}

/// The noise, for latents `x_0 + σ · ε` that reach the network divided by `√(σ² + 1)`.
pub(super) fn noise_of_sigma(prediction: PredictionType, sigma: f64) -> Combination {
    match prediction {
        PredictionType::Epsilon => Combination {
            latents: 0.0,
            output: 1.0,
        },
        PredictionType::VPrediction => Combination {
            latents: sigma / (sigma * sigma + 1.0),
            output: 1.0 / (sigma * sigma + 1.0).sqrt(),
        },
    }
}
