//! DDPO (Black et al. 2023, arXiv 2305.13301): the denoising steps of good images become more probable.
//!
//! ```text
//! ρ    = exp(λ(t)·(log p_θ(x' | x) − log p_old(x' | x)))         against the policy that took the step
//! loss = max(−A·ρ, −A·clip(ρ, 1 − ε, 1 + ε)) + kl·κ·mean (ε_θ − ε_ref)²
//! ```
//!
//! A is the advantage: the image's reward in standard deviations above the mean, clipped. The last term is the divergence of
//! the step from the reference's, KL(p_θ ‖ p_ref) averaged over C,H,W. It is not part of the published method (`kl: 0`, which
//! needs no reference) but what later methods of the kind add (arXiv 2505.05470).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::steps::{against_reference, check_clip, check_weight, clip, log_ratio, sampled, trajectory};
use super::{Baseline, Experience, Likelihoods, Losses, Needs, Objective, promised, require_positive};
use crate::Result;
use crate::onnx::{Attrs, Graph, ValueId};

/// Keys of the `ddpo` objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ddpo {
    /// ε: beyond 1 ± ε a ratio of probabilities gains nothing more.
    pub clip: f64,
    /// Largest absolute advantage, in standard deviations. Positive.
    pub advantage_clip: f64,
    /// Weight of the divergence from the reference; 0 takes none, and no reference.
    pub kl: f64,
}

impl Default for Ddpo {
    fn default() -> Self {
        Self {
            clip: 1e-4,
            advantage_clip: 5.0,
            kl: 0.0,
        }
    }
}

impl Objective for Ddpo {
    fn needs(&self) -> Needs {
        let reference = self.kl > 0.0;
        Needs {
            reference,
            gap: reference,
            experience: Experience::Trajectories(Baseline::Rewards),
            ..Needs::default()
        }
    }

    fn check(&self) -> Result<()> {
        check_clip(self.clip, "1e-4 is the published one")?;
        require_positive(self.advantage_clip, "advantage_clip", "5 is the published one")?;
        check_weight(self.kl, "kl", "0 is the published one")
    }

    fn build(&self, graph: &mut Graph, l: &Likelihoods, _means: &[ValueId]) -> Result<Losses> {
        let sampled = sampled(l);
        let advantage = clip(
            graph,
            sampled.advantage,
            -self.advantage_clip,
            self.advantage_clip,
        )?;
        let cost = graph.neg(advantage)?;
        let r = log_ratio(graph, l, l.e_w, sampled.errors)?;
        let ratio = graph.unary("Exp", r)?;
        let near = clip(graph, ratio, 1.0 - self.clip, 1.0 + self.clip)?;
        let both = [graph.mul(cost, ratio)?, graph.mul(cost, near)?];
        let loss = graph.op("Max", &both, Attrs::new())?;
        if self.kl == 0.0 {
            return Ok(Losses {
                loss,
                reward_signal: None,
            });
        }
        let gap = promised(l.gap, "distances from the reference");
        let divergence = graph.mul(gap.square, trajectory(l).precision)?;
        let divergence = graph.scale(divergence, self.kl)?;
        Ok(Losses {
            loss: graph.add(loss, divergence)?,
            reward_signal: Some(against_reference(graph, l)?),
        })
    }
}
