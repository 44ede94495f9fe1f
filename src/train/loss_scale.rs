//! The scale of the loss where gradients are of half precision, as in torch.amp.GradScaler: doubled after 2,000 steps without
//! an overflow, halved by each. A step that overflows is skipped.

use serde::{Deserialize, Serialize};

/// Steps without an overflow after which the scale is doubled.
const GROWTH_INTERVAL: u32 = 2000;
/// Overflows in a row that end a run: by then the scale is a millionth of what it was.
const HOPELESS: u32 = 20;
/// The largest scale: beyond, the scale itself is near the end of f32.
const LARGEST: f32 = 16_777_216.0;

/// See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// What gradients are multiplied by on their way.
    pub scale: f32,
    /// Steps since the last change.
    good_steps: u32,
    /// Overflows since the last good step.
    overflows: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        Self {
            scale: 65_536.0,
            good_steps: 0,
            overflows: 0,
        }
    }
}

impl LossScale {
    /// A step had finite gradients.
    pub fn succeeded(&mut self) {
        self.overflows = 0;
        self.good_steps += 1;
        if self.good_steps == GROWTH_INTERVAL {
            self.good_steps = 0;
            self.scale = (2.0 * self.scale).min(LARGEST);
        }
    }

    /// Overflows since the last good step.
    pub fn overflows(&self) -> u32 {
        self.overflows
    }

    /// A step overflowed. Returns whether there is hope: fewer than 20 have in a row.
    pub fn overflowed(&mut self) -> bool {
        self.good_steps = 0;
        self.overflows += 1;
        self.scale *= 0.5;
        self.overflows < HOPELESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_falls_at_once_and_rises_slowly() {
        let mut scale = LossScale::default();
        assert!(scale.overflowed() && scale.overflowed());
        assert_eq!(scale.scale, 16_384.0);
        (0..GROWTH_INTERVAL - 1).for_each(|_| scale.succeeded());
        assert_eq!(scale.scale, 16_384.0);
        scale.succeeded();
        assert_eq!(scale.scale, 32_768.0);
        (0..100 * GROWTH_INTERVAL).for_each(|_| scale.succeeded());
        assert_eq!(scale.scale, LARGEST);
    }

    #[test]
    fn twenty_overflows_in_a_row_are_hopeless() {
        let mut scale = LossScale::default();
        assert!((0..19).all(|_| scale.overflowed()));
        scale.succeeded();
        assert!((0..19).all(|_| scale.overflowed()));
        assert!(!scale.overflowed());
    }
}
