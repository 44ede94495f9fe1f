//! Small tensors whose numbers are known, for evaluating the shape arithmetic of a model.

use super::data::Constant;
use crate::tensor::DType;

/// A small tensor whose numbers are known.
#[derive(Debug, Clone, PartialEq)]
pub struct Literal {
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    pub(super) numbers: Numbers,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Numbers {
    Ints(Vec<i64>),
    Floats(Vec<f64>),
}

impl Literal {
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn ints(dtype: DType, shape: &[usize], values: Vec<i64>) -> Self {
        Self {
            dtype,
            shape: shape.to_vec(),
            numbers: Numbers::Ints(values),
        }
    }

    pub(super) fn from_constant(c: &Constant) -> Option<Self> {
        let numbers = match c.dtype.is_float() {
            true => Numbers::Floats(c.to_floats()?),
            false => Numbers::Ints(c.to_integers()?),
        };
        Some(Self {
            dtype: c.dtype,
            shape: c.shape.clone(),
            numbers,
        })
    }

    pub(super) fn floats(dtype: DType, shape: &[usize], values: Vec<f64>) -> Self {
        let numbers = match dtype.is_float() {
            true => Numbers::Floats(values.into_iter().map(|v| round_to(dtype, v)).collect()),
            false => Numbers::Ints(values.into_iter().map(|v| v as i64).collect()),
        };
        Self {
            dtype,
            shape: shape.to_vec(),
            numbers,
        }
    }

    /// As elements of another type.
    pub(super) fn cast(&self, to: DType) -> Self {
        use Numbers::{Floats, Ints};
        let numbers = match (&self.numbers, to.is_float(), to) {
            (Ints(v), true, _) => Floats(v.iter().map(|v| round_to(to, *v as f64)).collect()),
            (Floats(v), true, _) => Floats(v.iter().map(|v| round_to(to, *v)).collect()),
            (Ints(v), false, DType::Bool) => Ints(v.iter().map(|v| i64::from(*v != 0)).collect()),
            (Floats(v), false, DType::Bool) => Ints(v.iter().map(|v| i64::from(*v != 0.0)).collect()),
            (Ints(v), false, _) => Ints(v.clone()),
            (Floats(v), false, _) => Ints(v.iter().map(|v| *v as i64).collect()),
        };
        Self {
            dtype: to,
            shape: self.shape.clone(),
            numbers,
        }
    }

    /// As a constant of the graph; floats are rounded to their type here.
    pub fn into_constant(self) -> Constant {
        match self.numbers {
            Numbers::Ints(v) => Constant::integers(self.dtype, &self.shape, &v),
            Numbers::Floats(v) => Constant::floats(self.dtype, &self.shape, &v),
        }
    }

    pub(super) fn as_floats(&self) -> Vec<f64> {
        match &self.numbers {
            Numbers::Ints(v) => v.iter().map(|x| *x as f64).collect(),
            Numbers::Floats(v) => v.clone(),
        }
    }

    /// The literal whose element `i` is this one's element `pick(i)`.
    pub(super) fn gathered(&self, shape: &[usize], pick: impl Fn(usize) -> usize) -> Self {
        let n: usize = shape.iter().product();
        let numbers = match &self.numbers {
            Numbers::Ints(v) => Numbers::Ints((0..n).map(|i| v[pick(i)]).collect()),
            Numbers::Floats(v) => Numbers::Floats((0..n).map(|i| v[pick(i)]).collect()),
        };
        Self {
            dtype: self.dtype,
            shape: shape.to_vec(),
            numbers,
        }
    }

    /// Repeated along dimensions of 1 and new ones in front.
    pub(super) fn broadcast_to(&self, shape: &[usize]) -> Self {
        let strides = strides(&self.shape);
        let lead = shape.len() - self.shape.len();
        self.gathered(shape, |i| {
            let at = position(i, shape);
            (0..self.shape.len())
                .map(|d| {
                    if self.shape[d] == 1 {
                        0
                    } else {
                        at[d + lead] * strides[d]
                    }
                })
                .sum()
        })
    }
}

/// Elements from one place to the next, per dimension of a row-major tensor.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut s = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        s[i - 1] = s[i] * shape[i];
    }
    s
}

/// Coordinates of element `i` of a row-major tensor.
pub(super) fn position(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for d in (0..shape.len()).rev() {
        at[d] = i % shape[d];
        i /= shape[d];
    }
    at
}

/// What a runtime would have computed in this type.
fn round_to(dtype: DType, v: f64) -> f64 {
    match dtype {
        DType::F32 => f64::from(v as f32),
        DType::F16 => half::f16::from_f64(v).to_f64(),
        DType::BF16 => half::bf16::from_f64(v).to_f64(),
        _ => v,
    }
}
