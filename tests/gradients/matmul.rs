//! Matrix products and sums of products.

use ortdpo::onnx::Attrs;
use proptest::prelude::*;

use crate::gradcheck::Draw::Any;
use crate::gradcheck::{Case, broadcast_shapes, input, property};

#[test]
fn products_with_broadcasting() {
    let sizes = (1..=4_usize, 1..=4_usize, 1..=4_usize);
    // Stacks of up to four dimensions; a vector on either side where the stack is empty.
    property(
        30,
        (broadcast_shapes(2), sizes, any::<(bool, bool)>()),
        |(stacks, (m, k, n), vector)| {
            let shape = |stack: &Vec<usize>, vector: bool, matrix: [usize; 2]| match vector {
                true => vec![k],
                false => [&stack[..], &matrix].concat(),
            };
            let (a, b) = (
                shape(&stacks[0], vector.0, [m, k]),
                shape(&stacks[1], vector.1, [k, n]),
            );
            let inputs = [input("a", &a, Any), input("b", &b, Any)];
            Case::new(format!("MatMul {a:?} {b:?}"), 13, &inputs).run(|g, x| Ok(vec![g.matmul(x[0], x[1])?]));
        },
    );
}

#[test]
fn general_products() {
    let flags = any::<(bool, bool)>();
    let c = prop_oneof![Just(0_usize), 1..=6_usize];
    property(
        30,
        (flags, (1..=4_usize, 1..=4_usize, 1..=4_usize), c),
        |((ta, tb), (m, k, n), c)| {
            let a = if ta { [k, m] } else { [m, k] };
            let b = if tb { [n, k] } else { [k, n] };
            let third = [vec![m, n], vec![1, n], vec![m, 1], vec![n], vec![1], vec![]];
            let mut inputs = vec![input("a", &a, Any), input("b", &b, Any)];
            if c > 0 {
                inputs.push(input("c", &third[c - 1], Any));
            }
            Case::new(format!("Gemm {a:?} {b:?} {ta} {tb} {c}"), 13, &inputs).run(|g, x| {
                let attrs = Attrs::new()
                    .int("transA", ta.into())
                    .int("transB", tb.into())
                    .float("alpha", 0.75)
                    .float("beta", -1.5);
                Ok(vec![g.op("Gemm", x, attrs)?])
            });
        },
    );
}

#[test]
fn sums_of_products() {
    let cases: [(&str, &[&[usize]]); 19] = [
        ("ij,jk->ik", &[&[2, 3], &[3, 4]]),
        ("ij,jk", &[&[2, 3], &[3, 4]]),
        ("bij,bjk->bik", &[&[2, 2, 3], &[2, 3, 4]]),
        ("bhid,bhjd->bhij", &[&[2, 2, 3, 4], &[2, 2, 5, 4]]),
        ("nhwpqc->nchpwq", &[&[2, 2, 3, 2, 2, 3]]),
        ("ij->ji", &[&[2, 3]]),
        ("ij->i", &[&[2, 3]]),
        ("ij->", &[&[2, 3]]),
        ("ij,ij->", &[&[2, 3], &[2, 3]]),
        ("i,j->ij", &[&[2], &[3]]),
        ("i,j->j", &[&[2], &[3]]),
        ("ij,jk,kl->il", &[&[2, 3], &[3, 4], &[4, 2]]),
        ("ijk,jk,k->i", &[&[2, 3, 4], &[3, 4], &[4]]),
        ("...ij,jk->...ik", &[&[2, 2, 3, 4], &[4, 2]]),
        ("...ij,...jk->...ik", &[&[2, 3, 2, 3], &[2, 1, 3, 4]]),
        ("b...i,...i->b...", &[&[2, 3, 4], &[3, 4]]),
        ("ii->i", &[&[3, 3]]),
        ("ii", &[&[3, 3]]),
        ("iij,j->ij", &[&[3, 3, 2], &[2]]),
    ];
    for (equation, shapes) in cases {
        let names = ["a", "b", "c"];
        let inputs: Vec<_> = names.iter().zip(shapes).map(|(n, s)| input(n, s, Any)).collect();
        Case::new(format!("Einsum {equation}"), 13, &inputs)
            .run(|g, x| Ok(vec![g.op("Einsum", x, Attrs::new().str("equation", equation))?]));
    }
}
