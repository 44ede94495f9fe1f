//! Resizing and pooling.

use ortdpo::onnx::Attrs;
use ortdpo::tensor::DType;
use proptest::prelude::*;

use crate::gradcheck::Draw::{Any, Distinct};
use crate::gradcheck::{Case, input, property, shapes};

const COORDINATES: [&str; 5] = [
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
];
const ROUNDING: [&str; 4] = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"];

/// Resizes the last two of four dimensions, by scales or to sizes.
fn resize(mode: &str, from: [usize; 2], to: [usize; 2], by_scales: bool, attrs: Attrs, opset: i64) {
    let shape = [2, 2, from[0], from[1]];
    let name = format!("Resize {mode} {from:?} {to:?} scales {by_scales} {attrs:?}");
    let attrs = attrs.str("mode", mode);
    Case::new(name, opset, &[input("x", &shape, Any)]).run(|g, x| {
        if by_scales {
            let scales = [
                1.0,
                1.0,
                to[0] as f64 / from[0] as f64,
                to[1] as f64 / from[1] as f64,
            ];
            let scales = g.float_tensor(DType::F32, &[4], &scales);
            return g.op_n("Resize", &[Some(x[0]), None, Some(scales)], attrs.clone(), 1);
        }
        let sizes = g.ints(&[2, 2, to[0] as i64, to[1] as i64]);
        g.op_n("Resize", &[Some(x[0]), None, None, Some(sizes)], attrs.clone(), 1)
    });
}

fn pair() -> impl Strategy<Value = [usize; 2]> {
    [2..=6_usize, 2..=6_usize]
}

#[test]
fn nearest_neighbours() {
    let modes = (0..COORDINATES.len(), 0..ROUNDING.len());
    property(
        60,
        (pair(), pair(), modes, any::<bool>()),
        |(from, to, (coordinates, rounding), by_scales)| {
            let attrs = Attrs::new()
                .str("coordinate_transformation_mode", COORDINATES[coordinates])
                .str("nearest_mode", ROUNDING[rounding]);
            resize("nearest", from, to, by_scales, attrs, 19);
        },
    );
}

#[test]
fn nearest_neighbours_a_whole_number_of_times() {
    for times in [[2, 2], [3, 1], [1, 4]] {
        let attrs = Attrs::new()
            .str("coordinate_transformation_mode", "asymmetric")
            .str("nearest_mode", "floor");
        resize("nearest", [3, 2], [3 * times[0], 2 * times[1]], true, attrs, 13);
    }
}

#[test]
fn linear_and_cubic_interpolation() {
    let options = (0..COORDINATES.len(), any::<(bool, bool, bool)>());
    property(
        60,
        (pair(), pair(), options),
        |(from, to, (coordinates, (cubic, exclude, by_scales)))| {
            let mut attrs = Attrs::new().str("coordinate_transformation_mode", COORDINATES[coordinates]);
            if cubic {
                attrs = attrs
                    .float("cubic_coeff_a", -0.5)
                    .int("exclude_outside", exclude.into());
            }
            resize(
                if cubic { "cubic" } else { "linear" },
                from,
                to,
                by_scales,
                attrs,
                19,
            );
        },
    );
}

#[test]
fn antialiased_interpolation() {
    property(
        40,
        (pair(), pair(), any::<(bool, bool, bool)>()),
        |(from, to, (cubic, exclude, align))| {
            let coordinates = if align { "align_corners" } else { "half_pixel" };
            let mut attrs = Attrs::new()
                .str("coordinate_transformation_mode", coordinates)
                .int("antialias", 1);
            if cubic {
                attrs = attrs.int("exclude_outside", exclude.into());
            }
            resize(if cubic { "cubic" } else { "linear" }, from, to, false, attrs, 18);
        },
    );
}

#[test]
fn chosen_axes_and_kept_aspect_ratio() {
    for policy in ["stretch", "not_larger", "not_smaller"] {
        Case::new(format!("Resize {policy}"), 18, &[input("x", &[1, 2, 4, 6], Any)]).run(|g, x| {
            let sizes = g.ints(&[7, 8]);
            let attrs = Attrs::new()
                .str("mode", "linear")
                .ints("axes", &[2, 3])
                .str("keep_aspect_ratio_policy", policy);
            g.op_n("Resize", &[Some(x[0]), None, None, Some(sizes)], attrs, 1)
        });
    }
    // One spatial dimension.
    Case::new("Resize 1-D", 18, &[input("x", &[2, 3, 4], Any)]).run(|g, x| {
        let scales = g.float_tensor(DType::F32, &[3], &[1.0, 1.0, 2.5]);
        g.op_n(
            "Resize",
            &[Some(x[0]), None, Some(scales)],
            Attrs::new().str("mode", "linear"),
            1,
        )
    });
}

/// Window of a pooling along one axis, and how much larger than the window the input is.
type PoolAxis = ((usize, usize, usize), (usize, usize), usize);

fn pool_axes() -> impl Strategy<Value = Vec<PoolAxis>> {
    let axis = (
        (1..=3_usize, 1..=3_usize, 1..=2_usize),
        (0..=2_usize, 0..=2_usize),
        0..=5_usize,
    );
    proptest::collection::vec(axis, 1..=2)
}

/// Attributes and input size for `axes`. Pads stay below the kernel, as the operators demand.
fn pool_window(axes: &[PoolAxis], dilated: bool, ceil: bool) -> (Attrs, Vec<usize>) {
    let dilation = |a: &PoolAxis| if dilated { a.0.2 } else { 1 };
    let pads = |a: &PoolAxis| (a.1.0.min(a.0.0 - 1), a.1.1.min(a.0.0 - 1));
    let size = |a: &PoolAxis| {
        let span = (a.0.0 - 1) * dilation(a) + 1;
        (span + a.2).saturating_sub(pads(a).0 + pads(a).1).max(1)
    };
    let list = |f: &dyn Fn(&PoolAxis) -> usize| axes.iter().map(|a| f(a) as i64).collect::<Vec<_>>();
    let mut attrs = Attrs::new()
        .ints("kernel_shape", &list(&|a| a.0.0))
        .ints("strides", &list(&|a| a.0.1))
        .ints("pads", &[list(&|a| pads(a).0), list(&|a| pads(a).1)].concat())
        .int("ceil_mode", ceil.into());
    if dilated {
        attrs = attrs.ints("dilations", &list(&dilation));
    }
    (attrs, axes.iter().map(size).collect())
}

#[test]
fn means_over_windows() {
    property(
        50,
        (pool_axes(), any::<(bool, bool, bool)>()),
        |(axes, (ceil, include, dilated))| {
            let (attrs, size) = pool_window(&axes, dilated, ceil);
            let attrs = attrs.int("count_include_pad", include.into());
            let shape = [&[2, 2], &size[..]].concat();
            Case::new(
                format!("AveragePool {shape:?} {attrs:?}"),
                19,
                &[input("x", &shape, Any)],
            )
            .run(|g, x| Ok(vec![g.op("AveragePool", x, attrs.clone())?]));
        },
    );
}

#[test]
fn largest_of_windows() {
    property(
        50,
        (pool_axes(), any::<(bool, bool)>()),
        |(axes, (ceil, dilated))| {
            let (attrs, size) = pool_window(&axes, dilated, ceil);
            let shape = [&[1, 2], &size[..]].concat();
            // Steps must not change which element is the largest.
            Case::new(
                format!("MaxPool {shape:?} {attrs:?}"),
                13,
                &[input("x", &shape, Distinct)],
            )
            .f32(1e-3, 3e-3)
            .run(|g, x| Ok(vec![g.op("MaxPool", x, attrs.clone())?]));
        },
    );
}

#[test]
fn whole_images() {
    property(8, shapes(1..=3, 4), |positions| {
        let shape = [&[2, 3], &positions[..]].concat();
        for op in ["GlobalAveragePool", "GlobalMaxPool"] {
            Case::new(format!("{op} {shape:?}"), 13, &[input("x", &shape, Distinct)])
                .f32(1e-3, 3e-3)
                .run(|g, x| Ok(vec![g.op(op, x, Attrs::new())?]));
        }
    });
}
