//! The gradient of one optimizer step, its norms, and clipping.

use rayon::prelude::*;

use super::CHUNK;
use crate::params::{Layout, ParamSet};
use crate::{Error, Result};

/// Partial sums that the compiler computes side by side.
const LANES: usize = 8;

/// One term of a gradient: a tensor per parameter, in the layout's order, and a common factor.
#[derive(Debug, Clone)]
pub struct Term<'a> {
    tensors: Vec<&'a [f32]>,
    factor: f32,
}

impl<'a> Term<'a> {
    /// Looks up each parameter's gradient by the parameter's name; a missing one or one of another size is an error.
    pub fn by_name(
        layout: &Layout,
        factor: f32,
        mut gradient: impl FnMut(&str) -> Option<&'a [f32]>,
    ) -> Result<Self> {
        let find = |(index, name): (usize, &String)| {
            let len = layout.range(index).len();
            gradient(name)
                .filter(|values| values.len() == len)
                .ok_or_else(|| {
                    Error::bad(
                        name,
                        format!("has no gradient of {len} values in the training graph"),
                        "Derive the graph again for these trainable tensors.",
                    )
                })
        };
        let tensors = layout
            .names()
            .iter()
            .enumerate()
            .map(find)
            .collect::<Result<_>>()?;
        Ok(Self { tensors, factor })
    }

    /// The gradient that lies in a set.
    pub fn from_set(set: &'a ParamSet, factor: f32) -> Self {
        Self {
            tensors: set.iter().map(|(_, values)| values).collect(),
            factor,
        }
    }

    /// A slice per parameter.
    pub fn tensors(&self) -> &[&'a [f32]] {
        &self.tensors
    }

    /// What every value is multiplied by.
    pub fn factor(&self) -> f32 {
        self.factor
    }
}

/// The gradient of one optimizer step: the objective's, and where the `kl` anchor is on, the anchor's with
/// factor λ₁. The two are added while they are used, never in memory.
#[derive(Debug, Clone)]
pub struct Gradient<'a> {
    /// Gradient of the objective.
    pub objective: Term<'a>,
    /// Gradient of the anchor's loss with respect to the next reference, handed to the policy.
    pub anchor: Option<Term<'a>>,
}

/// Global norms of a gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct GradientNorms {
    /// Norm of the sum of all terms; the one that clipping looks at.
    pub total: f64,
    /// Norm of the objective's term.
    pub objective: f64,
    /// Norm of the anchor's term, λ₁ included.
    pub anchor: Option<f64>,
    /// Index of the first parameter whose gradient holds a value that is not finite.
    pub non_finite: Option<usize>,
}

impl GradientNorms {
    /// The anchor's norm as a share of the objective's; `None` without an anchor.
    pub fn anchor_ratio(&self) -> Option<f64> {
        self.anchor.map(|anchor| anchor / self.objective)
    }
}

/// Inner products of one parameter's gradient terms.
#[derive(Debug, Clone, Copy, Default)]
struct Products {
    objective: f64,
    anchor: f64,
    mixed: f64,
}

impl Products {
    fn plus(self, other: Self) -> Self {
        Self {
            objective: self.objective + other.objective,
            anchor: self.anchor + other.anchor,
            mixed: self.mixed + other.mixed,
        }
    }

    /// Squared norm of the sum of the terms. Rounding must not make it negative, and NaN must stay NaN.
    fn total(self) -> f64 {
        let total = self.objective + self.anchor + 2.0 * self.mixed;
        if total < 0.0 { 0.0 } else { total }
    }
}

impl<'a> Gradient<'a> {
    /// The gradient of an objective without anchor.
    pub fn of(objective: Term<'a>) -> Self {
        Self {
            objective,
            anchor: None,
        }
    }

    /// One pass over the gradient: norms, accumulated in f64 in a fixed order whatever the number of threads,
    /// and whether every value is finite (a sum of squares is finite exactly if all values are).
    pub fn norms(&self) -> GradientNorms {
        let parameters = self.objective.tensors.len();
        let per_parameter: Vec<Products> = (0..parameters)
            .into_par_iter()
            .map(|index| self.products(index))
            .collect();
        let sum = per_parameter
            .iter()
            .copied()
            .fold(Products::default(), Products::plus);
        GradientNorms {
            total: sum.total().sqrt(),
            objective: sum.objective.sqrt(),
            anchor: self.anchor.as_ref().map(|_| sum.anchor.sqrt()),
            non_finite: per_parameter
                .iter()
                .position(|products| !products.total().is_finite()),
        }
    }

    fn products(&self, index: usize) -> Products {
        let f = f64::from(self.objective.factor);
        let objective = self.objective.tensors[index].par_chunks(CHUNK);
        // Collected before they are added, so that the order of the sum is that of the chunks.
        let chunks: Vec<Products> = match &self.anchor {
            None => objective
                .map(|g| Products {
                    objective: f * f * dot(g, g),
                    ..Products::default()
                })
                .collect(),
            Some(anchor) => {
                let a = f64::from(anchor.factor);
                let chunks = objective.zip(anchor.tensors[index].par_chunks(CHUNK));
                let products = |(g, h): (&[f32], &[f32])| Products {
                    objective: f * f * dot(g, g),
                    anchor: a * a * dot(h, h),
                    mixed: f * a * dot(g, h),
                };
                chunks.map(products).collect()
            }
        };
        chunks.into_iter().fold(Products::default(), Products::plus)
    }
}

/// Σ x·y in f64, in [`LANES`] interleaved partial sums.
fn dot(x: &[f32], y: &[f32]) -> f64 {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    let mut add = |x: &[f32], y: &[f32]| {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f64::from(*x) * f64::from(*y);
        }
    };
    x.iter().zip(y).for_each(|(x, y)| add(x, y));
    add(x_rest, y_rest);
    lanes.iter().sum()
}

/// The factor that brings a gradient of this norm down to `max_norm`; 1 where it is smaller, or without a
/// limit. PyTorch's `clip_grad_norm_`.
pub fn clip_factor(norm: f64, max_norm: Option<f64>) -> f64 {
    max_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Streams};

    fn random(name: &str) -> ParamSet {
        let layout = Layout::new([
            ("a".to_owned(), vec![3, 70_001]),
            ("b".to_owned(), vec![7]),
            ("c".to_owned(), vec![]),
        ]);
        let mut set = ParamSet::zeros(&layout.unwrap());
        Streams::new(4)
            .named(Purpose::Noise, name)
            .fill_normal(set.values_mut());
        set
    }

    fn norm(values: impl Iterator<Item = f64>) -> f64 {
        values.map(|x| x * x).sum::<f64>().sqrt()
    }

    #[test]
    fn norms_are_those_of_the_parts_and_of_the_sum() {
        let (g, h) = (random("g"), random("h"));
        let gradient = Gradient {
            objective: Term::from_set(&g, 0.5),
            anchor: Some(Term::from_set(&h, 0.2)),
        };
        let norms = gradient.norms();
        let f64s = |set: &ParamSet| set.values().iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (g, h) = (f64s(&g), f64s(&h));
        let close = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-7, "{a} {b}");
        close(norms.objective, 0.5 * norm(g.iter().copied()));
        close(norms.anchor.unwrap(), 0.2 * norm(h.iter().copied()));
        close(
            norms.total,
            norm(g.iter().zip(&h).map(|(g, h)| 0.5 * g + 0.2 * h)),
        );
        close(
            norms.anchor_ratio().unwrap(),
            norms.anchor.unwrap() / norms.objective,
        );
        assert_eq!(norms.non_finite, None);
    }

    #[test]
    fn threads_do_not_change_a_bit_of_the_norm() {
        let (g, h) = (random("g"), random("h"));
        let norms: Vec<_> = [1, 2, 3, 8]
            .iter()
            .map(|&threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                let gradient = Gradient {
                    objective: Term::from_set(&g, 0.5),
                    anchor: Some(Term::from_set(&h, 0.2)),
                };
                let norms = pool.install(|| gradient.norms());
                (
                    norms.total.to_bits(),
                    norms.objective.to_bits(),
                    norms.anchor.unwrap().to_bits(),
                )
            })
            .collect();
        assert!(norms.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn a_value_that_is_not_finite_is_found_in_either_term() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut g, mut h) = (random("g"), random("h"));
            h.tensor_mut(2)[0] = bad;
            let both = |g: &ParamSet, h: &ParamSet| {
                let gradient = Gradient {
                    objective: Term::from_set(g, 1.0),
                    anchor: Some(Term::from_set(h, 1.0)),
                };
                gradient.norms().non_finite
            };
            assert_eq!(both(&g, &h), Some(2));
            g.tensor_mut(0)[100_000] = bad;
            assert_eq!(both(&g, &h), Some(0));
            assert_eq!(Gradient::of(Term::from_set(&g, 1.0)).norms().non_finite, Some(0));
        }
        let mut large = random("g");
        large.values_mut().fill(f32::MAX);
        assert_eq!(Gradient::of(Term::from_set(&large, 1.0)).norms().non_finite, None);
    }

    #[test]
    fn gradients_are_found_by_name_and_size() {
        let set = random("g");
        let layout = set.layout();
        let term = Term::by_name(layout, 1.0, |name| {
            Some(set.tensor(layout.index_of(name).unwrap()))
        })
        .unwrap();
        assert_eq!(term.tensors()[1], set.tensor(1));
        for wrong in [None, Some(&set.values()[..3])] {
            let error = Term::by_name(layout, 1.0, |_| wrong).unwrap_err().to_string();
            assert!(
                error.starts_with("a: has no gradient of 210003 values"),
                "{error}"
            );
        }
    }

    #[test]
    fn small_gradients_are_not_clipped() {
        assert_eq!(clip_factor(0.5, Some(1.0)), 1.0);
        assert_eq!(clip_factor(100.0, None), 1.0);
        assert!((clip_factor(4.0, Some(1.0)) - 0.25).abs() < 1e-6);
    }
}
