//! Softmax and normalisations.

use ortdpo::onnx::Attrs;
use proptest::prelude::*;

use crate::gradcheck::Draw::{Any, AwayFromZero, Positive};
use crate::gradcheck::{Case, input, property, shapes};

#[test]
fn softmax_along_any_axis() {
    property(
        16,
        (shapes(1..=4, 4), 0..4_usize, any::<bool>()),
        |(s, axis, log)| {
            let op = if log { "LogSoftmax" } else { "Softmax" };
            let axis = (axis % s.len()) as i64 - s.len() as i64;
            let inputs = [input("x", &s, Any), input("k", &s, Any)];
            Case::new(format!("{op} {s:?} {axis}"), 13, &inputs).run(|g, x| {
                let y = g.op(op, &[x[0]], Attrs::new().int("axis", axis))?;
                Ok(vec![g.mul(y, x[1])?])
            });
        },
    );
}

#[test]
fn softmax_between_two_products() {
    // Attention as exporters write it, with fewer and with more keys than the values are wide.
    for keys in [3, 6] {
        let inputs = [
            input("q", &[2, 2, 3, 4], Any),
            input("k", &[2, 2, keys, 4], Any),
            input("v", &[2, 2, keys, 4], Any),
        ];
        Case::new(format!("attention over {keys}"), 13, &inputs).run(|g, x| {
            let kt = g.transpose_last(x[1])?;
            let scores = g.matmul(x[0], kt)?;
            let p = g.op("Softmax", &[scores], Attrs::new().int("axis", -1))?;
            Ok(vec![g.matmul(p, x[2])?])
        });
    }
}

#[test]
fn layer_norms() {
    let scales = (0..3_usize, any::<bool>());
    property(
        16,
        (shapes(2..=4, 4), 0..4_usize, scales),
        |(mut s, axis, (broadcast, bias))| {
            *s.last_mut().unwrap() += 3;
            let axis = axis % s.len();
            // Scale and bias may broadcast to the normalised dimensions.
            let mut of = s[axis..].to_vec();
            if broadcast == 1 && of.len() > 1 {
                of[0] = 1;
            }
            let mut inputs = vec![input("x", &s, Any), input("scale", &of, Any)];
            if bias {
                inputs.push(input("bias", &of, Any));
            }
            Case::new(format!("LayerNormalization {s:?} {of:?} {bias}"), 17, &inputs).run(|g, x| {
                let attrs = Attrs::new()
                    .int("axis", axis as i64 - s.len() as i64)
                    .float("epsilon", 1e-3);
                Ok(vec![g.op("LayerNormalization", x, attrs)?])
            });
        },
    );
}

#[test]
fn group_norms_of_both_meanings() {
    let sizes = (1..=3_usize, 1..=3_usize, 1..=3_usize);
    property(
        16,
        (sizes, shapes(0..=3, 3), any::<bool>()),
        |((batch, groups, each), positions, per_channel)| {
            let channels = groups * each;
            let x = [&[batch, channels], &positions[..], &[3]].concat();
            let (opset, scales) = if per_channel { (21, channels) } else { (18, groups) };
            let inputs = [
                input("x", &x, Any),
                input("scale", &[scales], Any),
                input("bias", &[scales], Any),
            ];
            Case::new(
                format!("GroupNormalization {x:?} {groups} opset {opset}"),
                opset,
                &inputs,
            )
            // ONNX Runtime normalises in single precision whatever the element type.
            .only_f32()
            .run(|g, v| {
                let attrs = Attrs::new()
                    .int("num_groups", groups as i64)
                    .float("epsilon", 1e-3);
                Ok(vec![g.op("GroupNormalization", v, attrs)?])
            });
        },
    );
}

#[test]
fn instance_norms_before_and_after_opset_17() {
    for opset in [13, 17, 22] {
        for (s, ones) in [
            (vec![2, 3, 5], false),
            (vec![2, 2, 3, 4], true),
            (vec![1, 3, 2, 2, 3], false),
        ] {
            let channels = [s[1]];
            let mut inputs = vec![input("x", &s, Any)];
            if !ones {
                inputs.extend([input("scale", &channels, Any), input("bias", &channels, Any)]);
            }
            Case::new(
                format!("InstanceNormalization {s:?} opset {opset}"),
                opset,
                &inputs,
            )
            .run(|g, v| {
                let mut v = v.to_vec();
                if ones {
                    let dtype = g.dtype(v[0]);
                    v.push(g.float_tensor(dtype, &channels, &[1.0; 2]));
                    v.push(g.float_tensor(dtype, &channels, &[0.0; 2]));
                }
                Ok(vec![g.op(
                    "InstanceNormalization",
                    &v,
                    Attrs::new().float("epsilon", 1e-2),
                )?])
            });
        }
    }
}

#[test]
fn root_mean_square_norms() {
    property(10, (shapes(2..=4, 4), 0..4_usize), |(mut s, axis)| {
        *s.last_mut().unwrap() += 2;
        let axis = axis % s.len();
        let inputs = [input("x", &s, Any), input("scale", &s[axis..], Any)];
        Case::new(format!("RMSNormalization {s:?} {axis}"), 23, &inputs).run(|g, x| {
            let attrs = Attrs::new().int("axis", axis as i64).float("epsilon", 1e-3);
            Ok(vec![g.op("RMSNormalization", x, attrs)?])
        });
    });
}

#[test]
fn batch_norms_with_fixed_statistics() {
    for (opset, s) in [(13, vec![2, 3, 4]), (14, vec![2, 2, 3, 2]), (15, vec![3, 4])] {
        let c = [s[1]];
        let inputs = [
            input("x", &s, Any),
            input("scale", &c, Any),
            input("bias", &c, Any),
            input("mean", &c, Any),
            input("var", &c, Positive),
        ];
        Case::new(format!("BatchNormalization {s:?} opset {opset}"), opset, &inputs)
            .run(|g, x| Ok(vec![g.op("BatchNormalization", x, Attrs::new())?]));
    }
}

#[test]
fn vectors_of_unit_length() {
    for p in [1, 2] {
        for axis in [0, -1] {
            Case::new(
                format!("LpNormalization {p} {axis}"),
                13,
                &[input("x", &[3, 4], AwayFromZero)],
            )
            .run(|g, x| {
                Ok(vec![g.op(
                    "LpNormalization",
                    x,
                    Attrs::new().int("p", p).int("axis", axis),
                )?])
            });
        }
    }
}
