//! Picking elements by index, with and without an adding scatter operator (opset 16).

use ortdpo::onnx::{Attrs, Constant, Graph, ValueId};
use ortdpo::tensor::DType;
use proptest::prelude::*;

use crate::gradcheck::Draw::{Any, Distinct};
use crate::gradcheck::{Case, input, property, shapes};

/// Random indices into `n` places, some of them negative, some more than once.
fn indices(n: usize, shape: &[usize], salt: usize) -> Vec<i64> {
    let count: usize = shape.iter().product();
    (0..count)
        .map(|i| {
            let place = ((i * 7 + salt * 3 + i * i) % n) as i64;
            if (i + salt).is_multiple_of(3) {
                place - n as i64
            } else {
                place
            }
        })
        .collect()
}

/// Indices that the rules see as a constant, or, through a node that is not folded, as computed ones.
fn index_value(
    g: &mut Graph,
    dtype: DType,
    shape: &[usize],
    values: &[i64],
    known: bool,
) -> ortdpo::Result<ValueId> {
    let constant = g.add_constant("index", Constant::integers(dtype, shape, values));
    if known {
        Ok(constant)
    } else {
        g.op("Identity", &[constant], Attrs::new())
    }
}

const OPSETS: [i64; 3] = [13, 16, 20];

#[test]
fn gathered_slices() {
    let strategy = (
        shapes(1..=4, 4),
        shapes(0..=2, 3),
        (0..4_usize, any::<bool>()),
        0..50_usize,
        prop::sample::select(OPSETS.to_vec()),
        any::<bool>(),
    );
    property(20, strategy, |(s, i, (axis, short), salt, opset, known)| {
        let axis = axis % s.len();
        let name = format!("Gather {s:?} {i:?} {axis} {salt} {opset} {known} {short}");
        Case::new(name, opset, &[input("x", &s, Any)]).run(|g, x| {
            let dtype = if short { DType::I32 } else { DType::I64 };
            let index = index_value(g, dtype, &i, &indices(s[axis], &i, salt), known)?;
            let y = g.op("Gather", &[x[0], index], Attrs::new().int("axis", axis as i64))?;
            Ok(vec![g.mul(y, y)?])
        });
    });
}

#[test]
fn known_indices_need_no_scatter() {
    // A single element, a range, a permutation, and a part out of order.
    for places in [vec![2], vec![1, 2], vec![-1, 0, 2, 1], vec![3, 0]] {
        Case::new(format!("Gather {places:?}"), 13, &[input("x", &[2, 4, 3], Any)]).run(|g, x| {
            let index = index_value(g, DType::I64, &[places.len()], &places, true)?;
            let y = g.op("Gather", &[x[0], index], Attrs::new().int("axis", 1))?;
            let y = g.mul(y, y)?;
            let cotangent = g.zeros(&g.ty(y).clone())?;
            let mut derived = g.clone();
            ortdpo::autodiff::gradients(&mut derived, &[(y, cotangent)], &[x[0]])?;
            assert!(
                !derived
                    .nodes
                    .iter()
                    .any(|n| n.op.starts_with("Scatter") || n.op == "MatMul")
            );
            Ok(vec![y])
        });
    }
}

#[test]
fn gathered_elements() {
    let strategy = (
        shapes(1..=3, 4),
        shapes(3..=3, 4),
        0..3_usize,
        0..50_usize,
        prop::sample::select(OPSETS.to_vec()),
    );
    property(16, strategy, |(s, i, axis, salt, opset)| {
        let axis = axis % s.len();
        // The index may be smaller than the data in the other dimensions, and longer along the axis.
        let i: Vec<usize> = (0..s.len())
            .map(|d| if d == axis { i[d] + 1 } else { i[d].min(s[d]) })
            .collect();
        let name = format!("GatherElements {s:?} {i:?} {axis} {salt} {opset}");
        Case::new(name, opset, &[input("x", &s, Any)]).run(|g, x| {
            let index = index_value(g, DType::I64, &i, &indices(s[axis], &i, salt), false)?;
            let y = g.op(
                "GatherElements",
                &[x[0], index],
                Attrs::new().int("axis", axis as i64),
            )?;
            Ok(vec![g.mul(y, y)?])
        });
    });
}

#[test]
fn gathered_by_coordinates() {
    let strategy = (
        shapes(2..=4, 4),
        shapes(0..=2, 3),
        (0..3_usize, 1..4_usize),
        0..50_usize,
        prop::sample::select(OPSETS.to_vec()),
    );
    property(20, strategy, |(s, lists, (batch, coordinates), salt, opset)| {
        let batch = batch.min(s.len() - 1);
        let coordinates = coordinates.min(s.len() - batch);
        let shape = [&s[..batch], &lists, &[coordinates]].concat();
        let name = format!("GatherND {s:?} {shape:?} {batch} {salt} {opset}");
        Case::new(name, opset, &[input("x", &s, Any)]).run(|g, x| {
            let per_axis: Vec<Vec<i64>> = (0..coordinates)
                .map(|c| indices(s[batch + c], &shape[..shape.len() - 1], salt + c))
                .collect();
            let count = per_axis[0].len();
            let flat: Vec<i64> = (0..count)
                .flat_map(|i| per_axis.iter().map(move |a| a[i]))
                .collect();
            let index = index_value(g, DType::I64, &shape, &flat, false)?;
            let y = g.op(
                "GatherND",
                &[x[0], index],
                Attrs::new().int("batch_dims", batch as i64),
            )?;
            Ok(vec![g.mul(y, y)?])
        });
    });
}

#[test]
fn largest_and_smallest_elements() {
    property(
        8,
        (shapes(1..=3, 5), 0..3_usize, any::<bool>()),
        |(s, axis, largest)| {
            let axis = axis % s.len();
            let name = format!("TopK {s:?} {axis} {largest}");
            Case::new(name, 13, &[input("x", &s, Distinct)])
                .f32(2e-3, 1e-2)
                .run(|g, x| {
                    let k = g.ints(&[s[axis].min(2) as i64]);
                    let attrs = Attrs::new()
                        .int("axis", axis as i64)
                        .int("largest", largest.into());
                    let y = g.op_n("TopK", &[Some(x[0]), Some(k)], attrs, 2)?[0];
                    Ok(vec![g.mul(y, y)?])
                });
        },
    );
}
