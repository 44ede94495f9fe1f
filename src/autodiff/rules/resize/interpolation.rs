//! Which input elements each output element of a `Resize` is made from, and with what weights, along one axis.
//!
//! Coordinates are computed in single precision as ONNX Runtime computes them, so that rounding at ties picks the same
//! neighbour.

use crate::Result;
use crate::onnx::View;

/// One resized axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    /// Position among the dimensions.
    pub position: usize,
    /// Elements before.
    pub from: usize,
    /// Elements after.
    pub to: usize,
    /// Scale that coordinates are computed with; not always `to / from`.
    scale: f32,
}

impl Axis {
    /// The axes that the node really resizes; `out` is its output's shape.
    pub fn of(v: &View, out: &[usize]) -> Result<Vec<Self>> {
        let shape = v.shape(0)?;
        let upsample = v.node.op == "Upsample";
        let positions: Vec<usize> = match v.node.attrs.opt_ints("axes") {
            Some(a) => a.iter().map(|a| v.axis(*a, shape.len())).collect::<Result<_>>()?,
            None => (0..shape.len()).collect(),
        };
        let scales = v.floats(if upsample { 1 } else { 2 })?.filter(|s| !s.is_empty());
        let sizes = if upsample {
            None
        } else {
            v.ints(3)?.filter(|s| !s.is_empty())
        };
        let ratio = |i: usize, n: usize| n as f32 / shape[positions[i]] as f32;
        // Where the aspect ratio is kept, one scale holds for all axes, and sizes are rounded to it.
        let ratios = sizes
            .iter()
            .flatten()
            .enumerate()
            .map(|(i, n)| ratio(i, *n as usize));
        let common = match v.str("keep_aspect_ratio_policy", "stretch") {
            "not_larger" => sizes.as_ref().map(|_| ratios.fold(f32::INFINITY, f32::min)),
            "not_smaller" => sizes.as_ref().map(|_| ratios.fold(0.0, f32::max)),
            _ => None,
        };
        let axis = |(i, position): (usize, &usize)| {
            let to = out[*position];
            let scale = match (&scales, common) {
                (_, Some(scale)) => scale,
                (Some(scales), None) => scales[i] as f32,
                (None, None) => ratio(i, to),
            };
            Self {
                position: *position,
                from: shape[*position],
                to,
                scale,
            }
        };
        let changed = |a: &Self| a.to != a.from || a.scale != 1.0;
        Ok(positions.iter().enumerate().map(axis).filter(changed).collect())
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Nearest(Round),
    Linear,
    /// Catmull-Rom type with this coefficient.
    Cubic(f32),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Round {
    PreferFloor,
    PreferCeil,
    Floor,
    Ceil,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Coordinates {
    Asymmetric,
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
}

/// How a `Resize` node samples its input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sampling {
    mode: Mode,
    coordinates: Coordinates,
    exclude_outside: bool,
    antialias: bool,
}

impl Sampling {
    /// Reads the node's attributes; `None` for a mode without a rule.
    pub fn of(v: &View) -> Result<Option<Self>> {
        let upsample = v.node.op == "Upsample";
        let round = match v.str(
            "nearest_mode",
            if upsample { "floor" } else { "round_prefer_floor" },
        ) {
            "round_prefer_floor" => Round::PreferFloor,
            "round_prefer_ceil" => Round::PreferCeil,
            "floor" => Round::Floor,
            "ceil" => Round::Ceil,
            _ => return Ok(None),
        };
        let mode = match v.str("mode", "nearest") {
            "nearest" => Mode::Nearest(round),
            "linear" => Mode::Linear,
            "cubic" => Mode::Cubic(v.float("cubic_coeff_a", -0.75)),
            _ => return Ok(None),
        };
        let coordinates = match v.str(
            "coordinate_transformation_mode",
            if upsample { "asymmetric" } else { "half_pixel" },
        ) {
            "asymmetric" => Coordinates::Asymmetric,
            "half_pixel" => Coordinates::HalfPixel,
            "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
            "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
            "align_corners" => Coordinates::AlignCorners,
            _ => return Ok(None),
        };
        Ok(Some(Self {
            mode,
            coordinates,
            exclude_outside: v.int("exclude_outside", 0) != 0,
            antialias: v.int("antialias", 0) != 0,
        }))
    }

    /// How often every element is repeated, if that is all the resize does along this axis.
    pub fn repeats(&self, axis: &Axis) -> Option<usize> {
        let Mode::Nearest(round) = self.mode else {
            return None;
        };
        let times = axis.to / axis.from.max(1);
        let whole = times * axis.from == axis.to;
        (whole && (0..axis.to).all(|o| self.nearest(axis, round, o) == o / times)).then_some(times)
    }

    /// The matrix (to × from, row-major) that resizes along `axis`.
    pub fn matrix(&self, axis: &Axis) -> Vec<f64> {
        let mut m = vec![0.0; axis.to * axis.from];
        for o in 0..axis.to {
            let row = &mut m[o * axis.from..(o + 1) * axis.from];
            match self.mode {
                Mode::Nearest(round) => row[self.nearest(axis, round, o)] = 1.0,
                Mode::Linear | Mode::Cubic(_) => {
                    for (i, weight) in self.weights(axis, o) {
                        row[i] += weight;
                    }
                }
            }
        }
        m
    }

    /// Position of output element `o` among the input elements.
    fn source(&self, axis: &Axis, o: usize) -> f32 {
        let (x, scale) = (o as f32, axis.scale);
        let (from, to) = (axis.from as f32, axis.to as f32);
        match self.coordinates {
            Coordinates::Asymmetric => x / scale,
            Coordinates::HalfPixel => (x + 0.5) / scale - 0.5,
            Coordinates::PytorchHalfPixel if axis.to <= 1 => 0.0,
            Coordinates::PytorchHalfPixel => (x + 0.5) / scale - 0.5,
            Coordinates::AlignCorners if axis.to <= 1 => 0.0,
            Coordinates::AlignCorners => x * (from - 1.0) / (to - 1.0),
            Coordinates::HalfPixelSymmetric => {
                let adjustment = to / (scale * from);
                from / 2.0 * (1.0 - adjustment) + (x + 0.5) / scale - 0.5
            }
        }
    }

    fn nearest(&self, axis: &Axis, round: Round, o: usize) -> usize {
        let x = self.source(axis, o);
        let tie = x == x.trunc() + 0.5;
        let i = match round {
            Round::Floor => x.floor(),
            Round::Ceil => x.ceil(),
            Round::PreferFloor if tie => x.floor(),
            Round::PreferCeil if tie => x.ceil(),
            Round::PreferFloor | Round::PreferCeil => x.round(),
        };
        (i.max(0.0) as usize).min(axis.from - 1)
    }

    /// Input elements and weights of output element `o`. Positions outside count for the element at the edge, or not at
    /// all with `exclude_outside`; the weights add up to 1.
    fn weights(&self, axis: &Axis, o: usize) -> Vec<(usize, f64)> {
        let mut x = f64::from(self.source(axis, o));
        let last = axis.from - 1;
        // Without antialiasing, linear interpolation does not reach past the edges in any coordinate mode.
        if self.mode == Mode::Linear && !self.antialias {
            x = x.clamp(0.0, last as f64);
        }
        let shrink = if self.antialias {
            f64::from(axis.scale).min(1.0)
        } else {
            1.0
        };
        let reach = self.reach() / shrink;
        let (first, end) = ((x - reach).floor() as i64, (x + reach).ceil() as i64);
        let inside = |i: i64| (0..=last as i64).contains(&i);
        let found: Vec<(usize, f64)> = (first..=end)
            .filter(|i| !self.exclude_outside || inside(*i))
            .map(|i| {
                (
                    i.clamp(0, last as i64) as usize,
                    self.kernel((i as f64 - x) * shrink),
                )
            })
            .filter(|(_, w)| *w != 0.0)
            .collect();
        let sum: f64 = found.iter().map(|(_, w)| w).sum();
        found.into_iter().map(|(i, w)| (i, w / sum)).collect()
    }

    /// How far from its centre the kernel is not 0.
    fn reach(&self) -> f64 {
        if matches!(self.mode, Mode::Cubic(_)) {
            2.0
        } else {
            1.0
        }
    }

    /// Interpolation kernel at distance `d`; the cubic one is that of Keys 1981.
    fn kernel(&self, d: f64) -> f64 {
        let d = d.abs();
        match self.mode {
            Mode::Cubic(a) => {
                let a = f64::from(a);
                if d <= 1.0 {
                    ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
                } else if d < 2.0 {
                    ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
                } else {
                    0.0
                }
            }
            _ => (1.0 - d).max(0.0),
        }
    }
}
