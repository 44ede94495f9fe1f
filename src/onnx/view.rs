//! Reading a node: its inputs' types, its constant operands and its attributes, with errors that name the node.
//!
//! Shape rules and gradient rules read nodes through this one view, so that both understand an attribute the same way,
//! whichever opset wrote it (axes as attribute or as input, `auto_pad` or explicit pads).

use super::graph::{Graph, Node, TensorType, ValueId};
pub use super::window::{TransposedWindow, Window};
use crate::tensor::DType;
use crate::{Error, Result};

/// A node together with its graph.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// The node.
    pub node: &'a Node,
}

/// One sliced axis, normalised: `len` elements from `start` in steps of `step` (which may be negative).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SliceAxis {
    pub axis: usize,
    pub start: i64,
    pub step: i64,
    pub len: usize,
}

impl<'a> View<'a> {
    /// Looks at `node` of `graph`.
    pub fn new(graph: &'a Graph, node: &'a Node) -> Self {
        Self { graph, node }
    }

    /// An error about this node.
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::bad(
            self.node.place(self.graph),
            what,
            "The model may be damaged, or exported in a form that ortdpo does not know yet.",
        )
    }

    /// Whether input `i` is there.
    pub fn has(&self, i: usize) -> bool {
        self.node.input(i).is_some()
    }

    /// Number of inputs, absent trailing ones not counted.
    pub fn input_count(&self) -> usize {
        self.node
            .inputs
            .iter()
            .rposition(Option::is_some)
            .map_or(0, |i| i + 1)
    }

    /// Input `i`, which must be there.
    pub fn input(&self, i: usize) -> Result<ValueId> {
        self.node
            .input(i)
            .ok_or_else(|| self.error(format!("lacks its input {i}")))
    }

    /// Type of input `i`.
    pub fn ty(&self, i: usize) -> Result<&'a TensorType> {
        Ok(self.graph.ty(self.input(i)?))
    }

    /// Shape of input `i`.
    pub fn shape(&self, i: usize) -> Result<&'a [usize]> {
        Ok(&self.ty(i)?.shape)
    }

    /// Element type of input `i`.
    pub fn dtype(&self, i: usize) -> Result<DType> {
        Ok(self.ty(i)?.dtype)
    }

    /// Number of dimensions of input `i`.
    pub fn rank(&self, i: usize) -> Result<usize> {
        Ok(self.ty(i)?.rank())
    }

    /// Integer attribute.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.node.attrs.get_int(name, default)
    }

    /// Float attribute.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.node.attrs.get_float(name, default)
    }

    /// String attribute.
    pub fn str(&self, name: &str, default: &'static str) -> &'a str {
        self.node.attrs.get_str(name, default)
    }

    /// Integers of the constant input `i`; `None` if the input is absent; an error if it is not a known constant.
    pub fn ints(&self, i: usize) -> Result<Option<Vec<i64>>> {
        let Some(value) = self.node.input(i) else {
            return Ok(None);
        };
        match self.graph.constant_integers(value) {
            Some(v) => Ok(Some(v)),
            None => Err(self.error(format!(
                "needs its input {i} (`{}`) as constant integers, but it depends on data",
                self.graph.name(value)
            ))),
        }
    }

    /// Floats of the constant input `i`; `None` if the input is absent; an error if it is not a known constant.
    pub fn floats(&self, i: usize) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.node.input(i) else {
            return Ok(None);
        };
        match self.graph.constant_floats(value) {
            Some(v) => Ok(Some(v)),
            None => Err(self.error(format!(
                "needs its input {i} (`{}`) as constant numbers, but it depends on data",
                self.graph.name(value)
            ))),
        }
    }

    /// The first integer of the constant input `i`, or `default` if the input is absent.
    pub fn first_int(&self, i: usize, default: i64) -> Result<i64> {
        match self.ints(i)? {
            None => Ok(default),
            Some(v) => v
                .first()
                .copied()
                .ok_or_else(|| self.error(format!("has an empty input {i}"))),
        }
    }

    /// A list attribute of sizes (strides, pads, …): none negative, none that would make counting overflow.
    pub fn sizes(&self, name: &str) -> Result<Option<Vec<usize>>> {
        let size = |v: &i64| {
            let size = i32::try_from(*v).ok().and_then(|v| usize::try_from(v).ok());
            size.ok_or_else(|| self.error(format!("has {name} = {v}, which is no size")))
        };
        let list = self.node.attrs.opt_ints(name);
        list.map(|v| v.iter().map(size).collect()).transpose()
    }

    /// An error unless input `i` has `rank` dimensions.
    pub fn expect_rank(&self, i: usize, rank: usize) -> Result<()> {
        let shape = self.shape(i)?;
        if shape.len() == rank {
            return Ok(());
        }
        Err(self.error(format!(
            "needs {rank} dimensions in input {i}, whose shape is {shape:?}"
        )))
    }

    /// A possibly negative axis of a tensor of `rank` dimensions as a position.
    pub fn axis(&self, axis: i64, rank: usize) -> Result<usize> {
        let n = if axis < 0 { axis + rank as i64 } else { axis };
        if n < 0 || n >= rank as i64 {
            return Err(self.error(format!("has axis {axis} for a tensor of {rank} dimensions")));
        }
        Ok(n as usize)
    }

    /// The attribute `axis` as a position among the dimensions of input `i`.
    pub fn axis_attr(&self, i: usize, default: i64) -> Result<usize> {
        self.axis(self.int("axis", default), self.rank(i)?)
    }

    /// Axes from input 1 (newer opsets) or the attribute `axes`; `None` if given by neither.
    pub fn axes(&self, rank: usize) -> Result<Option<Vec<usize>>> {
        let raw = match self.ints(1)? {
            Some(v) => Some(v),
            None => self.node.attrs.opt_ints("axes").map(<[i64]>::to_vec),
        };
        raw.map(|v| self.distinct_axes(&v, rank)).transpose()
    }

    /// Axes as positions, each named once.
    pub(super) fn distinct_axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>> {
        let mut found = Vec::with_capacity(axes.len());
        for axis in axes {
            let axis = self.axis(*axis, rank)?;
            if found.contains(&axis) {
                return Err(self.error(format!("names axis {axis} twice")));
            }
            found.push(axis);
        }
        Ok(found)
    }

    /// Axes a reduction runs over, and whether it keeps them.
    pub fn reduction(&self) -> Result<(Vec<usize>, bool)> {
        let rank = self.rank(0)?;
        let keep = self.int("keepdims", 1) != 0;
        let axes = match self.axes(rank)? {
            Some(axes) if !axes.is_empty() => axes,
            _ if self.int("noop_with_empty_axes", 0) != 0 => Vec::new(),
            _ => (0..rank).collect(),
        };
        Ok((axes, keep))
    }

    /// The axes that a `Slice` node cuts.
    pub fn slice_axes(&self) -> Result<Vec<SliceAxis>> {
        let shape = self.shape(0)?;
        let need = |i: usize| {
            self.ints(i)?
                .ok_or_else(|| self.error(format!("lacks its input {i}")))
        };
        let (starts, ends) = (need(1)?, need(2)?);
        let axes = self
            .ints(3)?
            .unwrap_or_else(|| (0..starts.len() as i64).collect());
        let axes = self.distinct_axes(&axes, shape.len())?;
        let steps = self.ints(4)?.unwrap_or_else(|| vec![1; starts.len()]);
        if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
            return Err(self.error("has starts, ends, axes and steps of different lengths"));
        }
        let mut cuts = Vec::with_capacity(axes.len());
        for i in 0..axes.len() {
            let n = shape[axes[i]] as i64;
            let step = steps[i];
            if step == 0 {
                return Err(self.error("has a step of 0"));
            }
            let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
            let wrap = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
            let start = wrap(starts[i]).clamp(low.max(0), high.max(0));
            let end = wrap(ends[i]).clamp(low, high);
            let span = if step > 0 { end - start } else { start - end };
            let len = if span <= 0 || n == 0 {
                0
            } else {
                (span as u64).div_ceil(step.unsigned_abs()) as usize
            };
            cuts.push(SliceAxis {
                axis: axes[i],
                start,
                step,
                len,
            });
        }
        Ok(cuts)
    }

    /// Pads of a `Pad` node, before and after each dimension.
    pub fn pads(&self) -> Result<(Vec<i64>, Vec<i64>)> {
        let rank = self.rank(0)?;
        let given = self.ints(1)?.ok_or_else(|| self.error("lacks its pads"))?;
        let axes = match self.ints(3)? {
            Some(a) => self.distinct_axes(&a, rank)?,
            None => (0..rank).collect(),
        };
        if given.len() != 2 * axes.len() || given.iter().any(|p| i32::try_from(*p).is_err()) {
            return Err(self.error(format!("has pads {given:?}, which do not fit its axes {axes:?}")));
        }
        let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
        for (i, axis) in axes.iter().enumerate() {
            before[*axis] = given[i];
            after[*axis] = given[axes.len() + i];
        }
        Ok((before, after))
    }

    /// Lengths of the parts of a `Split` node.
    pub fn split_parts(&self, outputs: usize) -> Result<Vec<usize>> {
        let axis = self.axis_attr(0, 0)?;
        let n = self.shape(0)?[axis];
        if let Some(parts) = self.ints(1)? {
            let sum = |parts: &[usize]| parts.iter().try_fold(0_usize, |sum, p| sum.checked_add(*p));
            let sizes: Result<Vec<usize>, _> = parts.iter().map(|p| usize::try_from(*p)).collect();
            return match sizes {
                Ok(sizes) if sizes.len() == outputs && sum(&sizes) == Some(n) => Ok(sizes),
                _ => Err(self.error(format!(
                    "has {outputs} outputs and parts {parts:?} for a dimension of {n}"
                ))),
            };
        }
        let each = n.div_ceil(outputs.max(1));
        Ok((0..outputs)
            .map(|i| each.min(n.saturating_sub(i * each)))
            .collect())
    }
}

/// Shape of `a` and `b` broadcast together, if they fit.
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |s: &[usize], i: usize| {
        if i + s.len() < rank {
            1
        } else {
            s[i + s.len() - rank]
        }
    };
    (0..rank)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// Number of heads of an `Attention` node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Heads {
    pub q: usize,
    pub kv: usize,
}

impl View<'_> {
    /// Heads of queries and of keys and values: from the attributes (3-D inputs) or the shapes (4-D inputs).
    pub fn attention_heads(&self) -> Result<Heads> {
        let (q, k, v) = (self.shape(0)?, self.shape(1)?, self.shape(2)?);
        let heads = |name: &str| self.int(name, 0).max(0) as usize;
        let (q, kv) = match (q.len(), k.len(), v.len()) {
            (4, 4, 4) => (q[1], k[1]),
            (3, 3, 3) => (heads("q_num_heads"), heads("kv_num_heads")),
            _ => {
                return Err(self.error(format!(
                    "has queries {q:?}, keys {k:?} and values {v:?}, which should all have 3 or all 4 dimensions"
                )));
            }
        };
        if q == 0 || kv == 0 {
            return Err(self.error("has no numbers of heads"));
        }
        Ok(Heads { q, kv })
    }
}
