//! `Pad`: zeros and constants are cropped off the gradient; what mirrored, repeated or wrapped elements received is added
//! to the elements they came from.
//!
//! Negative pads crop before the mode applies, as ONNX Runtime does it.

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::{Graph, ValueId};

pub(super) fn rule(op: &str) -> Option<Rule> {
    (op == "Pad").then_some(pad)
}

fn pad(c: &mut Context) -> Result<Gradients> {
    let (before, after) = c.view().pads()?;
    let mode = c.view().str("mode", "constant").to_owned();
    let shape = c.shape(0)?;
    let mut dx = c.dy0()?;
    if mode == "constant" {
        let opposite = |pads: &[i64]| pads.iter().map(|p| -p).collect::<Vec<_>>();
        return Ok(vec![Some(c.graph.pad_zeros(
            dx,
            &opposite(&before),
            &opposite(&after),
        )?)]);
    }
    for axis in 0..shape.len() {
        let sources = sources(&mode, shape[axis], before[axis], after[axis])
            .ok_or_else(|| c.unsupported(&format!("operator Pad with mode {mode:?} and these pads")))?;
        dx = back_along(c.graph, dx, axis, shape[axis], &sources)?;
    }
    Ok(vec![Some(dx)])
}

/// Where each element along a padded dimension of `n` comes from.
fn sources(mode: &str, n: usize, before: i64, after: i64) -> Option<Vec<usize>> {
    let crop = before.min(0).unsigned_abs() as usize;
    let kept = n
        .checked_sub(crop)?
        .checked_sub(after.min(0).unsigned_abs() as usize)? as i64;
    if kept == 0 {
        return (before <= 0 && after <= 0).then(Vec::new);
    }
    let place = |i: i64| match mode {
        "edge" => Some(i.clamp(0, kept - 1)),
        "wrap" => Some(i.rem_euclid(kept)),
        "reflect" if kept == 1 => Some(0),
        "reflect" => {
            let i = i.rem_euclid(2 * (kept - 1));
            Some(i.min(2 * (kept - 1) - i))
        }
        _ => None,
    };
    (-before.max(0)..kept + after.max(0))
        .map(|i| Some(place(i)? as usize + crop))
        .collect()
}

/// A stretch of padded elements whose sources follow each other upwards (1), downwards (−1), or are the same (0).
#[derive(Debug, PartialEq, Eq)]
struct Run {
    start: usize,
    len: usize,
    direction: i64,
}

fn runs(sources: &[usize]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        if let Some(run) = runs.last_mut() {
            let step = *source as i64 - sources[i - 1] as i64;
            if (run.len == 1 && step.abs() <= 1) || step == run.direction && run.len > 1 {
                run.direction = step;
                run.len += 1;
                continue;
            }
        }
        runs.push(Run {
            start: i,
            len: 1,
            direction: 1,
        });
    }
    runs
}

/// Adds up, along `axis`, what each of the `n` elements gave to the padded ones.
fn back_along(g: &mut Graph, dy: ValueId, axis: usize, n: usize, sources: &[usize]) -> Result<ValueId> {
    let rank = g.rank(dy);
    let mut sum = None;
    for run in runs(sources) {
        let mut part = g.slice(dy, axis, run.start, run.start + run.len)?;
        let ends = (sources[run.start], sources[run.start + run.len - 1]);
        match run.direction {
            0 => part = g.sum_keep(part, &[axis])?,
            -1 => part = g.reversed(part, &[axis])?,
            _ => {}
        }
        let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
        before[axis] = ends.0.min(ends.1) as i64;
        after[axis] = n as i64 - 1 - ends.0.max(ends.1) as i64;
        let part = g.pad_zeros(part, &before, &after)?;
        sum = Some(match sum {
            Some(sum) => g.add(sum, part)?,
            None => part,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => {
            // Everything was cropped: nothing of this dimension reached the output.
            let mut ty = g.ty(dy).clone();
            ty.shape[axis] = n;
            g.zeros(&ty)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_from_where_the_mode_says() {
        assert_eq!(sources("reflect", 4, 2, 1).unwrap(), [2, 1, 0, 1, 2, 3, 2]);
        assert_eq!(sources("edge", 3, 2, 1).unwrap(), [0, 0, 0, 1, 2, 2]);
        assert_eq!(sources("wrap", 3, 1, 2).unwrap(), [2, 0, 1, 2, 0, 1]);
        assert_eq!(sources("reflect", 4, -1, 1).unwrap(), [1, 2, 3, 2]);
    }

    #[test]
    fn a_padded_dimension_is_a_few_runs() {
        let found = runs(&[2, 1, 0, 1, 2, 3, 2]);
        assert_eq!(
            found
                .iter()
                .map(|r| (r.start, r.len, r.direction))
                .collect::<Vec<_>>(),
            [(0, 3, -1), (3, 3, 1), (6, 1, 1)]
        );
        assert_eq!(
            runs(&[0, 0, 0, 1, 2])
                .iter()
                .map(|r| (r.len, r.direction))
                .collect::<Vec<_>>(),
            [(3, 0), (2, 1)]
        );
    }
}
