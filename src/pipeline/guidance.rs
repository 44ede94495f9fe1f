//! Classifier-free guidance: the prediction is moved away from that for the negative prompt.

/// How predictions for the prompt and for the negative prompt become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// Guidance scale w: `ε_negative + w·(ε_prompt − ε_negative)` (arXiv 2207.12598). Up to 1 the negative prompt is
    /// not asked for, as in diffusers.
    pub scale: f64,
    /// φ of "Common diffusion noise schedules and sample steps are flawed" (arXiv 2305.08891, section 3.4): how far the
    /// guided prediction is brought back to the standard deviation of the prompt's. 0 leaves it.
    pub rescale: f64,
}

impl Guidance {
    /// Guidance of this scale, not rescaled.
    pub fn new(scale: f64) -> Self {
        Self { scale, rescale: 0.0 }
    }

    /// Whether the negative prompt is asked for.
    pub fn is_on(&self) -> bool {
        self.scale > 1.0
    }

    /// Puts the guided prediction of every sample into `prompt`. Both are (N,C,H,W) flat, `len` values a sample.
    pub fn combine(&self, negative: &[f32], prompt: &mut [f32], len: usize) {
        for (negative, prompt) in negative.chunks_exact(len).zip(prompt.chunks_exact_mut(len)) {
            let own = (self.rescale != 0.0).then(|| deviation(prompt));
            for (p, n) in prompt.iter_mut().zip(negative) {
                *p = n + self.scale as f32 * (*p - n);
            }
            if let Some(own) = own {
                let factor = self.rescale * own / deviation(prompt) + 1.0 - self.rescale;
                prompt
                    .iter_mut()
                    .for_each(|p| *p = (f64::from(*p) * factor) as f32);
            }
        }
    }
}

/// Standard deviation with n − 1, as PyTorch's `std`.
fn deviation(values: &[f32]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum();
    (squares / (n - 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guided_prediction_has_the_prompts_deviation_when_fully_rescaled() {
        let negative = [0.5f32, -1.0, 2.0, 0.0];
        let prompt = [1.0f32, -0.5, 1.0, 3.0];
        let combined = |guidance: Guidance| {
            let mut values = prompt;
            guidance.combine(&negative, &mut values, 4);
            values
        };
        assert_eq!(combined(Guidance::new(3.0)), [2.0, 0.5, -1.0, 9.0]);
        let whole = Guidance {
            scale: 3.0,
            rescale: 1.0,
        };
        assert!((deviation(&combined(whole)) - deviation(&prompt)).abs() < 1e-6);
    }
}
