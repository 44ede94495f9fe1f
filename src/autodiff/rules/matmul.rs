//! Matrix products: `MatMul` and `Gemm`.
//!
//! With `Y = A·B`: `dA = dY·Bᵀ`, `dB = Aᵀ·dY`, summed over the dimensions that broadcasting added. Where one side is a
//! single matrix (every linear layer), both are written as `Gemm` on flattened rows: `Gemm` transposes its operands while
//! it reads them, so that neither a run-time `Transpose` nor a folded transposed copy of the weight comes to be, and the
//! sum over the batch happens inside the product.

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::{Attrs, Graph, ValueId};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "MatMul" => matmul,
        "Gemm" => gemm_rule,
        _ => return None,
    })
}

/// `a′·b′`, where `a′` is the matrix `a` or, with `trans_a`, its transpose; `b′` likewise.
pub(super) fn gemm(g: &mut Graph, a: ValueId, b: ValueId, trans_a: bool, trans_b: bool) -> Result<ValueId> {
    let flag = |attrs: Attrs, name, set: bool| if set { attrs.int(name, 1) } else { attrs };
    let attrs = flag(flag(Attrs::new(), "transA", trans_a), "transB", trans_b);
    g.op("Gemm", &[a, b], attrs)
}

/// `Y = A·B` with NumPy's rules: vectors are matrices of one row or column, leading dimensions broadcast.
fn matmul(c: &mut Context) -> Result<Gradients> {
    let (a, b, dy) = (c.x(0)?, c.x(1)?, c.dy0()?);
    let (shape_a, shape_b) = (c.shape(0)?, c.shape(1)?);
    let wants = (c.wants(0), c.wants(1));
    let g = &mut *c.graph;
    let a = if shape_a.len() == 1 {
        g.reshape(a, &[1, shape_a[0]])?
    } else {
        a
    };
    let b = if shape_b.len() == 1 {
        g.reshape(b, &[shape_b[0], 1])?
    } else {
        b
    };
    let (da, db) = if matrices(g.shape(b)) == 1 {
        times_matrix(g, a, b, dy, wants)?
    } else {
        batched(g, a, b, dy, wants)?
    };
    let shaped =
        |g: &mut Graph, d: Option<ValueId>, shape: &[usize]| d.map(|d| g.reshape(d, shape)).transpose();
    Ok(vec![
        shaped(c.graph, da, &shape_a)?,
        shaped(c.graph, db, &shape_b)?,
    ])
}

type Pair = (Option<ValueId>, Option<ValueId>);

/// Number of matrices in a stack of them.
fn matrices(shape: &[usize]) -> usize {
    shape[..shape.len() - 2].iter().product()
}

/// One matrix `b` on the right: all rows of `a` are one tall matrix.
fn times_matrix(g: &mut Graph, a: ValueId, b: ValueId, dy: ValueId, wants: (bool, bool)) -> Result<Pair> {
    let (k, n) = last_two(g.shape(b));
    let rows = g.shape(a).iter().product::<usize>() / k.max(1);
    let dy = g.reshape(dy, &[rows, n])?;
    let da = if wants.0 {
        let b = g.reshape(b, &[k, n])?;
        Some(gemm(g, dy, b, false, true)?)
    } else {
        None
    };
    let db = if wants.1 {
        let a = g.reshape(a, &[rows, k])?;
        Some(gemm(g, a, dy, true, false)?)
    } else {
        None
    };
    Ok((da, db))
}

/// Stacks of matrices. ONNX Runtime fuses the transposes of the last two dimensions into the products.
fn batched(g: &mut Graph, a: ValueId, b: ValueId, dy: ValueId, wants: (bool, bool)) -> Result<Pair> {
    let (m, n) = (last_two(g.shape(a)).0, last_two(g.shape(b)).1);
    let stack = crate::onnx::view::broadcast(&g.shape(a)[..g.rank(a) - 2], &g.shape(b)[..g.rank(b) - 2]);
    let stack = stack.expect("the shape rule of MatMul has checked that the operands broadcast");
    let dy = g.reshape(dy, &[stack, vec![m, n]].concat())?;
    let da = if wants.0 {
        let (bt, shape) = (g.transpose_last(b)?, g.shape(a).to_vec());
        let product = g.matmul(dy, bt)?;
        Some(g.sum_to(product, &shape)?)
    } else {
        None
    };
    let db = if wants.1 {
        let (at, shape) = (g.transpose_last(a)?, g.shape(b).to_vec());
        let product = g.matmul(at, dy)?;
        Some(g.sum_to(product, &shape)?)
    } else {
        None
    };
    Ok((da, db))
}

fn last_two(shape: &[usize]) -> (usize, usize) {
    (shape[shape.len() - 2], shape[shape.len() - 1])
}

/// `Y = α·A′·B′ + β·C`, where `A′` is `A` or `Aᵀ`, `B′` is `B` or `Bᵀ`, and `C` broadcasts:
/// `dA′ = α·dY·B′ᵀ`, `dB′ = α·A′ᵀ·dY`, `dC = β·ΣdY`.
fn gemm_rule(c: &mut Context) -> Result<Gradients> {
    let (a, b, dy) = (c.x(0)?, c.x(1)?, c.dy0()?);
    let v = c.view();
    let (ta, tb) = (v.int("transA", 0) != 0, v.int("transB", 0) != 0);
    let (alpha, beta) = (f64::from(v.float("alpha", 1.0)), f64::from(v.float("beta", 1.0)));
    let mut out = vec![None; c.node.inputs.len()];
    if c.wants(0) {
        let d = if ta {
            gemm(c.graph, b, dy, tb, true)?
        } else {
            gemm(c.graph, dy, b, false, !tb)?
        };
        out[0] = Some(c.graph.scale(d, alpha)?);
    }
    if c.wants(1) {
        let d = if tb {
            gemm(c.graph, dy, a, true, ta)?
        } else {
            gemm(c.graph, a, dy, !ta, false)?
        };
        out[1] = Some(c.graph.scale(d, alpha)?);
    }
    if c.wants(2) {
        let shape = c.shape(2)?;
        let sum = c.graph.sum_to(dy, &shape)?;
        out[2] = Some(c.graph.scale(sum, beta)?);
    }
    Ok(out)
}
