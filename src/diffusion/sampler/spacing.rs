//! Which training timesteps a number of steps visits, noisiest first.

use super::SamplerKind;
use super::config::{SamplerConfig, Spacing};
use crate::{Error, Result};

/// The timesteps of `steps` steps over `train` training timesteps, for every kind but DPM-Solver++.
///
/// Linspace timesteps are whole numbers where the class of `kind` rounds them; Euler's do not.
pub(super) fn timesteps(
    config: &SamplerConfig,
    kind: SamplerKind,
    train: usize,
    steps: usize,
) -> Result<Vec<f64>> {
    check_steps(steps, train)?;
    let spread = match config.spacing(kind) {
        Spacing::Leading => leading(train / steps, steps, config.steps_offset()),
        Spacing::Trailing => trailing(train, train as f64 / steps as f64),
        Spacing::Linspace => {
            let points = linspace(train - 1, steps);
            match kind {
                SamplerKind::Euler | SamplerKind::EulerAncestral => {
                    points.map(|t| f64::from(t as f32)).collect()
                }
                _ => points.map(f64::round_ties_even).collect(),
            }
        }
    };
    within(config, spread, train)
}

/// The timesteps of DPM-Solver++: one more is spread than visited, because the last is the end point.
///
/// Timesteps from `last` up are left out; `last` is `train` unless `lambda_min_clipped` says otherwise.
pub(super) fn dpm_timesteps(
    config: &SamplerConfig,
    train: usize,
    last: usize,
    steps: usize,
) -> Result<Vec<f64>> {
    check_steps(steps, train)?;
    let spread = match config.spacing(SamplerKind::DpmSolverPp2M) {
        Spacing::Leading => {
            check_steps(steps, last - 1)?;
            let mut spread = leading(last / (steps + 1), steps + 1, config.steps_offset());
            spread.pop();
            spread
        }
        Spacing::Trailing => trailing(last, train as f64 / steps as f64),
        Spacing::Linspace => {
            let points = linspace(last - 1, steps + 1);
            points.map(f64::round_ties_even).take(steps).collect()
        }
    };
    within(config, spread, train)
}

fn leading(stride: usize, count: usize, offset: usize) -> Vec<f64> {
    (0..count)
        .rev()
        .map(|index| (index * stride + offset) as f64)
        .collect()
}

/// From `last − 1` down by `stride`; what would round below 0 is left out.
fn trailing(last: usize, stride: f64) -> Vec<f64> {
    (0..)
        .map(|index| (last as f64 - f64::from(index) * stride).round_ties_even() - 1.0)
        .take_while(|t| *t >= 0.0)
        .collect()
}

/// `count` numbers evenly from `highest` down to 0; a single one is 0.
fn linspace(highest: usize, count: usize) -> impl Iterator<Item = f64> {
    let stride = highest as f64 / count.saturating_sub(1).max(1) as f64;
    (0..count).rev().map(move |index| index as f64 * stride)
}

fn check_steps(steps: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&steps) {
        return Ok(());
    }
    Err(Error::bad(
        "steps",
        format!("is {steps}"),
        format!("Give a number from 1 to {most}, the number of timesteps that the model can be sampled at."),
    ))
}

fn within(config: &SamplerConfig, timesteps: Vec<f64>, train: usize) -> Result<Vec<f64>> {
    match timesteps.first() {
        Some(first) if *first >= train as f64 => Err(config.bad(
            format!(
                "steps_offset leads to timestep {first}, and the model knows 0 to {}",
                train - 1
            ),
            "Take fewer steps, or correct steps_offset in a copy of the file.",
        )),
        _ => Ok(timesteps),
    }
}
