//! What many rules share.

use super::{Context, Gradients};
use crate::Result;
use crate::onnx::{Attrs, Graph, ValueId};
use crate::tensor::DType;

impl Context<'_> {
    /// The first output, which every node that is differentiated has.
    pub(super) fn y0(&self) -> Result<ValueId> {
        self.y(0).ok_or_else(|| self.view().error("has no output"))
    }

    /// `gradient` summed down to the shape of input `i`, which was broadcast.
    pub(super) fn summed(&mut self, i: usize, gradient: ValueId) -> Result<ValueId> {
        let shape = self.shape(i)?;
        self.graph.sum_to(gradient, &shape)
    }

    /// Gradients of an operator with one data input: `dx = f(graph, x, y, dy)`.
    pub(super) fn one(
        &mut self,
        f: impl FnOnce(&mut Graph, ValueId, ValueId, ValueId) -> Result<ValueId>,
    ) -> Result<Gradients> {
        let (x, y, dy) = (self.x(0)?, self.y0()?, self.dy0()?);
        Ok(vec![Some(f(self.graph, x, y, dy)?)])
    }

    /// Gradients of a function applied element by element: `dx = dy · f(graph, x, y)`, `f` being the slope.
    pub(super) fn times_slope(
        &mut self,
        slope: impl FnOnce(&mut Graph, ValueId, ValueId) -> Result<ValueId>,
    ) -> Result<Gradients> {
        self.one(|g, x, y, dy| {
            let slope = slope(g, x, y)?;
            g.mul(dy, slope)
        })
    }
}

impl Graph {
    /// `a op b`, broadcast; an operator with two inputs and no attributes (`Equal`, `Greater`, `Max`, …).
    pub(super) fn binary(&mut self, op: &str, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.op(op, &[a, b], Attrs::new())
    }

    /// `a op number`.
    pub(super) fn with_number(&mut self, op: &str, a: ValueId, number: f64) -> Result<ValueId> {
        let number = self.scalar_like(a, number);
        self.binary(op, a, number)
    }

    /// 1 where the floats `a` and `b` are equal, 0 elsewhere.
    pub(super) fn equal_mask(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        let (dtype, equal) = (self.dtype(a), self.binary("Equal", a, b)?);
        self.cast(equal, dtype)
    }

    /// `a · a`.
    pub(super) fn square(&mut self, a: ValueId) -> Result<ValueId> {
        self.mul(a, a)
    }

    /// `1 − a`.
    pub(super) fn one_minus(&mut self, a: ValueId) -> Result<ValueId> {
        let one = self.scalar_like(a, 1.0);
        self.sub(one, a)
    }

    /// `a` where `condition` holds, 0 elsewhere.
    pub(super) fn keep_where(&mut self, condition: ValueId, a: ValueId) -> Result<ValueId> {
        let zero = self.scalar_like(a, 0.0);
        self.select(condition, a, zero)
    }

    /// `a` with the order of its elements reversed along `axes`.
    pub(super) fn reversed(&mut self, a: ValueId, axes: &[usize]) -> Result<ValueId> {
        if axes.is_empty() {
            return Ok(a);
        }
        let n = axes.len();
        let starts = self.ints(&vec![-1; n]);
        let ends = self.ints(&vec![i64::MIN; n]);
        let axes: Vec<i64> = axes.iter().map(|x| *x as i64).collect();
        let (axes, steps) = (self.ints(&axes), self.ints(&vec![-1; n]));
        self.op("Slice", &[a, starts, ends, axes, steps], Attrs::new())
    }

    /// Indices as 64-bit integers, negative ones (which count from the end) made positive for a dimension of `n`.
    pub(super) fn wrapped_indices(&mut self, indices: ValueId, n: usize) -> Result<ValueId> {
        let indices = self.cast(indices, DType::I64)?;
        let (zero, n) = (self.int_scalar(0), self.int_scalar(n as i64));
        let negative = self.binary("Less", indices, zero)?;
        let moved = self.add(indices, n)?;
        self.select(negative, moved, indices)
    }
}
