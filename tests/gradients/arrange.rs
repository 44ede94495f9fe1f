//! Operators that move, repeat, cut or pad.

use ortdpo::onnx::{Attrs, Graph, ValueId};
use proptest::prelude::*;

use crate::gradcheck::Draw::Any;
use crate::gradcheck::{Case, broadcast_shapes, input, property, shapes};

/// Squares, so that the gradient depends on the point.
fn squared(g: &mut Graph, y: ValueId) -> ortdpo::Result<Vec<ValueId>> {
    Ok(vec![g.mul(y, y)?])
}

fn ints(g: &mut Graph, values: &[usize]) -> ValueId {
    let values: Vec<i64> = values.iter().map(|v| *v as i64).collect();
    g.ints(&values)
}

#[test]
fn new_shapes_of_the_same_elements() {
    property(6, (shapes(1..=4, 3), 0..5_i64), |(s, axis)| {
        let axis = axis.min(s.len() as i64);
        Case::new(format!("shapes {s:?} {axis}"), 13, &[input("x", &s, Any)]).run(|g, x| {
            let flat = g.op("Flatten", &[x[0]], Attrs::new().int("axis", axis))?;
            let target = g.ints(&[-1]);
            let line = g.op("Reshape", &[flat, target], Attrs::new())?;
            let axes = g.ints(&[0, -1]);
            let raised = g.op("Unsqueeze", &[line, axes], Attrs::new())?;
            let lowered = g.op("Squeeze", &[raised], Attrs::new())?;
            let first = g.ints(&[0]);
            let one = g.op("Squeeze", &[raised, first], Attrs::new())?;
            let sum = squared(g, lowered)?[0];
            Ok(vec![sum, one])
        });
    });
}

#[test]
fn permuted_dimensions() {
    let perms = (1..=4_usize).prop_flat_map(|rank| Just((0..rank).collect::<Vec<_>>()).prop_shuffle());
    property(8, (perms, shapes(4..=4, 3)), |(perm, s)| {
        let s = &s[..perm.len()];
        Case::new(format!("Transpose {s:?} {perm:?}"), 13, &[input("x", s, Any)]).run(|g, x| {
            let perm: Vec<i64> = perm.iter().map(|p| *p as i64).collect();
            let y = g.op("Transpose", &[x[0]], Attrs::new().ints("perm", &perm))?;
            let reversed = g.op("Transpose", &[x[0]], Attrs::new())?;
            let mut both = squared(g, y)?;
            both.extend(squared(g, reversed)?);
            Ok(both)
        });
    });
}

#[test]
fn repeated_elements() {
    property(8, broadcast_shapes(2), |s| {
        Case::new(format!("Expand {s:?}"), 13, &[input("x", &s[0], Any)]).run(|g, x| {
            let to = ints(g, &s[1]);
            let y = g.op("Expand", &[x[0], to], Attrs::new())?;
            squared(g, y)
        });
    });
    property(8, (shapes(1..=4, 3), shapes(4..=4, 3)), |(s, times)| {
        Case::new(format!("Tile {s:?} {times:?}"), 13, &[input("x", &s, Any)]).run(|g, x| {
            let times = ints(g, &times[..s.len()]);
            let y = g.op("Tile", &[x[0], times], Attrs::new())?;
            squared(g, y)
        });
    });
}

#[test]
fn joined_and_split_tensors() {
    let parts = (1..=4_usize, shapes(3..=3, 3), 0..3_usize, any::<bool>());
    property(10, parts, |(count, s, axis, from_end)| {
        let sized = |n: usize| {
            let mut s = s.clone();
            s[axis] = n;
            s
        };
        let names = ["a", "b", "c", "d"];
        let inputs: Vec<_> = (0..count).map(|i| input(names[i], &sized(i + 1), Any)).collect();
        let axis = if from_end { axis as i64 - 3 } else { axis as i64 };
        Case::new(format!("Concat {count} {s:?} {axis}"), 13, &inputs).run(|g, x| {
            let joined = g.op("Concat", x, Attrs::new().int("axis", axis))?;
            squared(g, joined)
        });
    });
    // Used: all parts, some, or a single one.
    property(
        12,
        (shapes(3..=3, 3), 0..3_usize, 1..8_usize, any::<bool>()),
        |(s, axis, used, even)| {
            let mut whole = s.clone();
            whole[axis] = if even { 6 } else { 7 };
            let name = format!("Split {whole:?} {axis} {used} {even}");
            Case::new(name, 13, &[input("x", &whole, Any)]).run(|g, x| {
                let attrs = Attrs::new().int("axis", axis as i64);
                let parts = match even {
                    true => g.op_n("Split", &[Some(x[0])], attrs, 3)?,
                    false => {
                        let lengths = g.ints(&[1, 4, 2]);
                        g.op_n("Split", &[Some(x[0]), Some(lengths)], attrs, 3)?
                    }
                };
                let used = (0..3).filter(|i| used >> i & 1 == 1);
                used.map(|i| g.mul(parts[i], parts[i])).collect()
            });
        },
    );
}

#[test]
fn an_input_of_concat_without_gradient_is_left_out() {
    Case::new("Concat with a constant", 13, &[input("x", &[2, 3], Any)]).run(|g, x| {
        let fixed = g.float_tensor(g.dtype(x[0]), &[2, 1], &[1.0, 2.0]);
        let joined = g.op("Concat", &[fixed, x[0]], Attrs::new().int("axis", 1))?;
        squared(g, joined)
    });
}

#[test]
fn slices_with_any_step() {
    let ends = || prop_oneof![Just(i64::MIN), -9..9_i64, Just(i64::MAX)];
    // Backwards from "the end of the end" selects nothing, but ONNX Runtime takes that end for the beginning.
    let cut = (ends(), ends(), prop_oneof![-4..=-1_i64, 1..=4_i64])
        .prop_filter("an end that ONNX Runtime reads in its own way", |c| {
            c.2 > 0 || c.1 != i64::MAX
        });
    property(
        24,
        (shapes(1..=3, 7), proptest::collection::vec(cut, 3)),
        |(s, cuts)| {
            let cuts = &cuts[..s.len()];
            Case::new(format!("Slice {s:?} {cuts:?}"), 13, &[input("x", &s, Any)]).run(|g, x| {
                let list = |f: fn(&(i64, i64, i64)) -> i64| cuts.iter().map(f).collect::<Vec<_>>();
                let (starts, ends) = (g.ints(&list(|c| c.0)), g.ints(&list(|c| c.1)));
                let axes: Vec<i64> = (0..s.len() as i64).map(|a| a - s.len() as i64).collect();
                let (axes, steps) = (g.ints(&axes), g.ints(&list(|c| c.2)));
                let y = g.op("Slice", &[x[0], starts, ends, axes, steps], Attrs::new())?;
                // An empty slice has no gradient to compare with, so the whole is added to the outputs.
                let mut outputs = squared(g, x[0])?;
                outputs.extend(squared(g, y)?);
                Ok(outputs)
            });
        },
    );
}

#[test]
fn pads_of_every_mode() {
    for (mode, opset) in [
        ("constant", 13),
        ("reflect", 13),
        ("edge", 13),
        ("constant", 18),
        ("edge", 18),
        ("wrap", 19),
    ] {
        property(
            10,
            (shapes(1..=4, 4), proptest::collection::vec(-1..=2_i64, 8)),
            |(s, given)| {
                // Three elements at least, so that mirrored and wrapped pads fit what cropping leaves.
                let s: Vec<usize> = s.iter().map(|d| d + 3).collect();
                let rank = s.len();
                let chosen: Vec<usize> = if opset >= 18 {
                    (0..rank).step_by(2).collect()
                } else {
                    (0..rank).collect()
                };
                let pads: Vec<i64> = (0..2 * chosen.len()).map(|i| given[i]).collect();
                Case::new(
                    format!("Pad {mode} {s:?} {pads:?} opset {opset}"),
                    opset,
                    &[input("x", &s, Any)],
                )
                .run(|g, x| {
                    let amounts = g.ints(&pads);
                    let value = (mode == "constant").then(|| g.scalar_like(x[0], 2.5));
                    let mut inputs = vec![Some(x[0]), Some(amounts), value];
                    if opset >= 18 {
                        inputs.push(Some(ints(g, &chosen)));
                    }
                    let y = g.op_n("Pad", &inputs, Attrs::new().str("mode", mode), 1)?[0];
                    squared(g, y)
                });
            },
        );
    }
}

#[test]
fn blocks_between_depth_and_space() {
    property(
        6,
        (shapes(4..=4, 3), 1..=3_usize, any::<bool>()),
        |(s, block, crd)| {
            let mode = if crd { "CRD" } else { "DCR" };
            let attrs = || Attrs::new().int("blocksize", block as i64);
            let deep = [s[0], s[1] * block * block, s[2], s[3]];
            Case::new(
                format!("DepthToSpace {deep:?} {mode}"),
                13,
                &[input("x", &deep, Any)],
            )
            .run(|g, x| {
                let y = g.op("DepthToSpace", x, attrs().str("mode", mode))?;
                squared(g, y)
            });
            let wide = [s[0], s[1], s[2] * block, s[3] * block];
            Case::new(format!("SpaceToDepth {wide:?}"), 13, &[input("x", &wide, Any)]).run(|g, x| {
                let y = g.op("SpaceToDepth", x, attrs())?;
                squared(g, y)
            });
        },
    );
}

#[test]
fn running_sums() {
    property(
        8,
        (shapes(1..=3, 4), 0..3_usize, any::<bool>(), any::<bool>()),
        |(s, axis, exclusive, reverse)| {
            let axis = axis.min(s.len() - 1) as i64;
            let name = format!("CumSum {s:?} {axis} {exclusive} {reverse}");
            Case::new(name, 14, &[input("x", &s, Any)]).run(|g, x| {
                let axis = g.int_scalar(axis);
                let attrs = Attrs::new()
                    .int("exclusive", exclusive.into())
                    .int("reverse", reverse.into());
                let y = g.op("CumSum", &[x[0], axis], attrs)?;
                let mut outputs = squared(g, x[0])?;
                outputs.extend(squared(g, y)?);
                Ok(outputs)
            });
        },
    );
}

#[test]
fn triangles() {
    property(
        8,
        (shapes(2..=3, 4), -3..=3_i64, any::<bool>()),
        |(s, k, upper)| {
            Case::new(format!("Trilu {s:?} {k} {upper}"), 14, &[input("x", &s, Any)]).run(|g, x| {
                let attrs = Attrs::new().int("upper", upper.into());
                let k = g.int_scalar(k);
                let y = g.op("Trilu", &[x[0], k], attrs.clone())?;
                let plain = g.op("Trilu", &[x[0]], attrs)?;
                let mut outputs = squared(g, plain)?;
                outputs.extend(squared(g, y)?);
                Ok(outputs)
            });
        },
    );
}
