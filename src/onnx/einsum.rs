//! The equation of an `Einsum` node, with every label's size.

use std::collections::BTreeMap;

/// A parsed equation. Labels are letters; the dimensions of an ellipsis get the labels `'0'`, `'1'`, … (right-aligned).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Einsum {
    /// Labels of each operand's dimensions.
    pub operands: Vec<Vec<char>>,
    /// Labels of the result's dimensions.
    pub output: Vec<char>,
    /// Size of every label. A label that broadcasts (ellipsis) has its largest size.
    pub sizes: BTreeMap<char, usize>,
}

impl Einsum {
    /// Parses `equation` for operands of the given shapes.
    pub fn parse(equation: &str, shapes: &[&[usize]]) -> Result<Self, String> {
        let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match equation.split_once("->") {
            Some((l, r)) => (l, Some(r)),
            None => (equation.as_str(), None),
        };
        let terms: Vec<&str> = left.split(',').collect();
        if terms.len() != shapes.len() {
            return Err(format!("has equation `{equation}` for {} operands", shapes.len()));
        }
        let mut sizes = BTreeMap::new();
        let mut operands = Vec::with_capacity(terms.len());
        let mut ellipsis = 0;
        for (term, shape) in terms.iter().zip(shapes) {
            let labels = labels(term, shape.len()).ok_or_else(|| {
                format!("has equation `{equation}`, whose term `{term}` does not fit a shape {shape:?}")
            })?;
            ellipsis = ellipsis.max(labels.iter().filter(|c| c.is_ascii_digit()).count());
            for (label, size) in labels.iter().zip(shape.iter()) {
                let known = sizes.entry(*label).or_insert(*size);
                if *known == 1 {
                    *known = *size;
                } else if *known != *size && *size != 1 {
                    return Err(format!(
                        "has equation `{equation}`, whose label `{label}` has sizes {known} and {size}"
                    ));
                }
            }
            operands.push(labels);
        }
        let dots: Vec<char> = ellipsis_labels(ellipsis);
        let output = match right {
            Some(r) => match r.split_once("...") {
                Some((a, b)) => a.chars().chain(dots.iter().copied()).chain(b.chars()).collect(),
                None => r.chars().collect(),
            },
            None => implicit_output(&operands, &dots),
        };
        let output: Vec<char> = output;
        match output.iter().find(|c| !sizes.contains_key(c)) {
            Some(c) => Err(format!(
                "has equation `{equation}`, whose output label `{c}` is in no operand"
            )),
            None => Ok(Self {
                operands,
                output,
                sizes,
            }),
        }
    }

    /// Dimensions of the result.
    pub fn output_shape(&self) -> Vec<usize> {
        self.output.iter().map(|c| self.sizes[c]).collect()
    }
}

/// Labels of one term for a tensor of `rank` dimensions.
fn labels(term: &str, rank: usize) -> Option<Vec<char>> {
    match term.split_once("...") {
        Some((a, b)) => {
            let dots = rank.checked_sub(a.len() + b.len())?;
            Some(a.chars().chain(ellipsis_labels(dots)).chain(b.chars()).collect())
        }
        None => (term.len() == rank).then(|| term.chars().collect()),
    }
}

/// Labels of an ellipsis of `n` dimensions; the last dimension is always `'0'`, so that they align on the right.
fn ellipsis_labels(n: usize) -> Vec<char> {
    (0..n).rev().map(|i| char::from(b'0' + (i % 10) as u8)).collect()
}

/// Without `->`: the ellipsis, then the labels that appear once, in alphabetical order.
fn implicit_output(operands: &[Vec<char>], dots: &[char]) -> Vec<char> {
    let all: Vec<char> = operands
        .iter()
        .flatten()
        .copied()
        .filter(|c| !c.is_ascii_digit())
        .collect();
    let mut once: Vec<char> = all
        .iter()
        .copied()
        .filter(|c| all.iter().filter(|d| *d == c).count() == 1)
        .collect();
    once.sort_unstable();
    dots.iter().copied().chain(once).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ellipsis_aligns_on_the_right() {
        let e = Einsum::parse("...ij,jk->...ik", &[&[2, 5, 3, 4], &[4, 7]]).unwrap();
        assert_eq!(e.output_shape(), [2, 5, 3, 7]);
    }

    #[test]
    fn without_an_arrow_single_labels_are_sorted() {
        let e = Einsum::parse("ba,cb", &[&[2, 3], &[4, 2]]).unwrap();
        assert_eq!(
            (e.output.as_slice(), e.output_shape()),
            (&['a', 'c'][..], vec![3, 4])
        );
    }

    #[test]
    fn sizes_that_differ_are_refused() {
        assert!(
            Einsum::parse("ij,jk->ik", &[&[2, 3], &[4, 5]])
                .unwrap_err()
                .contains("sizes 3 and 4")
        );
    }
}
