//! AdamW (arXiv 1711.05101) with PyTorch's semantics, and the reference's update in the same pass.
//!
//! ```text
//! θ ← θ·(1 − lr·wd)
//! m ← β₁·m + (1−β₁)·g          v ← β₂·v + (1−β₂)·g²
//! θ ← θ − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε)
//! ref ← blend(ref, θ, θ0)
//! ```
//!
//! The step is bound by memory, so every buffer is read and written once: blocks that fit the first-level
//! cache go through AdamW and then through the reference's update. Nothing is allocated per value.

use std::sync::Arc;

use rayon::prelude::*;

use super::{CHUNK, Gradient, Term};
use crate::Result;
use crate::config::optimizer::OptimizerConfig;
use crate::params::{Layout, ParamSet};
use crate::reference::{Blend, lerp};

/// Values per block: six buffers of 4 KiB stay in a first-level cache.
const BLOCK: usize = 1 << 10;

/// AdamW and its moments.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    steps: u64,
    first_moment: ParamSet,
    second_moment: ParamSet,
}

/// A reference that moves in the same pass as the policy.
#[derive(Debug)]
pub struct Follow<'a> {
    /// The reference.
    pub reference: &'a mut ParamSet,
    /// The initial policy; read only where the blend pulls.
    pub initial: &'a ParamSet,
    /// How the reference moves.
    pub blend: Blend,
}

impl AdamW {
    /// No steps taken, moments 0.
    pub fn new(config: &OptimizerConfig, layout: &Arc<Layout>) -> Self {
        Self {
            betas: config.betas,
            eps: config.eps,
            weight_decay: config.weight_decay,
            steps: 0,
            first_moment: ParamSet::zeros(layout),
            second_moment: ParamSet::zeros(layout),
        }
    }

    /// Optimizer steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// First and second moment, for a checkpoint.
    pub fn moments(&self) -> (&ParamSet, &ParamSet) {
        (&self.first_moment, &self.second_moment)
    }

    /// First and second moment, to be brought up to date.
    pub(crate) fn moments_mut(&mut self) -> (&mut ParamSet, &mut ParamSet) {
        (&mut self.first_moment, &mut self.second_moment)
    }

    /// Goes on from a checkpoint; moments of other parameters are an error.
    pub fn restore(&mut self, steps: u64, first_moment: ParamSet, second_moment: ParamSet) -> Result<()> {
        super::check_moments(&self.first_moment, &first_moment)?;
        super::check_moments(&self.second_moment, &second_moment)?;
        (self.steps, self.first_moment, self.second_moment) = (steps, first_moment, second_moment);
        Ok(())
    }

    /// One step: the gradient times `clip_factor` moves the policy at learning rate `lr`, and the reference
    /// follows where one is given.
    pub fn step(
        &mut self,
        policy: &mut ParamSet,
        gradient: &Gradient<'_>,
        clip_factor: f64,
        lr: f64,
        follow: Option<Follow<'_>>,
    ) {
        policy.assert_same_layout(&self.first_moment);
        let anchor = gradient.anchor.as_ref().map(Term::factor);
        let coefficients = self.next(gradient.objective.factor(), anchor, clip_factor, lr);
        let blend = follow.as_ref().map(|follow| follow.blend);
        let lanes = self.lanes(policy, gradient, follow);
        lanes
            .into_par_iter()
            .for_each(|lane| lane.run(&coefficients, blend));
    }

    /// Begins the next step, whose gradient is that of the objective and of the anchor, if there is one, times these factors.
    pub(crate) fn next(
        &mut self,
        objective: f32,
        anchor: Option<f32>,
        clip_factor: f64,
        lr: f64,
    ) -> Coefficients {
        self.steps += 1;
        let [beta1, beta2] = self.betas;
        // The correction is 0 to machine precision long before the exponent leaves i32.
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let scaled = |factor: f32| (f64::from(factor) * clip_factor) as f32;
        Coefficients {
            objective: scaled(objective),
            anchor: anchor.map_or(0.0, scaled),
            shrink: (1.0 - lr * self.weight_decay) as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            step_size: (lr / (1.0 - beta1.powi(steps))) as f32,
            second_correction: (1.0 - beta2.powi(steps)).sqrt() as f32,
            eps: self.eps as f32,
        }
    }

    /// All buffers, cut into one lane per parameter.
    fn lanes<'a>(
        &'a mut self,
        policy: &'a mut ParamSet,
        gradient: &Gradient<'a>,
        follow: Option<Follow<'a>>,
    ) -> Vec<Lane<'a>> {
        let layout = Arc::clone(policy.layout());
        let mut references = vec![];
        let mut initials: Option<&'a ParamSet> = None;
        if let Some(Follow {
            reference,
            initial,
            blend,
        }) = follow
        {
            reference.assert_same_layout(&self.first_moment);
            initial.assert_same_layout(&self.first_moment);
            references = layout.split_mut(reference.values_mut());
            initials = blend.pulls().then_some(initial);
        }
        let mut references = references.into_iter();
        let thetas = layout.split_mut(policy.values_mut()).into_iter();
        let moments = layout
            .split_mut(self.first_moment.values_mut())
            .into_iter()
            .zip(layout.split_mut(self.second_moment.values_mut()));
        let lane = |(index, (theta, (m, v)))| Lane {
            theta,
            m,
            v,
            gradient: gradient.objective.tensors()[index],
            anchor: gradient.anchor.as_ref().map(|anchor| anchor.tensors()[index]),
            reference: references.next(),
            initial: initials.map(|initial| initial.tensor(index)),
        };
        thetas.zip(moments).enumerate().map(lane).collect()
    }
}

/// The scalars of one step, computed in f64.
#[derive(Debug)]
pub(crate) struct Coefficients {
    /// Factor on the objective's gradient.
    pub objective: f32,
    /// Factor on the anchor's.
    pub anchor: f32,
    /// What weight decay leaves.
    pub shrink: f32,
    /// 1 − β₁.
    pub one_minus_beta1: f32,
    /// β₂.
    pub beta2: f32,
    /// 1 − β₂.
    pub one_minus_beta2: f32,
    /// Learning rate over the first moment's correction.
    pub step_size: f32,
    /// Root of the second moment's correction.
    pub second_correction: f32,
    /// ε.
    pub eps: f32,
}

impl Coefficients {
    /// The numbers by their names in [`crate::device::graphs::adamw`], which knows no anchor.
    pub(crate) fn named(&self) -> [(&'static str, f32); 8] {
        [
            ("factor", self.objective),
            ("shrink", self.shrink),
            ("one_minus_beta1", self.one_minus_beta1),
            ("beta2", self.beta2),
            ("one_minus_beta2", self.one_minus_beta2),
            ("step_size", self.step_size),
            ("second_correction", self.second_correction),
            ("eps", self.eps),
        ]
    }
}

/// The same range of every buffer that a step touches.
struct Lane<'a> {
    theta: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    gradient: &'a [f32],
    anchor: Option<&'a [f32]>,
    reference: Option<&'a mut [f32]>,
    initial: Option<&'a [f32]>,
}

impl<'a> Lane<'a> {
    /// Splits long lanes over the threads and goes through short ones block by block.
    fn run(self, coefficients: &Coefficients, blend: Option<Blend>) {
        if self.theta.len() > CHUNK {
            let middle = (self.theta.len() / 2).next_multiple_of(BLOCK);
            let (left, right) = self.split_at(middle);
            rayon::join(
                || left.run(coefficients, blend),
                || right.run(coefficients, blend),
            );
            return;
        }
        let mut rest = self;
        while rest.theta.len() > BLOCK {
            let (block, tail) = rest.split_at(BLOCK);
            block.update(coefficients, blend);
            rest = tail;
        }
        rest.update(coefficients, blend);
    }

    fn split_at(self, middle: usize) -> (Self, Self) {
        let (theta, theta_rest) = self.theta.split_at_mut(middle);
        let (m, m_rest) = self.m.split_at_mut(middle);
        let (v, v_rest) = self.v.split_at_mut(middle);
        let (gradient, gradient_rest) = self.gradient.split_at(middle);
        let (anchor, anchor_rest) = self.anchor.map(|s| s.split_at(middle)).unzip();
        let (reference, reference_rest) = self.reference.map(|s| s.split_at_mut(middle)).unzip();
        let (initial, initial_rest) = self.initial.map(|s| s.split_at(middle)).unzip();
        (
            Self {
                theta,
                m,
                v,
                gradient,
                anchor,
                reference,
                initial,
            },
            Self {
                theta: theta_rest,
                m: m_rest,
                v: v_rest,
                gradient: gradient_rest,
                anchor: anchor_rest,
                reference: reference_rest,
                initial: initial_rest,
            },
        )
    }

    fn update(self, c: &Coefficients, blend: Option<Blend>) {
        match self.anchor {
            None => {
                let gradient = self.gradient.iter().map(|g| c.objective * g);
                adamw(c, self.theta, self.m, self.v, gradient);
            }
            Some(anchor) => {
                let gradient = self
                    .gradient
                    .iter()
                    .zip(anchor)
                    .map(|(g, h)| c.objective * g + c.anchor * h);
                adamw(c, self.theta, self.m, self.v, gradient);
            }
        }
        if let (Some(reference), Some(blend)) = (self.reference, blend) {
            blend.apply_block(reference, self.theta, self.initial);
        }
    }
}

/// AdamW on one block, in the order of operations of PyTorch's single-tensor implementation.
fn adamw(
    c: &Coefficients,
    theta: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    gradient: impl Iterator<Item = f32>,
) {
    for (((theta, m), v), g) in theta.iter_mut().zip(m).zip(v).zip(gradient) {
        *m = lerp(*m, g, c.one_minus_beta1);
        *v = *v * c.beta2 + c.one_minus_beta2 * g * g;
        let denominator = v.sqrt() / c.second_correction + c.eps;
        *theta = *theta * c.shrink - c.step_size * *m / denominator;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::Term;
    use crate::rng::{Purpose, Streams};

    struct Run {
        adamw: AdamW,
        policy: ParamSet,
        reference: ParamSet,
        initial: ParamSet,
    }

    fn random(name: &str) -> ParamSet {
        let layout = Layout::new([
            ("a".to_owned(), vec![3 * CHUNK + 17]),
            ("b".to_owned(), vec![BLOCK + 1]),
            ("c".to_owned(), vec![3]),
        ]);
        let mut set = ParamSet::zeros(&layout.unwrap());
        Streams::new(6)
            .named(Purpose::Noise, name)
            .fill_normal(set.values_mut());
        set
    }

    fn start() -> Run {
        let initial = random("initial");
        // An eps far above rounding: among 50,000 random gradients some nearly cancel, and their sign decides.
        let config = OptimizerConfig {
            eps: 1e-2,
            ..OptimizerConfig::default()
        };
        Run {
            adamw: AdamW::new(&config, initial.layout()),
            policy: initial.clone(),
            reference: initial.clone(),
            initial,
        }
    }

    /// Steps with an anchor's gradient and a reference that follows and is pulled.
    fn train(run: &mut Run, steps: std::ops::Range<u64>) {
        for step in steps {
            let (g, h) = (random(&format!("g{step}")), random(&format!("h{step}")));
            let gradient = Gradient {
                objective: Term::from_set(&g, 1.0),
                anchor: Some(Term::from_set(&h, 0.1)),
            };
            let follow = Follow {
                reference: &mut run.reference,
                initial: &run.initial,
                blend: Blend::new(0.1, 0.2),
            };
            run.adamw
                .step(&mut run.policy, &gradient, 0.7, 1e-2, Some(follow));
        }
    }

    /// The same step written out in f64, one value at a time.
    #[test]
    fn one_fused_pass_equals_its_parts() {
        let mut run = start();
        let n = run.initial.values().len();
        let initial: Vec<f64> = run.initial.values().iter().map(|&x| f64::from(x)).collect();
        let (mut theta, mut reference) = (initial.clone(), initial.clone());
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        for step in 0..3 {
            let (g, h) = (random(&format!("g{step}")), random(&format!("h{step}")));
            for i in 0..n {
                let g = 0.7 * (f64::from(g.values()[i]) + 0.1 * f64::from(h.values()[i]));
                theta[i] *= 1.0 - 1e-2 * 0.01;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let (m_hat, v_hat) = (
                    m[i] / (1.0 - 0.9f64.powi(step + 1)),
                    v[i] / (1.0 - 0.999f64.powi(step + 1)),
                );
                theta[i] -= 1e-2 * m_hat / (v_hat.sqrt() + 1e-2);
                let lambda = 0.1 * 0.2 / 0.8;
                reference[i] = (0.9 * reference[i] + 0.1 * theta[i] + lambda * initial[i]) / (1.0 + lambda);
            }
        }
        train(&mut run, 0..3);
        for (fused, expected) in [(&run.policy, &theta), (&run.reference, &reference)] {
            for (x, y) in fused.values().iter().zip(expected) {
                assert!((f64::from(*x) - y).abs() < 2e-6, "{x} {y}");
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let runs: Vec<Run> = [1, 2, 7]
            .iter()
            .map(|&threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                let mut run = start();
                pool.install(|| train(&mut run, 0..3));
                run
            })
            .collect();
        for run in &runs[1..] {
            assert_eq!(run.policy, runs[0].policy);
            assert_eq!(run.reference, runs[0].reference);
            assert_eq!(run.adamw, runs[0].adamw);
        }
    }

    #[test]
    fn a_checkpoint_goes_on_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut straight = start();
        train(&mut straight, 0..2);
        let (m, v) = straight.adamw.moments();
        let sets = [
            ("policy", &straight.policy),
            ("reference", &straight.reference),
            ("m", m),
            ("v", v),
        ];
        for (name, set) in sets {
            set.save(&path(name)).unwrap();
        }

        let mut resumed = start();
        let load = |name: &str| ParamSet::load(&path(name), straight.policy.layout()).unwrap();
        (resumed.policy, resumed.reference) = (load("policy"), load("reference"));
        resumed
            .adamw
            .restore(straight.adamw.steps(), load("m"), load("v"))
            .unwrap();
        train(&mut straight, 2..4);
        train(&mut resumed, 2..4);
        assert_eq!(resumed.policy, straight.policy);
        assert_eq!(resumed.reference, straight.reference);
        assert_eq!(resumed.adamw, straight.adamw);
    }

    #[test]
    fn moments_of_another_model_are_refused() {
        let mut run = start();
        let other = ParamSet::zeros(&Layout::new([("z".to_owned(), vec![1])]).unwrap());
        assert!(run.adamw.restore(1, other.clone(), other).is_err());
    }

    #[test]
    fn a_reference_that_does_not_follow_stays() {
        let mut run = start();
        let g = random("g");
        run.adamw.step(
            &mut run.policy,
            &Gradient::of(Term::from_set(&g, 1.0)),
            1.0,
            1e-2,
            None,
        );
        assert_eq!(run.reference, run.initial);
        assert_ne!(run.policy, run.initial);
    }
}
