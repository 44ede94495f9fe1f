//! Reductions.

use ortdpo::onnx::{Attrs, Graph, TensorType, ValueId};
use ortdpo::tensor::{DType, Tensor};
use proptest::prelude::*;

use crate::gradcheck::Draw::{Any, AwayFromZero, Distinct, Positive};
use crate::gradcheck::{self, Case, Draw, input, property, shapes};

/// A shape, some of its axes (perhaps none), whether they are kept, and an operator set on either side of 18, where the
/// axes became an input.
fn reductions() -> impl Strategy<Value = (Vec<usize>, Vec<i64>, bool, i64)> {
    (
        shapes(1..=4, 3),
        proptest::collection::vec(any::<bool>(), 4),
        any::<bool>(),
        prop::sample::select(vec![13, 18]),
    )
        .prop_map(|(shape, chosen, keep, opset)| {
            let rank = shape.len();
            // Every other axis is given from the end.
            let axis = |i: usize| {
                if i.is_multiple_of(2) {
                    i as i64
                } else {
                    i as i64 - rank as i64
                }
            };
            let axes = (0..rank).filter(|i| chosen[*i]).map(axis).collect();
            (shape, axes, keep, opset)
        })
}

/// The reduction as a model holds it; no axes at all mean all of them.
fn reduce(g: &mut Graph, op: &str, x: ValueId, axes: &[i64], keep: bool) -> ortdpo::Result<ValueId> {
    let attrs = Attrs::new().int("keepdims", keep.into());
    if axes.is_empty() {
        return g.op(op, &[x], attrs);
    }
    if g.opset >= 18 || op == "ReduceSum" {
        let axes = g.ints(axes);
        return g.op(op, &[x, axes], attrs);
    }
    g.op(op, &[x], attrs.ints("axes", axes))
}

#[test]
fn reductions_over_any_axes() {
    let table: [(&str, Draw); 10] = [
        ("ReduceSum", Any),
        ("ReduceMean", Any),
        ("ReduceMax", Distinct),
        ("ReduceMin", Distinct),
        ("ReduceProd", AwayFromZero),
        ("ReduceL1", AwayFromZero),
        ("ReduceL2", AwayFromZero),
        ("ReduceSumSquare", Any),
        ("ReduceLogSum", Positive),
        ("ReduceLogSumExp", Any),
    ];
    for (op, draw) in table {
        property(8, reductions(), |(shape, axes, keep, opset)| {
            let name = format!("{op} {shape:?} {axes:?} {keep} opset {opset}");
            Case::new(name, opset, &[input("x", &shape, draw)])
                .f32(if matches!(draw, Distinct) { 4e-3 } else { 2e-2 }, 3e-3)
                .run(|g, x| Ok(vec![reduce(g, op, x[0], &axes, keep)?]));
        });
    }
}

#[test]
fn no_axes_may_mean_no_reduction() {
    for op in ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceProd"] {
        Case::new(format!("{op} of nothing"), 18, &[input("x", &[2, 3], Any)]).run(|g, x| {
            let y = g.op(op, x, Attrs::new().int("noop_with_empty_axes", 1))?;
            Ok(vec![g.mul(y, y)?])
        });
    }
}

/// `x.grad` of a reduction over the last axis, for a cotangent of ones.
fn gradient(op: &str, x: &[f32]) -> Vec<f64> {
    gradcheck::load_runtime();
    let mut g = Graph::new("at", 18);
    let input = g.add_input("x", TensorType::new(DType::F32, [1, x.len()]));
    let y = reduce(&mut g, op, input, &[-1], false).unwrap();
    let y = g.as_output(y, "y").unwrap();
    g.outputs.push(y);
    let derived = ortdpo::autodiff::derive(g, &"x".parse().unwrap()).unwrap().graph;
    let feeds = [
        ("x", Tensor::f32(&[1, x.len()], x.to_vec())),
        ("y.cotangent", Tensor::f32(&[1], vec![1.0])),
    ];
    let feeds: Vec<_> = feeds.iter().map(|(n, t)| (*n, t)).collect();
    let mut found = gradcheck::session(&derived).unwrap().run(&feeds).unwrap();
    gradcheck::numbers(&found.take("x.grad").unwrap())
}

#[test]
fn products_with_zeros_have_finite_gradients() {
    assert_eq!(gradient("ReduceProd", &[2.0, 3.0, 4.0]), [12.0, 8.0, 6.0]);
    assert_eq!(gradient("ReduceProd", &[2.0, 0.0, 4.0]), [0.0, 8.0, 0.0]);
    assert_eq!(gradient("ReduceProd", &[0.0, 0.0, 4.0]), [0.0, 0.0, 0.0]);
}

#[test]
fn norms_have_a_gradient_of_zero_at_zero() {
    assert_eq!(gradient("ReduceL2", &[0.0, 0.0]), [0.0, 0.0]);
    assert_eq!(gradient("ReduceL1", &[0.0, 0.0]), [0.0, 0.0]);
    assert_eq!(
        gradient("ReduceL2", &[3.0, 4.0]),
        [3.0_f32 / 5.0, 4.0 / 5.0].map(f64::from)
    );
}

#[test]
fn tied_extremes_share_the_gradient() {
    assert_eq!(gradient("ReduceMax", &[1.0, 5.0, 5.0]), [0.0, 0.5, 0.5]);
    assert_eq!(gradient("ReduceMin", &[1.0, 1.0, 5.0]), [0.5, 0.5, 0.0]);
}
