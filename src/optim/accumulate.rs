//! Gradient accumulation: the gradient of a batch that is run in several micro-batches.

use std::sync::Arc;

use rayon::prelude::*;

use super::{CHUNK, Term};
use crate::params::{Layout, ParamSet};

/// The sum of the micro-batches' gradients, each with its share of the batch.
#[derive(Debug, Clone)]
pub struct GradientSum {
    sum: ParamSet,
    empty: bool,
}

impl GradientSum {
    /// No micro-batch yet.
    pub fn new(layout: &Arc<Layout>) -> Self {
        Self {
            sum: ParamSet::zeros(layout),
            empty: true,
        }
    }

    /// Starts the next batch.
    pub fn clear(&mut self) {
        self.empty = true;
    }

    /// Adds a micro-batch's gradient times the term's factor: the micro-batch's share of the batch, where its
    /// loss is a mean over its own samples.
    pub fn add(&mut self, term: &Term<'_>) {
        let layout = Arc::clone(self.sum.layout());
        let factor = term.factor();
        let first = std::mem::replace(&mut self.empty, false);
        let sums = layout.split_mut(self.sum.values_mut());
        assert_eq!(
            sums.len(),
            term.tensors().len(),
            "terms are made for the same layout"
        );
        sums.into_par_iter()
            .zip(term.tensors())
            .for_each(|(sum, gradient)| {
                sum.par_chunks_mut(CHUNK)
                    .zip(gradient.par_chunks(CHUNK))
                    .for_each(|(sum, gradient)| {
                        for (s, g) in sum.iter_mut().zip(gradient) {
                            *s = if first { factor * g } else { *s + factor * g };
                        }
                    });
            });
    }

    /// The batch's gradient.
    pub fn term(&self, factor: f32) -> Term<'_> {
        Term::from_set(&self.sum, factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Streams};

    fn set(seed: u64) -> ParamSet {
        let layout = Layout::new([("a".to_owned(), vec![CHUNK + 3]), ("b".to_owned(), vec![2, 2])]).unwrap();
        let mut set = ParamSet::zeros(&layout);
        Streams::new(seed)
            .named(Purpose::Noise, "gradient")
            .fill_normal(set.values_mut());
        set
    }

    #[test]
    fn shares_add_up_and_the_last_batch_is_forgotten() {
        let (x, y) = (set(1), set(2));
        let mut sum = GradientSum::new(x.layout());
        sum.add(&Term::from_set(&set(3), 1.0));
        sum.clear();
        sum.add(&Term::from_set(&x, 0.75));
        sum.add(&Term::from_set(&y, 0.25));
        let term = sum.term(1.0);
        let total = term.tensors().concat();
        for ((total, x), y) in total.iter().zip(x.values()).zip(y.values()) {
            assert_eq!(*total, 0.75 * x + 0.25 * y);
        }
    }
}
