//! Diffusion-KTO (Li et al. 2024, arXiv 2404.04465): each sample is desirable or not by itself.
//!
//! ```text
//! g    = e(ref) − e(θ)
//! z    = max(0, mean of g over the whole optimizer batch)        no gradient flows through z
//! x    = ±β·λ(t)·(g − z)                                          + desirable, − undesirable
//! loss = w·(1 − U(x))
//! U(x) = σ(x)            utility sigmoid (the method's own)
//!      = log σ(x)        loss_averse
//!      = −log σ(−x)      risk_seeking
//! ```
//!
//! A pair counts as a desirable and an undesirable sample; its loss is their mean.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::paired::log_loss;
use super::{Likelihoods, Losses, Needs, Objective, Safeguard, promised, require, require_positive};
use crate::Result;
use crate::onnx::{Attrs, Graph, ValueId};

/// How much a reward is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Utility {
    /// σ(x): gains and losses far from the mean count less and less.
    Sigmoid,
    /// log σ(x): losses count fully, gains less and less.
    LossAverse,
    /// −log σ(−x): gains count fully, losses less and less.
    RiskSeeking,
}

/// Keys of the `kto` objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Kto {
    /// Strength of the reward, without a ½. Positive.
    pub beta: f64,
    /// How much a reward is worth.
    pub utility: Utility,
    /// Weight of desirable samples, not negative.
    pub desirable: f64,
    /// Weight of undesirable samples, not negative.
    pub undesirable: f64,
    /// Guard of the preferred sample; for paired data.
    pub safeguard: Option<Safeguard>,
    /// Whether samples come in pairs; the data say.
    #[serde(skip)]
    pub unpaired: bool,
}

impl Default for Kto {
    fn default() -> Self {
        Self {
            beta: 1000.0,
            utility: Utility::Sigmoid,
            desirable: 1.0,
            undesirable: 1.0,
            safeguard: None,
            unpaired: false,
        }
    }
}

impl Kto {
    /// `g = e(ref) − e(θ)` of the desirable and, with pairs, of the undesirable samples.
    fn rewards(&self, graph: &mut Graph, l: &Likelihoods) -> Result<(ValueId, Option<ValueId>)> {
        let first = graph.sub(promised(l.ref_w, "errors of the reference"), l.e_w)?;
        let second = match (l.ref_l, l.e_l) {
            (Some(reference), Some(own)) => Some(graph.sub(reference, own)?),
            _ => None,
        };
        Ok((first, second))
    }

    /// `1 − U(x)`.
    fn regret(&self, graph: &mut Graph, x: ValueId) -> Result<ValueId> {
        let one = graph.scalar_like(x, 1.0);
        match self.utility {
            Utility::Sigmoid => {
                let minus = graph.neg(x)?;
                graph.unary("Sigmoid", minus)
            }
            Utility::LossAverse => {
                let loss = log_loss(graph, x)?;
                graph.add(one, loss)
            }
            Utility::RiskSeeking => {
                let gain = graph.unary("Softplus", x)?;
                graph.sub(one, gain)
            }
        }
    }
}

impl Objective for Kto {
    fn needs(&self) -> Needs {
        Needs {
            pairs: !self.unpaired,
            winner: true,
            ..Needs::PAIRS_AND_REFERENCE
        }
    }

    fn check(&self) -> Result<()> {
        require_positive(self.beta, "beta", "1000 is the published one")?;
        for (key, weight) in [("desirable", self.desirable), ("undesirable", self.undesirable)] {
            require(
                weight >= 0.0 && weight.is_finite(),
                &format!("objective.{key}"),
                format!("is {weight}"),
                "Give a number of at least 0; 1 is the published one.",
            )?;
        }
        self.safeguard.map_or(Ok(()), |guard| guard.check())
    }

    fn beta(&self) -> Option<f64> {
        Some(self.beta)
    }

    fn beta_effective(&self) -> Option<f64> {
        Some(self.beta)
    }

    fn safeguard(&self) -> Option<Safeguard> {
        self.safeguard
    }

    fn batch_quantities(&self, graph: &mut Graph, l: &Likelihoods) -> Result<Vec<ValueId>> {
        let (first, second) = self.rewards(graph, l)?;
        Ok(vec![match second {
            None => first,
            Some(second) => {
                let both = graph.add(first, second)?;
                graph.scale(both, 0.5)?
            }
        }])
    }

    fn build(&self, graph: &mut Graph, l: &Likelihoods, means: &[ValueId]) -> Result<Losses> {
        let zero = graph.scalar_like(means[0], 0.0);
        let z = graph.op("Max", &[means[0], zero], Attrs::new())?;
        let (first, second) = self.rewards(graph, l)?;
        let mut value = |g: ValueId| {
            let above = graph.sub(g, z)?;
            let scaled = graph.scale(above, self.beta)?;
            graph.mul(scaled, l.reward_scale)
        };
        let first = value(first)?;
        let Some(second) = second.map(value).transpose()? else {
            return self.unpaired_loss(graph, l, first);
        };
        let minus = graph.neg(second)?;
        let (gain, harm) = (self.regret(graph, first)?, self.regret(graph, minus)?);
        let (gain, harm) = (
            graph.scale(gain, 0.5 * self.desirable)?,
            graph.scale(harm, 0.5 * self.undesirable)?,
        );
        Ok(Losses {
            loss: graph.add(gain, harm)?,
            reward_signal: Some(graph.concat(&[first, second], 0)?),
        })
    }
}

impl Kto {
    /// The loss of samples that are desirable (label 1) or undesirable (label 0) by themselves.
    fn unpaired_loss(&self, graph: &mut Graph, l: &Likelihoods, value: ValueId) -> Result<Losses> {
        let sign = graph.scale(l.label, 2.0)?;
        let sign = graph.offset(sign, -1.0)?;
        let x = graph.mul(sign, value)?;
        let regret = self.regret(graph, x)?;
        let weight = graph.scale(l.label, self.desirable - self.undesirable)?;
        let weight = graph.offset(weight, self.undesirable)?;
        Ok(Losses {
            loss: graph.mul(weight, regret)?,
            reward_signal: Some(value),
        })
    }
}
