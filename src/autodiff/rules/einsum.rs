//! `Einsum`: the gradient of an operand is another `Einsum`, of the output's gradient and the other operands.
//!
//! `y = Σ a·b·…` over the labels that `y` lacks, so `da` is `Σ dy·b·…` over the labels that `a` lacks. Labels that only
//! `a` has were summed: there the gradient is repeated. A label that stands twice in `a` picked a diagonal: the gradient
//! lies on it.

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::einsum::Einsum;
use crate::onnx::{Attrs, Graph, ValueId};

pub(super) fn rule(op: &str) -> Option<Rule> {
    (op == "Einsum").then_some(einsum as Rule)
}

fn einsum(c: &mut Context) -> Result<Gradients> {
    let dy = c.dy0()?;
    let operands: Vec<ValueId> = (0..c.node.inputs.len()).map(|i| c.x(i)).collect::<Result<_>>()?;
    let v = c.view();
    let shapes = (0..operands.len())
        .map(|i| v.shape(i))
        .collect::<Result<Vec<_>>>()?;
    let equation = Einsum::parse(v.str("equation", ""), &shapes).map_err(|what| v.error(what))?;
    let mut out = vec![None; operands.len()];
    for i in (0..operands.len()).filter(|i| c.wants[*i]) {
        let mut factors = vec![Factor {
            value: dy,
            labels: equation.output.clone(),
        }];
        for (k, value) in operands.iter().enumerate().filter(|(k, _)| *k != i) {
            factors.push(Factor {
                value: *value,
                labels: equation.operands[k].clone(),
            });
        }
        out[i] = Some(operand_gradient(c.graph, &equation, &factors, i, operands[i])?);
    }
    Ok(out)
}

struct Factor {
    value: ValueId,
    labels: Vec<char>,
}

/// Gradient of operand `i` (`x`) from the factors it was multiplied with.
fn operand_gradient(g: &mut Graph, e: &Einsum, factors: &[Factor], i: usize, x: ValueId) -> Result<ValueId> {
    let shape = g.shape(x).to_vec();
    let mut distinct: Vec<(char, usize)> = Vec::new();
    for (label, size) in e.operands[i].iter().zip(&shape) {
        if distinct.iter().all(|(l, _)| l != label) {
            distinct.push((*label, *size));
        }
    }
    // A dimension of 1 that was broadcast is summed over, and put back below.
    let elsewhere = |label: &char| factors.iter().any(|f| f.labels.contains(label));
    let kept: Vec<char> = distinct
        .iter()
        .filter(|(label, size)| elsewhere(label) && *size == e.sizes[label])
        .map(|(label, _)| *label)
        .collect();
    let product = product(g, factors, &kept)?;
    // A label can be 1 in all the factors and more in the operand; others are in the operand alone. Both are repeated.
    let sizes = g.shape(product).to_vec();
    let size_of = |label: &char| kept.iter().position(|k| k == label).map_or(1, |at| sizes[at]);
    let spread: Vec<usize> = distinct.iter().map(|(label, _)| size_of(label)).collect();
    let product = g.reshape(product, &spread)?;
    let full: Vec<usize> = distinct.iter().map(|(_, size)| *size).collect();
    let gradient = g.expand(product, &full)?;
    on_diagonals(g, gradient, &distinct, &e.operands[i], &shape)
}

/// The product of all factors, summed over all labels but `kept`.
fn product(g: &mut Graph, factors: &[Factor], kept: &[char]) -> Result<ValueId> {
    // Numbers without dimensions are multiplied in afterwards: a term without labels is easily misread.
    let (numbers, tensors): (Vec<&Factor>, Vec<&Factor>) = factors.iter().partition(|f| f.labels.is_empty());
    let mut result = None;
    if !tensors.is_empty() {
        let terms: Vec<String> = tensors.iter().map(|f| letters(&f.labels, factors)).collect();
        let equation = format!("{}->{}", terms.join(","), letters(kept, factors));
        let values: Vec<ValueId> = tensors.iter().map(|f| f.value).collect();
        result = Some(g.op("Einsum", &values, Attrs::new().str("equation", &equation))?);
    }
    for number in numbers {
        result = Some(result.map_or(Ok(number.value), |r| g.mul(r, number.value))?);
    }
    Ok(result.expect("the gradient of the output is always a factor"))
}

/// Labels as letters: those of an ellipsis, which are digits, become letters that no factor uses.
fn letters(labels: &[char], factors: &[Factor]) -> String {
    let used = |l: &char| factors.iter().any(|f| f.labels.contains(l));
    let free: Vec<char> = ('a'..='z').chain('A'..='Z').filter(|l| !used(l)).collect();
    labels
        .iter()
        .map(|l| match l.to_digit(10) {
            Some(d) => free[d as usize],
            None => *l,
        })
        .collect()
}

/// `gradient` has one dimension per distinct label; gives it one per label, with zeros off the diagonals.
fn on_diagonals(
    g: &mut Graph,
    mut gradient: ValueId,
    distinct: &[(char, usize)],
    labels: &[char],
    shape: &[usize],
) -> Result<ValueId> {
    if labels.len() == distinct.len() {
        return Ok(gradient);
    }
    let first = |i: usize| {
        labels
            .iter()
            .position(|l| *l == labels[i])
            .is_some_and(|at| at == i)
    };
    let spread: Vec<usize> = (0..labels.len())
        .map(|i| if first(i) { shape[i] } else { 1 })
        .collect();
    gradient = g.reshape(gradient, &spread)?;
    for i in (0..labels.len()).filter(|i| !first(*i)) {
        let (n, at) = (shape[i], labels.iter().position(|l| *l == labels[i]).unwrap_or(i));
        let unit: Vec<f64> = (0..n * n).map(|k| f64::from(u8::from(k / n == k % n))).collect();
        let dims: Vec<usize> = (0..labels.len())
            .map(|k| if k == i || k == at { n } else { 1 })
            .collect();
        let unit = g.float_tensor(g.dtype(gradient), &dims, &unit);
        gradient = g.mul(gradient, unit)?;
    }
    Ok(gradient)
}
