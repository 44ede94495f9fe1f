//! DSPO, direct score preference optimisation (Zhu et al., ICLR 2025). The published code holds two different losses.
//!
//! ```text
//! u     = −½·β·(Δθ − Δref) = ½·β·λ(t)·m,   d = prediction_θ − prediction_ref on the preferred sample
//! score   loss = mean ‖(prediction_θ − target) − β·(1 − σ(u))·d‖²                   its form for SD1.5
//! gap     loss = (1 − σ(u))²·mean ‖d‖²     where the batch mean of ‖d‖² is 0.1 or more
//!              = (1 − σ(u))²               elsewhere                                its form for SDXL
//! ```
//!
//! The first is the paper's; it is used with a small β. Gradients flow through σ(u), too, as in the published code.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::paired::{doubt, reward};
use super::{Gap, Likelihoods, Losses, Needs, Objective, Safeguard, promised, require_positive};
use crate::Result;
use crate::onnx::{Attrs, Graph, ValueId};

/// Which of the published losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DspoForm {
    /// That of the paper and of the code for SD1.5.
    Score,
    /// That of the code for SDXL.
    Gap,
}

/// Keys of the `dspo` objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dspo {
    /// Which of the two published losses.
    pub form: DspoForm,
    /// Strength of the margin in Diffusion-DPO's convention; `null` takes the published one of the form: 0.001 for
    /// `score`, 5000 for `gap`. Positive.
    pub beta: Option<f64>,
    /// Guard of the preferred sample.
    pub safeguard: Option<Safeguard>,
}

impl Default for Dspo {
    fn default() -> Self {
        Self {
            form: DspoForm::Score,
            beta: None,
            safeguard: None,
        }
    }
}

/// Batch mean of ‖d‖² from which the `gap` form multiplies by it.
const FAR: f64 = 0.1;

impl Dspo {
    fn strength(&self) -> f64 {
        self.beta.unwrap_or(match self.form {
            DspoForm::Score => 0.001,
            DspoForm::Gap => 5000.0,
        })
    }

    /// `e_w − 2k·⟨prediction − target, d⟩ + k²·‖d‖²` with `k = β·(1 − σ(u))`: the square multiplied out.
    fn score(&self, graph: &mut Graph, l: &Likelihoods, gap: Gap, doubt: ValueId) -> Result<ValueId> {
        let k = graph.scale(doubt, self.strength())?;
        let mixed = graph.mul(k, gap.inner)?;
        let mixed = graph.scale(mixed, 2.0)?;
        let k2 = graph.mul(k, k)?;
        let far = graph.mul(k2, gap.square)?;
        let near = graph.sub(l.e_w, mixed)?;
        graph.add(near, far)
    }

    fn gap(&self, graph: &mut Graph, gap: Gap, doubt: ValueId, batch_mean: ValueId) -> Result<ValueId> {
        let far = graph.scalar_like(batch_mean, FAR);
        let is_far = graph.op("GreaterOrEqual", &[batch_mean, far], Attrs::new())?;
        let one = graph.scalar_like(gap.square, 1.0);
        let factor = graph.select(is_far, gap.square, one)?;
        let square = graph.mul(doubt, doubt)?;
        graph.mul(square, factor)
    }
}

impl Objective for Dspo {
    fn needs(&self) -> Needs {
        Needs {
            gap: true,
            winner: true,
            ..Needs::PAIRS_AND_REFERENCE
        }
    }

    fn check(&self) -> Result<()> {
        require_positive(
            self.strength(),
            "beta",
            "published are 0.001 to 0.05 for the score form, 1000 to 5000 for the gap form",
        )?;
        self.safeguard.map_or(Ok(()), |guard| guard.check())
    }

    fn beta(&self) -> Option<f64> {
        Some(self.strength())
    }

    fn beta_effective(&self) -> Option<f64> {
        Some(0.5 * self.strength())
    }

    fn safeguard(&self) -> Option<Safeguard> {
        self.safeguard
    }

    fn batch_quantities(&self, _graph: &mut Graph, l: &Likelihoods) -> Result<Vec<ValueId>> {
        Ok(match self.form {
            DspoForm::Score => Vec::new(),
            DspoForm::Gap => vec![promised(l.gap, "predictions of the reference").square],
        })
    }

    fn build(&self, graph: &mut Graph, l: &Likelihoods, means: &[ValueId]) -> Result<Losses> {
        let u = reward(graph, l, 0.5 * self.strength())?;
        let doubt = doubt(graph, u)?;
        let gap = promised(l.gap, "predictions of the reference");
        let loss = match self.form {
            DspoForm::Score => self.score(graph, l, gap, doubt)?,
            DspoForm::Gap => self.gap(graph, gap, doubt, means[0])?,
        };
        Ok(Losses {
            loss,
            reward_signal: Some(u),
        })
    }
}
