//! Whether scores agree with the labels.

use super::{Candidate, PreferencePair};
use crate::stats::WinRate;

/// How often a score ranks the preferred picture of a decided pair above the other one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// In pairs that training sees.
    pub train: WinRate,
    /// In held-out pairs.
    pub held_out: WinRate,
}

/// Agreement of score number `score` with the labels of `pairs`; ties of the labels do not count.
pub fn agreement(candidates: &[Candidate], pairs: &[PreferencePair], score: usize) -> Agreement {
    let of = |held_out: bool| {
        let decided = pairs
            .iter()
            .filter(|pair| pair.held_out == held_out && pair.label != 0.5);
        let ranked = decided.map(|pair| {
            let [first, second] = pair.images.map(|image| candidates[image].scores[score]);
            if pair.label == 1.0 {
                (first, second)
            } else {
                (second, first)
            }
        });
        let (preferred, other): (Vec<f64>, Vec<f64>) = ranked.unzip();
        WinRate::of(&preferred, &other)
    };
    Agreement {
        train: of(false),
        held_out: of(true),
    }
}
