//! Convolutions.

use ortdpo::autodiff::{ConvInputGradient, DeriveOptions, gradients_with};
use ortdpo::onnx::{Attrs, Constant, Graph, TensorType, ValueId};
use ortdpo::tensor::{DType, Tensor};
use proptest::prelude::*;

use crate::gradcheck::Draw::Any;
use crate::gradcheck::{self, Case, input, numbers, property};

/// One spatial dimension of a convolution.
#[derive(Debug, Clone, Copy)]
struct Axis {
    kernel: usize,
    stride: usize,
    dilation: usize,
    begin: usize,
    end: usize,
    /// Elements of the input beyond the least that the kernel needs.
    extra: usize,
}

impl Axis {
    fn span(&self) -> usize {
        (self.kernel - 1) * self.dilation + 1
    }

    /// Elements of the input.
    fn size(&self) -> usize {
        (self.span() + self.extra)
            .saturating_sub(self.begin + self.end)
            .max(1)
    }
}

fn axes() -> impl Strategy<Value = Vec<Axis>> {
    let axis = (
        1..=4_usize,
        1..=3_usize,
        1..=2_usize,
        0..=2_usize,
        0..=2_usize,
        0..=5_usize,
    );
    let axis = axis.prop_map(|(kernel, stride, dilation, begin, end, extra)| Axis {
        kernel,
        stride,
        dilation,
        begin,
        end,
        extra,
    });
    proptest::collection::vec(axis, 1..=3)
}

/// (groups, input channels per group, output channels per group).
fn channels() -> impl Strategy<Value = (usize, usize, usize)> {
    (1..=3_usize, 1..=3_usize, 1..=3_usize)
}

fn attrs(axes: &[Axis], groups: usize) -> Attrs {
    let list = |f: fn(&Axis) -> usize| axes.iter().map(|a| f(a) as i64).collect::<Vec<_>>();
    Attrs::new()
        .ints("strides", &list(|a| a.stride))
        .ints("dilations", &list(|a| a.dilation))
        .ints("pads", &[list(|a| a.begin), list(|a| a.end)].concat())
        .int("group", groups as i64)
}

fn sizes(axes: &[Axis], f: fn(&Axis) -> usize) -> Vec<usize> {
    axes.iter().map(f).collect()
}

#[test]
fn convolutions_of_any_window() {
    property(
        40,
        (axes(), channels(), 1..=3_usize),
        |(axes, (groups, ins, outs), batch)| {
            let x = [vec![batch, groups * ins], sizes(&axes, Axis::size)].concat();
            let w = [vec![groups * outs, ins], sizes(&axes, |a| a.kernel)].concat();
            let name = format!("Conv {x:?} {w:?} {axes:?}");
            Case::new(
                name,
                13,
                &[input("x", &x, Any), input("w", &w, Any), input("b", &[w[0]], Any)],
            )
            .run(|g, v| Ok(vec![g.op("Conv", v, attrs(&axes, groups))?]));
        },
    );
}

#[test]
fn automatic_pads() {
    for auto in ["SAME_UPPER", "SAME_LOWER", "VALID"] {
        for (size, stride) in [(7, 2), (8, 3), (5, 1)] {
            let inputs = [input("x", &[2, 2, size], Any), input("w", &[3, 2, 4], Any)];
            Case::new(format!("Conv {auto} {size} {stride}"), 13, &inputs).run(|g, v| {
                let attrs = Attrs::new().str("auto_pad", auto).ints("strides", &[stride]);
                Ok(vec![g.op("Conv", v, attrs)?])
            });
        }
    }
}

#[test]
fn patches_and_large_windows() {
    // Patch embedding; patches that leave a rest; more taps than are worth a product each, with and without groups.
    for (x, w, stride, groups) in [
        ([2, 3, 8, 12], [5, 3, 4, 4], [4, 4], 1),
        ([2, 3, 9, 14], [5, 3, 4, 4], [4, 4], 1),
        ([2, 3, 12, 13], [2, 3, 9, 8], [1, 2], 1),
        ([2, 4, 12, 13], [6, 2, 9, 8], [2, 1], 2),
    ] {
        let inputs = [input("x", &x, Any), input("w", &w, Any)];
        Case::new(format!("Conv {x:?} {w:?} {stride:?}"), 13, &inputs).run(|g, v| {
            let attrs = Attrs::new().ints("strides", &stride).int("group", groups);
            Ok(vec![g.op("Conv", v, attrs)?])
        });
    }
}

#[test]
fn transposed_convolutions_of_any_window() {
    let more = proptest::collection::vec(0..=2_usize, 3);
    property(
        40,
        (axes(), channels(), more),
        |(mut axes, (groups, ins, outs), more)| {
            // Pads may not cut off everything, and output padding is less than the stride.
            for a in &mut axes {
                a.begin = a.begin.min(a.span() - 1);
                a.end = a.end.min(a.span() - 1 - a.begin);
            }
            let padding: Vec<i64> = axes
                .iter()
                .zip(&more)
                .map(|(a, m)| (*m % a.stride) as i64)
                .collect();
            let x = [vec![2, groups * ins], sizes(&axes, |a| a.extra + 1)].concat();
            let w = [vec![groups * ins, outs], sizes(&axes, |a| a.kernel)].concat();
            let name = format!("ConvTranspose {x:?} {w:?} {axes:?} {padding:?}");
            let inputs = [
                input("x", &x, Any),
                input("w", &w, Any),
                input("b", &[groups * outs], Any),
            ];
            Case::new(name, 13, &inputs).run(|g, v| {
                let attrs = attrs(&axes, groups).ints("output_padding", &padding);
                Ok(vec![g.op("ConvTranspose", v, attrs)?])
            });
        },
    );
}

#[test]
fn transposed_convolutions_of_a_given_output_shape() {
    for (auto, shape) in [
        ("NOTSET", Some([9, 8])),
        ("SAME_UPPER", None),
        ("SAME_LOWER", None),
        ("VALID", None),
    ] {
        let inputs = [input("x", &[1, 2, 4, 3], Any), input("w", &[2, 3, 3, 4], Any)];
        Case::new(format!("ConvTranspose {auto} {shape:?}"), 13, &inputs).run(|g, v| {
            let mut attrs = Attrs::new().str("auto_pad", auto).ints("strides", &[2, 2]);
            if let Some(shape) = shape {
                attrs = attrs.ints("output_shape", &shape);
            }
            Ok(vec![g.op("ConvTranspose", v, attrs)?])
        });
    }
}

/// `y = conv(x, w)` with a constant weight, and the gradient of `x` in the form that `options` ask for.
fn input_gradient(axes: &[Axis], groups: usize, options: DeriveOptions) -> (Graph, ValueId) {
    let mut g = Graph::new("conv", 17);
    let (ins, outs) = (2, 3);
    let x_shape = [vec![2, groups * ins], sizes(axes, Axis::size)].concat();
    let w_shape = [vec![groups * outs, ins], sizes(axes, |a| a.kernel)].concat();
    let count: usize = w_shape.iter().product();
    let weight: Vec<f64> = (0..count)
        .map(|i| ((i * 37 + 11) % 23) as f64 / 23.0 - 0.5)
        .collect();
    let x = g.add_input("x", TensorType::new(DType::F32, x_shape));
    let w = g.add_constant("w", Constant::floats(DType::F32, &w_shape, &weight));
    let y = g.op("Conv", &[x, w], attrs(axes, groups)).unwrap();
    let ty = g.ty(y).clone();
    let dy = g.add_input("dy", ty);
    let dx = gradients_with(&mut g, &[(y, dy)], &[x], options).unwrap()[0].unwrap();
    let dx = g.as_output(dx, "dx").unwrap();
    g.outputs.push(dx);
    g.prune();
    (g, dy)
}

#[test]
fn the_flipped_form_equals_the_transposed_one() {
    gradcheck::load_runtime();
    property(20, (axes(), 1..=2_usize), |(mut axes, groups)| {
        axes.iter_mut().for_each(|a| a.stride = 1);
        let result = |form| {
            let (g, dy) = input_gradient(
                &axes,
                groups,
                DeriveOptions {
                    conv_input: form,
                    ..DeriveOptions::default()
                },
            );
            let mut rng = gradcheck::rng("flipped");
            let feed = gradcheck::gaussian(g.ty(dy), &mut rng);
            let x = Tensor::f32(g.shape(g.inputs[0]), vec![0.0; g.ty(g.inputs[0]).len()]);
            let mut session = gradcheck::session(&g).unwrap();
            let outputs = session.run(&[("x", &x), ("dy", &feed)]);
            (
                g.nodes.iter().any(|n| n.op == "ConvTranspose"),
                numbers(&outputs.unwrap().take("dx").unwrap()),
            )
        };
        let (transposed, a) = result(ConvInputGradient::Transpose);
        let (also_transposed, b) = result(ConvInputGradient::Flipped);
        // Pads beyond the window's reach leave only the transposed form.
        let fits = axes.iter().all(|a| a.begin.max(a.end) < a.span());
        assert_eq!((transposed, also_transposed), (true, !fits));
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    });
}
