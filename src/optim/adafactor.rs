//! Adafactor (Shazeer and Stern, arXiv 1804.04235) as the published SDXL recipe of Diffusion-DPO runs it: a given
//! learning rate, no momentum, no scaling by the parameters' size; the semantics are those of transformers.
//!
//! ```text
//! β ← 1 − t^(−0.8)             u ← g² + 10⁻³⁰
//! R ← β·R + (1−β)·mean over columns of u          C ← β·C + (1−β)·mean over rows of u
//! d ← g / √(R·C / mean R)      d ← d / max(1, RMS(d))
//! θ ← θ·(1 − lr·wd) − lr·d     ref ← blend(ref, θ, θ0)
//! ```
//!
//! The second moment of a matrix is kept as the means of its rows and columns, (rows + columns) numbers for
//! rows × columns. Tensors of more dimensions are stacks of matrices in their last two; vectors keep all of it in R.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Follow, Gradient};
use crate::Result;
use crate::config::optimizer::OptimizerConfig;
use crate::params::{Layout, ParamSet};

/// The paper's ε₁: keeps means of squares above 0.
const EPS: f64 = 1e-30;
/// Exponent by which the second moment's memory grows.
const DECAY: f64 = 0.8;
/// Root mean square above which an update is scaled down.
const CLIP_THRESHOLD: f64 = 1.0;

/// Adafactor and its second moments.
#[derive(Debug, Clone, PartialEq)]
pub struct Adafactor {
    weight_decay: f64,
    steps: u64,
    /// Means of rows; all values of vectors.
    rows: ParamSet,
    /// Means of columns; nothing of vectors.
    columns: ParamSet,
}

impl Adafactor {
    /// No steps taken, moments 0.
    pub fn new(config: &OptimizerConfig, layout: &Arc<Layout>) -> Self {
        let [rows, columns] = Self::moment_layouts(layout).map(|layout| ParamSet::zeros(&layout));
        Self {
            weight_decay: config.weight_decay,
            steps: 0,
            rows,
            columns,
        }
    }

    /// Layouts of the means of rows and of columns.
    pub(super) fn moment_layouts(layout: &Arc<Layout>) -> [Arc<Layout>; 2] {
        let of = |part: fn(&[usize]) -> Option<Vec<usize>>| {
            let tensors = layout.names().iter().enumerate();
            let kept = tensors.filter_map(|(i, name)| Some((name.clone(), part(layout.shape(i))?)));
            Layout::new(kept).expect("names of a layout differ")
        };
        let rows = of(|shape| match shape {
            [before @ .., _, _] => Some([before, &shape[before.len()..=before.len()]].concat()),
            vector => Some(vector.to_vec()),
        });
        let columns = of(|shape| match shape {
            [before @ .., _, columns] => Some([before, &[*columns]].concat()),
            _ => None,
        });
        [rows, columns]
    }

    /// Optimizer steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Means of rows and of columns, for a checkpoint.
    pub fn moments(&self) -> (&ParamSet, &ParamSet) {
        (&self.rows, &self.columns)
    }

    /// Goes on from a checkpoint; moments of other parameters are an error.
    pub fn restore(&mut self, steps: u64, rows: ParamSet, columns: ParamSet) -> Result<()> {
        super::check_moments(&self.rows, &rows)?;
        super::check_moments(&self.columns, &columns)?;
        (self.steps, self.rows, self.columns) = (steps, rows, columns);
        Ok(())
    }

    /// One step, as [`super::AdamW::step`].
    pub fn step(
        &mut self,
        policy: &mut ParamSet,
        gradient: &Gradient<'_>,
        clip_factor: f64,
        lr: f64,
        follow: Option<Follow<'_>>,
    ) {
        self.steps += 1;
        let beta = 1.0 - (self.steps as f64).powf(-DECAY);
        let layout = Arc::clone(policy.layout());
        let scaled = |factor: f32| (f64::from(factor) * clip_factor) as f32;
        let objective = scaled(gradient.objective.factor());
        let anchor = gradient.anchor.as_ref().map(|a| (a, scaled(a.factor())));
        let has_columns = |index: usize| layout.shape(index).len() >= 2;
        let (row_layout, column_layout) = (self.rows.layout().clone(), self.columns.layout().clone());
        let rows = row_layout.split_mut(self.rows.values_mut());
        let mut columns = column_layout.split_mut(self.columns.values_mut()).into_iter();
        let thetas = layout.split_mut(policy.values_mut());
        let tensors: Vec<Tensor<'_>> = (thetas.into_iter().zip(rows).enumerate())
            .map(|(index, (theta, rows))| Tensor {
                theta,
                rows,
                columns: has_columns(index).then(|| columns.next()).flatten(),
                width: layout.shape(index).last().copied().unwrap_or(1),
                height: layout.shape(index).iter().rev().nth(1).copied().unwrap_or(1),
                gradient: gradient.objective.tensors()[index],
                factor: objective,
                anchor: anchor.as_ref().map(|(a, factor)| (a.tensors()[index], *factor)),
            })
            .collect();
        let decay = (lr * self.weight_decay) as f32;
        tensors
            .into_par_iter()
            .for_each(|tensor| tensor.update(beta, lr, decay));
        if let Some(follow) = follow {
            follow.blend.apply(follow.reference, policy, follow.initial);
        }
    }
}

/// A parameter, its moments and its gradient.
struct Tensor<'a> {
    theta: &'a mut [f32],
    rows: &'a mut [f32],
    columns: Option<&'a mut [f32]>,
    /// Columns of each matrix.
    width: usize,
    /// Rows of each matrix.
    height: usize,
    gradient: &'a [f32],
    factor: f32,
    anchor: Option<(&'a [f32], f32)>,
}

impl Tensor<'_> {
    /// Three passes: the moments, the size of the update, the update. It is made anew rather than kept: reading the
    /// gradient twice is cheaper than writing as much memory.
    fn update(mut self, beta: f64, lr: f64, decay: f32) {
        if self.theta.is_empty() {
            return;
        }
        self.update_moments(beta);
        let scales = self.scales();
        let mut squares = 0.0;
        self.updates(&scales, |_, update| squares += f64::from(update).powi(2));
        let rms = (squares / self.gradient.len() as f64).sqrt();
        let step = (lr / (rms / CLIP_THRESHOLD).max(1.0)) as f32;
        let theta = std::mem::take(&mut self.theta);
        self.updates(&scales, |index, update| {
            theta[index] -= decay * theta[index];
            theta[index] -= step * update;
        });
    }

    /// Hands every value's update to `each`, before it is clipped.
    fn updates(&self, scales: &Scales, mut each: impl FnMut(usize, f32)) {
        for (row, of_row) in scales.rows.iter().enumerate() {
            let columns = match scales.columns.as_slice() {
                [] => &[1.0],
                columns => &columns[row / self.height * self.width..][..self.width],
            };
            for (column, of_column) in columns.iter().enumerate() {
                let index = row * columns.len() + column;
                each(index, self.gradient_at(index) * (of_row * of_column));
            }
        }
    }

    fn gradient_at(&self, index: usize) -> f32 {
        let anchor = self.anchor.map_or(0.0, |(values, factor)| factor * values[index]);
        self.factor * self.gradient[index] + anchor
    }

    fn update_moments(&mut self, beta: f64) {
        let square = |tensor: &Self, index: usize| f64::from(tensor.gradient_at(index)).powi(2) + EPS;
        let blend = |old: f32, new: f64| (beta * f64::from(old) + (1.0 - beta) * new) as f32;
        let Some(columns) = self.columns.take() else {
            for index in 0..self.rows.len() {
                self.rows[index] = blend(self.rows[index], square(self, index));
            }
            return;
        };
        let (height, width) = (self.height, self.width);
        for (matrix, columns) in columns.chunks_exact_mut(width).enumerate() {
            let mut sums = vec![0.0_f64; width];
            for row in matrix * height..(matrix + 1) * height {
                let mut sum = 0.0;
                for (column, below) in sums.iter_mut().enumerate() {
                    let square = square(self, row * width + column);
                    sum += square;
                    *below += square;
                }
                self.rows[row] = blend(self.rows[row], sum / width as f64);
            }
            for (old, sum) in columns.iter_mut().zip(sums) {
                *old = blend(*old, sum / height as f64);
            }
        }
        self.columns = Some(columns);
    }

    /// What gradients are multiplied by: the inverse root of the second moment.
    fn scales(&self) -> Scales {
        let inverse_root = |value: &f32| (1.0 / f64::from(*value).sqrt()) as f32;
        let Some(columns) = self.columns.as_deref() else {
            return Scales {
                rows: self.rows.iter().map(inverse_root).collect(),
                columns: Vec::new(),
            };
        };
        let of_matrix = |rows: &[f32]| {
            let mean = rows.iter().map(|r| f64::from(*r)).sum::<f64>() / rows.len() as f64;
            let scale = move |row: &f32| (mean / f64::from(*row)).sqrt() as f32;
            rows.iter().map(scale).collect::<Vec<_>>()
        };
        Scales {
            rows: self.rows.chunks_exact(self.height).flat_map(of_matrix).collect(),
            columns: columns.iter().map(inverse_root).collect(),
        }
    }
}

/// Factors by row and, for matrices, by column.
struct Scales {
    rows: Vec<f32>,
    columns: Vec<f32>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::optim::Term;
    use crate::reference::Blend;

    /// What `scripts/fixtures/adafactor.py` recorded of transformers.
    #[derive(Deserialize)]
    struct Recorded {
        shapes: BTreeMap<String, Vec<usize>>,
        runs: Vec<Run>,
    }

    #[derive(Deserialize)]
    struct Run {
        lr: f64,
        weight_decay: f64,
        initial: BTreeMap<String, Vec<f32>>,
        steps: Vec<Step>,
    }

    #[derive(Deserialize)]
    struct Step {
        gradient: BTreeMap<String, Vec<f32>>,
        policy: BTreeMap<String, Vec<f32>>,
    }

    fn recorded() -> Recorded {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/adafactor.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn filled(layout: &Arc<Layout>, values: &BTreeMap<String, Vec<f32>>) -> ParamSet {
        let mut set = ParamSet::zeros(layout);
        for (name, values) in values {
            let index = layout.index_of(name).unwrap();
            set.tensor_mut(index).copy_from_slice(values);
        }
        set
    }

    fn config(run: &Run) -> OptimizerConfig {
        OptimizerConfig {
            weight_decay: run.weight_decay,
            ..OptimizerConfig::default()
        }
    }

    #[test]
    fn steps_are_those_of_transformers() {
        let recorded = recorded();
        let layout = Layout::new(recorded.shapes).unwrap();
        for run in &recorded.runs {
            let mut policy = filled(&layout, &run.initial);
            let mut optimizer = Adafactor::new(&config(run), &layout);
            for (number, step) in run.steps.iter().enumerate() {
                let gradient = filled(&layout, &step.gradient);
                // Twice the values at half the factor: factors count.
                let gradient = Gradient::of(Term::from_set(&gradient, 0.5));
                optimizer.step(&mut policy, &gradient, 2.0, run.lr, None);
                let expected = filled(&layout, &step.policy);
                for ((name, ours), (_, theirs)) in policy.iter().zip(expected.iter()) {
                    for (ours, theirs) in ours.iter().zip(theirs) {
                        let near = (ours - theirs).abs() <= 2e-6 * theirs.abs().max(1.0);
                        assert!(near, "{name} after step {number}: {ours} instead of {theirs}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_matrix_keeps_the_sum_of_its_sides() {
        let layout = Layout::new([("w".to_owned(), vec![5, 2, 3, 7]), ("b".to_owned(), vec![4])]).unwrap();
        let (rows, columns) = (
            Adafactor::new(&OptimizerConfig::default(), &layout).rows,
            Adafactor::new(&OptimizerConfig::default(), &layout).columns,
        );
        assert_eq!(
            (rows.values().len(), columns.values().len()),
            (4 + 5 * 2 * 3, 5 * 2 * 7)
        );
    }

    #[test]
    fn a_restored_run_goes_on_bit_for_bit_and_the_reference_follows() {
        let recorded = recorded();
        let layout = Layout::new(recorded.shapes).unwrap();
        let run = &recorded.runs[0];
        let initial = filled(&layout, &run.initial);
        let (mut policy, mut reference) = (initial.clone(), initial.clone());
        let mut optimizer = Adafactor::new(&config(run), &layout);
        let mut resumed = None;
        for (number, step) in run.steps.iter().enumerate() {
            let gradient = filled(&layout, &step.gradient);
            let gradient = Gradient::of(Term::from_set(&gradient, 1.0));
            if number == 3 {
                let (rows, columns) = optimizer.moments();
                let mut other = Adafactor::new(&config(run), &layout);
                assert!(other.restore(3, columns.clone(), rows.clone()).is_err());
                other
                    .restore(optimizer.steps(), rows.clone(), columns.clone())
                    .unwrap();
                resumed = Some((other, policy.clone()));
            }
            let follow = Follow {
                reference: &mut reference,
                initial: &initial,
                blend: Blend::new(1.0, 0.0),
            };
            optimizer.step(&mut policy, &gradient, 1.0, run.lr, Some(follow));
            assert_eq!(reference, policy);
            if let Some((optimizer, policy)) = &mut resumed {
                optimizer.step(policy, &gradient, 1.0, run.lr, None);
            }
        }
        assert_eq!(resumed.unwrap(), (optimizer, policy));
    }
}
