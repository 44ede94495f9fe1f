//! How one update moves the reference: towards the policy, and, with the `pull` anchor, back towards the
//! initial policy.

use rayon::prelude::*;

use crate::params::ParamSet;

/// Values per parallel task.
const CHUNK: usize = 1 << 14;

/// `r_new = (1−α)·ref + α·θ`, then `ref ← (r_new + λ₁·θ0)/(1+λ₁)`.
///
/// With `λ₁ = α·s/(1−s)` the second part is the minimiser of `½‖r − r_new‖² + ½λ₁‖r − θ0‖²`, and a policy
/// that stays put draws the reference to `(1−s)·θ + s·θ0`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Blend {
    policy: f32,
    initial: f32,
}

impl Blend {
    /// Mixes in a share `alpha` of the policy, and pulls with strength `s` towards the initial policy.
    pub fn new(alpha: f64, strength: f64) -> Self {
        let lambda = alpha * strength / (1.0 - strength);
        Self {
            policy: alpha as f32,
            initial: (lambda / (1.0 + lambda)) as f32,
        }
    }

    /// Whether the initial policy takes part.
    pub fn pulls(&self) -> bool {
        self.initial > 0.0
    }

    /// Shares of the policy, mixed in first, and of the initial policy.
    pub(crate) fn shares(&self) -> [f32; 2] {
        [self.policy, self.initial]
    }

    /// Moves one block of the reference. `initial` may be left out where nothing pulls.
    pub(crate) fn apply_block(&self, reference: &mut [f32], policy: &[f32], initial: Option<&[f32]>) {
        for (r, theta) in reference.iter_mut().zip(policy) {
            *r = lerp(*r, *theta, self.policy);
        }
        if let Some(initial) = initial {
            for (r, theta0) in reference.iter_mut().zip(initial) {
                *r = lerp(*r, *theta0, self.initial);
            }
        }
    }

    /// Moves the reference.
    pub(crate) fn apply(&self, reference: &mut ParamSet, policy: &ParamSet, initial: &ParamSet) {
        reference.assert_same_layout(policy);
        reference.assert_same_layout(initial);
        let sources = policy.values().par_chunks(CHUNK);
        let sources = sources.zip(initial.values().par_chunks(CHUNK));
        reference
            .values_mut()
            .par_chunks_mut(CHUNK)
            .zip(sources)
            .for_each(|(out, (theta, theta0))| {
                self.apply_block(out, theta, self.pulls().then_some(theta0));
            });
    }

    /// Writes into `candidate` what this update makes of `reference`, which stays as it is.
    pub fn candidate(
        &self,
        reference: &ParamSet,
        policy: &ParamSet,
        initial: &ParamSet,
        candidate: &mut ParamSet,
    ) {
        reference.assert_same_layout(policy);
        reference.assert_same_layout(initial);
        reference.assert_same_layout(candidate);
        let sources = reference
            .values()
            .par_chunks(CHUNK)
            .zip(policy.values().par_chunks(CHUNK));
        let sources = sources.zip(initial.values().par_chunks(CHUNK));
        candidate
            .values_mut()
            .par_chunks_mut(CHUNK)
            .zip(sources)
            .for_each(|(out, ((r, theta), theta0))| {
                out.copy_from_slice(r);
                self.apply_block(out, theta, self.pulls().then_some(theta0));
            });
    }
}

/// `(1−weight)·a + weight·b`, exact at both ends and where a = b: a copy is a copy bit for bit, and a
/// reference that has arrived stays. PyTorch's `lerp` is the same function.
pub(crate) fn lerp(a: f32, b: f32, weight: f32) -> f32 {
    if weight < 0.5 {
        a + weight * (b - a)
    } else {
        b - (b - a) * (1.0 - weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Layout;
    use crate::rng::{Purpose, Streams};

    fn random(name: &str) -> ParamSet {
        let layout = Layout::new([("w".to_owned(), vec![40_000])]).unwrap();
        let mut set = ParamSet::zeros(&layout);
        Streams::new(1)
            .named(Purpose::Noise, name)
            .fill_normal(set.values_mut());
        set
    }

    fn moved(blend: Blend) -> [ParamSet; 4] {
        let (reference, policy, initial) = (random("ref"), random("policy"), random("initial"));
        let mut candidate = ParamSet::zeros(reference.layout());
        blend.candidate(&reference, &policy, &initial, &mut candidate);
        [candidate, reference, policy, initial]
    }

    #[test]
    fn an_average_mixes_in_its_share() {
        for alpha in [0.01, 0.3, 0.5, 0.9] {
            let [candidate, reference, policy, _] = moved(Blend::new(alpha, 0.0));
            for ((c, r), theta) in candidate
                .values()
                .iter()
                .zip(reference.values())
                .zip(policy.values())
            {
                let expected = (1.0 - alpha) * f64::from(*r) + alpha * f64::from(*theta);
                assert!((f64::from(*c) - expected).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn a_copy_is_the_policy_bit_for_bit() {
        let [candidate, _, policy, _] = moved(Blend::new(1.0, 0.0));
        assert_eq!(candidate, policy);
    }

    /// Golden-section search over each coordinate of the objective that `pull` minimises.
    #[test]
    fn a_pull_minimises_its_objective() {
        for (alpha, strength) in [(0.01, 0.1), (0.2, 0.5), (1.0, 0.3), (0.5, 0.9)] {
            let [candidate, reference, policy, initial] = moved(Blend::new(alpha, strength));
            let lambda = alpha * strength / (1.0 - strength);
            for i in 0..20 {
                let of = |set: &ParamSet| f64::from(set.values()[i]);
                let r_new = (1.0 - alpha) * of(&reference) + alpha * of(&policy);
                let objective =
                    |r: f64| 0.5 * (r - r_new).powi(2) + 0.5 * lambda * (r - of(&initial)).powi(2);
                let (mut low, mut high) = (-10.0, 10.0);
                while high - low > 1e-9 {
                    let (a, b) = (low + 0.382 * (high - low), low + 0.618 * (high - low));
                    if objective(a) < objective(b) {
                        high = b
                    } else {
                        low = a
                    }
                }
                assert!((of(&candidate) - low).abs() < 1e-6, "{} {low}", of(&candidate));
            }
        }
    }

    #[test]
    fn a_pulled_reference_comes_to_rest_between_policy_and_initial() {
        let (mut reference, policy, initial) = (random("ref"), random("policy"), random("initial"));
        let blend = Blend::new(0.05, 0.3);
        for _ in 0..800 {
            blend.apply_block(reference.values_mut(), policy.values(), Some(initial.values()));
        }
        for ((r, theta), theta0) in reference
            .values()
            .iter()
            .zip(policy.values())
            .zip(initial.values())
        {
            assert!((r - (0.7 * theta + 0.3 * theta0)).abs() < 1e-5);
        }
    }

    #[test]
    fn what_has_arrived_stays() {
        let mut reference = random("policy");
        let start = reference.clone();
        for _ in 0..100 {
            Blend::new(0.003, 0.2).apply_block(reference.values_mut(), start.values(), Some(start.values()));
        }
        assert_eq!(reference, start);
    }
}
