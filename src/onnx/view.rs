//! Reading a node: its inputs' types, its constant operands and its attributes, with errors that name the node.
//!
//! Shape rules and gradient rules read nodes through this one view, so that both understand an attribute the same way,
//! whichever opset wrote it (axes as attribute or as input, `auto_pad` or explicit pads).

use super::graph::{Graph, Node, TensorType, ValueId};
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

/// Window operators (`Conv`, `ConvTranspose`, pooling): everything per spatial dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Window {
    pub kernel: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    pub pads_begin: Vec<usize>,
    pub pads_end: Vec<usize>,
    pub ceil_mode: bool,
}

impl Window {
    /// Elements along dimension `i` that the kernel spans.
    pub fn span(&self, i: usize) -> usize {
        self.dilations[i] * (self.kernel[i] - 1) + 1
    }
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
        raw.map(|v| v.into_iter().map(|a| self.axis(a, rank)).collect())
            .transpose()
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

    /// Window of a convolution or pooling node over input 0. `kernel` overrides the attribute `kernel_shape`.
    pub fn window(&self, kernel: Option<&[usize]>) -> Result<Window> {
        let spatial = &self.shape(0)?[2..];
        let n = spatial.len();
        let list = |name: &str| -> Option<Vec<usize>> {
            self.node
                .attrs
                .opt_ints(name)
                .map(|v| v.iter().map(|x| (*x).max(0) as usize).collect())
        };
        let kernel = match (kernel, list("kernel_shape")) {
            (Some(k), _) => k.to_vec(),
            (None, Some(k)) => k,
            (None, None) => return Err(self.error("lacks the attribute kernel_shape")),
        };
        let strides = list("strides").unwrap_or_else(|| vec![1; n]);
        let dilations = list("dilations").unwrap_or_else(|| vec![1; n]);
        let pads = list("pads").unwrap_or_else(|| vec![0; 2 * n]);
        if kernel.len() != n || strides.len() != n || dilations.len() != n || pads.len() != 2 * n {
            return Err(self.error(format!("has attributes that do not fit {n} spatial dimensions")));
        }
        if kernel.contains(&0) || strides.contains(&0) {
            return Err(self.error("has a kernel or stride of 0"));
        }
        let mut w = Window {
            kernel,
            strides,
            dilations,
            pads_begin: pads[..n].to_vec(),
            pads_end: pads[n..].to_vec(),
            ceil_mode: self.int("ceil_mode", 0) != 0,
        };
        let auto = self.str("auto_pad", "NOTSET");
        if auto == "VALID" {
            w.pads_begin = vec![0; n];
            w.pads_end = vec![0; n];
        } else if auto.starts_with("SAME") {
            for i in 0..n {
                let out = spatial[i].div_ceil(w.strides[i]);
                let total = ((out - 1) * w.strides[i] + w.span(i)).saturating_sub(spatial[i]);
                let (small, large) = (total / 2, total - total / 2);
                (w.pads_begin[i], w.pads_end[i]) = if auto == "SAME_UPPER" {
                    (small, large)
                } else {
                    (large, small)
                };
            }
        }
        Ok(w)
    }

    /// The axes that a `Slice` node cuts.
    pub fn slice_axes(&self) -> Result<Vec<SliceAxis>> {
        let shape = self.shape(0)?;
        let need = |i: usize| {
            self.ints(i)?
                .ok_or_else(|| self.error(format!("lacks its input {i}")))
        };
        let (starts, ends) = (need(1)?, need(2)?);
        let axes = match self.ints(3)? {
            Some(a) => a
                .into_iter()
                .map(|a| self.axis(a, shape.len()))
                .collect::<Result<Vec<_>>>()?,
            None => (0..starts.len()).collect(),
        };
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
        let axes: Vec<usize> = match self.ints(3)? {
            Some(a) => a.into_iter().map(|a| self.axis(a, rank)).collect::<Result<_>>()?,
            None => (0..rank).collect(),
        };
        if given.len() != 2 * axes.len() {
            return Err(self.error("has pads that do not fit its axes"));
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
            let parts: Vec<usize> = parts.into_iter().map(|p| p.max(0) as usize).collect();
            if parts.iter().sum::<usize>() != n || parts.len() != outputs {
                return Err(self.error(format!("has parts {parts:?} that do not add up to {n}")));
            }
            return Ok(parts);
        }
        let each = n.div_ceil(outputs);
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

/// Geometry of a `ConvTranspose` node; its pads may be negative when `output_shape` asks for more than there is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TransposedWindow {
    pub window: Window,
    pub pads_begin: Vec<i64>,
    pub pads_end: Vec<i64>,
    pub output_padding: Vec<usize>,
}

impl View<'_> {
    /// Heads of queries and of keys and values: from the attributes (3-D inputs) or the shapes (4-D inputs).
    pub fn attention_heads(&self) -> Result<Heads> {
        let (q, k) = (self.shape(0)?, self.shape(1)?);
        if q.len() == 4 && k.len() == 4 {
            return Ok(Heads { q: q[1], kv: k[1] });
        }
        let heads = |name: &str| self.int(name, 0).max(0) as usize;
        let (q, kv) = (heads("q_num_heads"), heads("kv_num_heads"));
        if q == 0 || kv == 0 {
            return Err(self.error("has 3-D inputs but no numbers of heads"));
        }
        Ok(Heads { q, kv })
    }

    /// Strides, dilations, pads and output padding of a `ConvTranspose` node.
    pub fn conv_transpose_window(&self) -> Result<TransposedWindow> {
        let kernel = self.shape(1)?[2..].to_vec();
        let n = kernel.len();
        let mut window = self.window(Some(&kernel))?;
        let list = |name: &str| self.node.attrs.opt_ints(name).map(<[i64]>::to_vec);
        let output_padding: Vec<usize> = list("output_padding")
            .unwrap_or_else(|| vec![0; n])
            .iter()
            .map(|p| (*p).max(0) as usize)
            .collect();
        let auto = self.str("auto_pad", "NOTSET");
        let mut begin: Vec<i64> = window.pads_begin.iter().map(|p| *p as i64).collect();
        let mut end: Vec<i64> = window.pads_end.iter().map(|p| *p as i64).collect();
        let spatial = &self.shape(0)?[2..];
        let wanted: Option<Vec<i64>> = match list("output_shape") {
            Some(o) => Some(o[o.len().saturating_sub(n)..].to_vec()),
            None if auto.starts_with("SAME") => {
                Some((0..n).map(|i| (spatial[i] * window.strides[i]) as i64).collect())
            }
            None => None,
        };
        if let Some(wanted) = wanted {
            for i in 0..n {
                let full = (spatial[i] - 1) * window.strides[i] + window.span(i) + output_padding[i];
                let total = full as i64 - wanted[i];
                let half = total / 2;
                (begin[i], end[i]) = if auto == "SAME_UPPER" {
                    (half, total - half)
                } else {
                    (total - half, half)
                };
            }
        }
        window.pads_begin = begin.iter().map(|p| (*p).max(0) as usize).collect();
        window.pads_end = end.iter().map(|p| (*p).max(0) as usize).collect();
        Ok(TransposedWindow {
            window,
            pads_begin: begin,
            pads_end: end,
            output_padding,
        })
    }
}
