//! Arithmetic, functions and activations.

use ortdpo::onnx::{Attrs, Constant, TensorType};
use ortdpo::tensor::{DType, Tensor};
use proptest::prelude::*;

use crate::gradcheck::Draw::{Any, AwayFromZero, Between, Distinct, InsideOne, Positive};
use crate::gradcheck::{self, Case, Draw, Failure, Settings, broadcast_shapes, input, property, shapes};

#[test]
fn a_wrong_slope_is_noticed() {
    gradcheck::load_runtime();
    let mut g = ortdpo::onnx::Graph::new("kink", 17);
    let x = g.add_input("x", TensorType::new(DType::F32, [1]));
    let y = g.unary("Relu", x).unwrap();
    let y = g.as_output(y, "y").unwrap();
    g.outputs.push(y);
    let at_zero = vec![("x".to_owned(), Tensor::f32(&[1], vec![0.0]))];
    let found = gradcheck::check(&g, &at_zero, Settings::F32, &mut gradcheck::rng("kink"));
    assert!(matches!(found, Err(Failure::Mismatch(_))), "{found:?}");
}

#[test]
fn arithmetic_of_broadcast_operands() {
    for op in ["Add", "Sub", "Mul", "Div"] {
        property(8, broadcast_shapes(2), |s| {
            let operands = [input("a", &s[0], AwayFromZero), input("b", &s[1], AwayFromZero)];
            Case::new(format!("{op} {s:?}"), 13, &operands)
                .run(|g, x| Ok(vec![g.op(op, x, Attrs::new())?]));
        });
    }
}

#[test]
fn operators_of_many_operands() {
    for op in ["Sum", "Mean", "Max", "Min"] {
        property(6, (1..4_usize).prop_flat_map(broadcast_shapes), |s| {
            // Values apart by more than the steps, within and between the operands.
            let operand = |(i, shape): (usize, &Vec<usize>)| {
                let low = [-1.5, -0.4, 0.7][i] + if shape.len() > 2 { 0.15 } else { 0.0 };
                input(
                    &format!("x{i}"),
                    shape,
                    if op.starts_with('M') {
                        Between(low, low + 1.4)
                    } else {
                        Any
                    },
                )
            };
            let operands: Vec<_> = s.iter().enumerate().map(operand).collect();
            Case::new(format!("{op} {s:?}"), 13, &operands)
                .f32(2e-3, 1e-2)
                .run(|g, x| Ok(vec![g.op(op, x, Attrs::new())?]));
        });
    }
}

#[test]
fn ties_are_shared() {
    gradcheck::load_runtime();
    for op in ["Max", "Min"] {
        let mut g = ortdpo::onnx::Graph::new("ties", 13);
        let ty = TensorType::new(DType::F32, [1]);
        let x: Vec<_> = ["a", "b", "c"]
            .iter()
            .map(|n| g.add_input(n, ty.clone()))
            .collect();
        let y = g.op(op, &x, Attrs::new()).unwrap();
        let y = g.as_output(y, "y").unwrap();
        g.outputs.push(y);
        let derived = ortdpo::autodiff::derive(g, &"a,b,c".parse().unwrap())
            .unwrap()
            .graph;
        let other = if op == "Max" { -5.0 } else { 5.0 };
        let one = |v| Tensor::f32(&[1], vec![v]);
        let feeds = [
            ("a", one(2.0)),
            ("b", one(2.0)),
            ("c", one(other)),
            ("y.cotangent", one(3.0)),
        ];
        let feeds: Vec<_> = feeds.iter().map(|(n, t)| (*n, t)).collect();
        let mut found = gradcheck::session(&derived).unwrap().run(&feeds).unwrap();
        let mut gradient = |n: &str| gradcheck::numbers(&found.take(n).unwrap())[0];
        assert_eq!(
            [gradient("a.grad"), gradient("b.grad"), gradient("c.grad")],
            [1.5, 1.5, 0.0],
            "{op}"
        );
    }
}

#[test]
fn functions_of_one_number() {
    let table: [(&str, Draw); 20] = [
        ("Neg", Any),
        ("Abs", AwayFromZero),
        ("Sqrt", Positive),
        ("Exp", Any),
        ("Log", Positive),
        ("Reciprocal", AwayFromZero),
        ("Erf", Any),
        ("Sin", Any),
        ("Cos", Any),
        ("Tan", InsideOne),
        ("Sinh", Any),
        ("Cosh", Any),
        ("Asin", InsideOne),
        ("Acos", InsideOne),
        ("Atan", Any),
        ("Asinh", Any),
        ("Acosh", Between(1.3, 2.5)),
        ("Atanh", InsideOne),
        ("Identity", Any),
        ("Dropout", Any),
    ];
    for (op, draw) in table {
        property(3, shapes(0..=3, 4), |s| {
            Case::new(format!("{op} {s:?}"), 13, &[input("x", &s, draw)])
                .run(|g, x| Ok(vec![g.unary(op, x[0])?]));
        });
    }
}

#[test]
fn activations() {
    let table: [(&str, i64, Attrs); 18] = [
        ("Sigmoid", 13, Attrs::new()),
        ("Tanh", 13, Attrs::new()),
        ("Relu", 13, Attrs::new()),
        ("LeakyRelu", 13, Attrs::new()),
        ("LeakyRelu", 13, Attrs::new().float("alpha", 0.3)),
        ("ThresholdedRelu", 13, Attrs::new().float("alpha", 0.1)),
        ("Elu", 13, Attrs::new().float("alpha", 1.7)),
        ("Celu", 13, Attrs::new().float("alpha", 0.6)),
        ("Selu", 13, Attrs::new()),
        ("Selu", 13, Attrs::new().float("alpha", 0.9).float("gamma", 1.3)),
        ("HardSigmoid", 13, Attrs::new()),
        (
            "HardSigmoid",
            13,
            Attrs::new().float("alpha", 0.9).float("beta", 0.4),
        ),
        ("HardSwish", 14, Attrs::new()),
        ("Softplus", 13, Attrs::new()),
        ("Softsign", 13, Attrs::new()),
        ("Gelu", 20, Attrs::new()),
        ("Gelu", 20, Attrs::new().str("approximate", "tanh")),
        ("Mish", 18, Attrs::new()),
    ];
    for (op, opset, attrs) in table {
        property(3, shapes(0..=3, 4), |s| {
            Case::new(
                format!("{op} {attrs:?} {s:?}"),
                opset,
                &[input("x", &s, AwayFromZero)],
            )
            .run(|g, x| Ok(vec![g.op(op, x, attrs.clone())?]));
        });
    }
}

#[test]
fn hard_activations_beyond_their_slopes() {
    for (op, low, high) in [
        ("HardSwish", 3.2, 5.0),
        ("HardSwish", -5.0, -3.2),
        ("HardSwish", -2.8, 2.8),
    ] {
        let x = input("x", &[3, 4], Between(low, high));
        Case::new(format!("{op} {low}"), 14, &[x]).run(|g, x| {
            // A flat stretch has no gradient to compare with, so the identity is added.
            let y = g.unary(op, x[0])?;
            Ok(vec![g.add(y, x[0])?])
        });
    }
}

#[test]
fn leaks_that_are_learned() {
    property(6, broadcast_shapes(1), |s| {
        let full: Vec<usize> = [&[2, 3], &s[0][..]].concat();
        let operands = [input("x", &full, AwayFromZero), input("slope", &s[0], Any)];
        Case::new(format!("PRelu {s:?}"), 16, &operands)
            .run(|g, x| Ok(vec![g.op("PRelu", x, Attrs::new())?]));
    });
}

#[test]
fn powers_with_constant_exponents() {
    for exponent in [2.0, 3.0, 0.5, -1.0, -0.5, 1.0, 0.0, 4.0, 1.5, -2.0] {
        for integer in [false, true] {
            if integer && f64::fract(exponent) != 0.0 {
                continue;
            }
            let x = input(
                "x",
                &[2, 3],
                if f64::fract(exponent) == 0.0 {
                    AwayFromZero
                } else {
                    Positive
                },
            );
            Case::new(format!("Pow {exponent} {integer}"), 15, &[x]).run(|g, x| {
                let p = match integer {
                    true => g.int_scalar(exponent as i64),
                    false => g.scalar_like(x[0], exponent),
                };
                let y = g.op("Pow", &[x[0], p], Attrs::new())?;
                Ok(vec![g.add(y, x[0])?])
            });
        }
    }
    let x = input("x", &[2, 3], Positive);
    Case::new("Pow by a list", 15, &[x]).run(|g, x| {
        let p = g.float_tensor(g.dtype(x[0]), &[3], &[0.0, 2.0, -1.5]);
        Ok(vec![g.op("Pow", &[x[0], p], Attrs::new())?])
    });
}

#[test]
fn powers_with_computed_exponents() {
    property(8, broadcast_shapes(2), |s| {
        let operands = [input("x", &s[0], Positive), input("p", &s[1], Any)];
        Case::new(format!("Pow {s:?}"), 15, &operands).run(|g, x| Ok(vec![g.op("Pow", x, Attrs::new())?]));
    });
}

/// Gradients of `y = x^p` at one point, from the derived graph.
fn power_slopes(x: f32, p: f32, constant: bool) -> Vec<f64> {
    gradcheck::load_runtime();
    let mut g = ortdpo::onnx::Graph::new("power", 15);
    let ty = TensorType::new(DType::F32, [1]);
    let base = g.add_input("x", ty.clone());
    let exponent = match constant {
        true => g.add_constant("p", Constant::floats(DType::F32, &[1], &[p.into()])),
        false => g.add_input("p", ty),
    };
    let y = g.op("Pow", &[base, exponent], Attrs::new()).unwrap();
    let y = g.as_output(y, "y").unwrap();
    g.outputs.push(y);
    let wrt = if constant { "x" } else { "x,p" };
    let derived = ortdpo::autodiff::derive(g, &wrt.parse().unwrap()).unwrap().graph;
    let one = |v| Tensor::f32(&[1], vec![v]);
    let mut feeds = vec![("x", one(x)), ("y.cotangent", one(1.0))];
    if !constant {
        feeds.push(("p", one(p)));
    }
    let feeds: Vec<_> = feeds.iter().map(|(n, t)| (*n, t)).collect();
    let mut found = gradcheck::session(&derived).unwrap().run(&feeds).unwrap();
    wrt.split(',')
        .map(|n| gradcheck::numbers(&found.take(&format!("{n}.grad")).unwrap())[0])
        .collect()
}

#[test]
fn powers_at_zero_are_those_of_pytorch() {
    for constant in [true, false] {
        assert_eq!(power_slopes(0.0, 2.0, constant)[0], 0.0);
        assert_eq!(power_slopes(0.0, 3.0, constant)[0], 0.0);
        assert_eq!(power_slopes(0.0, 1.0, constant)[0], 1.0);
        assert_eq!(power_slopes(0.0, 0.0, constant)[0], 0.0);
        assert_eq!(power_slopes(0.0, 0.5, constant)[0], f64::INFINITY);
    }
    assert_eq!(power_slopes(0.0, 2.0, false)[1], 0.0);
    assert_eq!(power_slopes(0.0, 0.0, false)[1], 0.0);
}

#[test]
fn clipped_and_selected_elements() {
    property(6, shapes(1..=3, 4), |s| {
        Case::new(format!("Clip {s:?}"), 13, &[input("x", &s, Distinct)])
            .f32(1e-3, 1e-2)
            .run(|g, x| {
                let (low, high) = (g.scalar_like(x[0], -0.713), g.scalar_like(x[0], 0.871));
                let both = g.op("Clip", &[x[0], low, high], Attrs::new())?;
                let above = g.op_n("Clip", &[Some(x[0]), None, Some(high)], Attrs::new(), 1)?[0];
                Ok(vec![both, above])
            });
    });
    property(8, broadcast_shapes(3), |s| {
        let operands = [input("a", &s[0], Any), input("b", &s[1], Any)];
        Case::new(format!("Where {s:?}"), 16, &operands).run(|g, x| {
            let n: usize = s[2].iter().product();
            let truth: Vec<i64> = (0..n as i64).map(|i| i % 2).collect();
            let condition = g.add_constant("condition", Constant::integers(DType::Bool, &s[2], &truth));
            Ok(vec![g.select(condition, x[0], x[1])?])
        });
    });
}

#[test]
fn casts_between_float_types() {
    property(3, shapes(0..=3, 4), |s| {
        Case::new(format!("Cast {s:?}"), 15, &[input("x", &s, Any)])
            .only_f32()
            .run(|g, x| {
                let there = g.cast(x[0], DType::F64)?;
                let square = g.mul(there, there)?;
                let back = g.op("CastLike", &[square, x[0]], Attrs::new())?;
                Ok(vec![g.mul(back, x[0])?])
            });
    });
}
