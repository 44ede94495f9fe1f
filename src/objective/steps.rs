//! What objectives on denoising steps have in common: log-ratios of a step's probability under two policies.

use super::{Likelihoods, Sampled, Trajectory, promised, require};
use crate::Result;
use crate::onnx::{Attrs, Graph, ValueId};

/// What the step graph gives objectives on steps.
pub fn trajectory(l: &Likelihoods) -> Trajectory {
    promised(l.trajectory, "precisions of steps")
}

/// What the step graph gives objectives that weigh steps by advantages.
pub fn sampled(l: &Likelihoods) -> Sampled {
    promised(trajectory(l).sampled, "advantages")
}

/// `r = λ(t)·κ·(e_other − e)`, `[P]`: the logarithm of how much more probable a step is than under another policy, whose
/// error is `e_other`.
pub fn log_ratio(graph: &mut Graph, l: &Likelihoods, own: ValueId, other: ValueId) -> Result<ValueId> {
    let gain = graph.sub(other, own)?;
    let scaled = graph.mul(gain, trajectory(l).precision)?;
    graph.mul(scaled, l.reward_scale)
}

/// Log-ratio of the sample against the reference: the reward signal of objectives on single steps.
pub fn against_reference(graph: &mut Graph, l: &Likelihoods) -> Result<ValueId> {
    log_ratio(graph, l, l.e_w, promised(l.ref_w, "errors of the reference"))
}

/// `clip(x, low, high)`; no gradient flows from values outside.
pub fn clip(graph: &mut Graph, x: ValueId, low: f64, high: f64) -> Result<ValueId> {
    let bounds = [low, high].map(|bound| graph.scalar_like(x, bound));
    graph.op("Clip", &[x, bounds[0], bounds[1]], Attrs::new())
}

/// `−log σ(β·(ln ρ_w − ln ρ_l))` with `ln ρ = clip(r, ln(1 − ε), ln(1 + ε))`, and the two log-ratios, `[2P]`.
pub fn clipped_preference(
    graph: &mut Graph,
    l: &Likelihoods,
    beta: f64,
    epsilon: f64,
) -> Result<(ValueId, ValueId)> {
    let own_l = promised(l.e_l, "pairs");
    let (ref_w, ref_l) = (
        promised(l.ref_w, "errors of the reference"),
        promised(l.ref_l, "errors of the reference"),
    );
    let ratios = [
        log_ratio(graph, l, l.e_w, ref_w)?,
        log_ratio(graph, l, own_l, ref_l)?,
    ];
    let clipped = [
        clip(graph, ratios[0], (-epsilon).ln_1p(), epsilon.ln_1p())?,
        clip(graph, ratios[1], (-epsilon).ln_1p(), epsilon.ln_1p())?,
    ];
    let margin = graph.sub(clipped[0], clipped[1])?;
    let u = graph.scale(margin, beta)?;
    Ok((super::paired::log_loss(graph, u)?, graph.concat(&ratios, 0)?))
}

/// Refuses a range of ratios that is none.
pub fn check_clip(epsilon: f64, usual: &str) -> Result<()> {
    require(
        epsilon > 0.0 && epsilon < 1.0,
        "objective.clip",
        format!("is {epsilon}"),
        &format!("Give a number above 0 and below 1; {usual}."),
    )
}

/// Refuses a weight that is negative or not finite.
pub fn check_weight(value: f64, key: &str, usual: &str) -> Result<()> {
    require(
        value >= 0.0 && value.is_finite(),
        &format!("objective.{key}"),
        format!("is {value}"),
        &format!("Give a number that is not negative; {usual}."),
    )
}
