//! Geometry of operators that slide a window over spatial dimensions: `Conv`, `ConvTranspose`, pooling.

use super::view::View;
use crate::Result;

/// A window, everything per spatial dimension.
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
        self.dilations[i] * self.kernel[i].saturating_sub(1) + 1
    }
}

/// Geometry of a `ConvTranspose` node; its pads may be negative when `output_shape` asks for more than there is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TransposedWindow {
    pub window: Window,
    pub pads_begin: Vec<i64>,
    pub pads_end: Vec<i64>,
    pub output_padding: Vec<usize>,
    /// Elements along each dimension before the pads are cut off.
    pub full: Vec<i64>,
}

impl View<'_> {
    /// Window of a convolution or pooling node over input 0. `kernel` overrides the attribute `kernel_shape`.
    pub fn window(&self, kernel: Option<&[usize]>) -> Result<Window> {
        let shape = self.shape(0)?;
        let spatial = shape
            .get(2..)
            .ok_or_else(|| self.error(format!("slides over a shape without room: {shape:?}")))?;
        let n = spatial.len();
        let kernel = match (kernel, self.sizes("kernel_shape")?) {
            (Some(k), _) => k.to_vec(),
            (None, Some(k)) => k,
            (None, None) => return Err(self.error("lacks the attribute kernel_shape")),
        };
        let strides = self.sizes("strides")?.unwrap_or_else(|| vec![1; n]);
        let dilations = self.sizes("dilations")?.unwrap_or_else(|| vec![1; n]);
        let auto = self.str("auto_pad", "NOTSET");
        let pads = match auto {
            "NOTSET" => self.sizes("pads")?.unwrap_or_else(|| vec![0; 2 * n]),
            _ => vec![0; 2 * n],
        };
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
        if auto.starts_with("SAME") {
            for (i, size) in spatial.iter().enumerate() {
                let steps = size.div_ceil(w.strides[i]).saturating_sub(1);
                let total = (steps * w.strides[i] + w.span(i)).saturating_sub(*size);
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

    /// Strides, dilations, pads and output padding of a `ConvTranspose` node.
    pub fn conv_transpose_window(&self) -> Result<TransposedWindow> {
        let (x, w) = (self.shape(0)?, self.shape(1)?);
        let (Some(spatial), Some(kernel), true) = (x.get(2..), w.get(2..), x.len() == w.len()) else {
            return Err(self.error(format!("cannot convolve {x:?} with {w:?}")));
        };
        let n = kernel.len();
        let mut window = self.window(Some(kernel))?;
        let output_padding = self.sizes("output_padding")?.unwrap_or_else(|| vec![0; n]);
        let wanted = self.sizes("output_shape")?;
        if output_padding.len() != n || wanted.as_ref().is_some_and(|o| o.len() < n) {
            return Err(self.error(format!("has attributes that do not fit {n} spatial dimensions")));
        }
        let mut full = Vec::with_capacity(n);
        for i in 0..n {
            let strides = spatial[i]
                .checked_sub(1)
                .and_then(|d| d.checked_mul(window.strides[i]));
            let size = strides.and_then(|s| i64::try_from(s + window.span(i) + output_padding[i]).ok());
            full.push(
                size.ok_or_else(|| self.error(format!("cannot stretch {x:?} by {:?}", window.strides)))?,
            );
        }
        let auto = self.str("auto_pad", "NOTSET");
        let mut begin: Vec<i64> = window.pads_begin.iter().map(|p| *p as i64).collect();
        let mut end: Vec<i64> = window.pads_end.iter().map(|p| *p as i64).collect();
        let wanted: Option<Vec<usize>> = match wanted {
            Some(o) => Some(o[o.len() - n..].to_vec()),
            None if auto.starts_with("SAME") => {
                Some((0..n).map(|i| spatial[i] * window.strides[i]).collect())
            }
            None => None,
        };
        if let Some(wanted) = wanted {
            for i in 0..n {
                let total = full[i] - wanted[i] as i64;
                let half = total / 2;
                (begin[i], end[i]) = if total < 0 {
                    // More is asked for than there is: zeros behind it.
                    (0, total)
                } else if auto == "SAME_UPPER" {
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
            full,
        })
    }
}
