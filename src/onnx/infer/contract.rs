//! Operators that sum over dimensions: products, convolutions, attention, reductions.

use crate::Result;
use crate::onnx::einsum::Einsum;
use crate::onnx::graph::TensorType;
use crate::onnx::view::{View, broadcast};
use crate::tensor::DType;

pub(super) fn infer(v: &View, outputs: usize) -> Result<Option<Vec<TensorType>>> {
    let one = |shape: Vec<usize>| Ok(Some(vec![TensorType::new(v.dtype(0)?, shape)]));
    match v.node.op.as_str() {
        "MatMul" => one(matmul(v)?),
        "Gemm" => {
            v.expect_rank(0, 2)?;
            v.expect_rank(1, 2)?;
            let (a, b) = (v.shape(0)?, v.shape(1)?);
            let (ta, tb) = (v.int("transA", 0) != 0, v.int("transB", 0) != 0);
            let (m, ka) = if ta { (a[1], a[0]) } else { (a[0], a[1]) };
            let (kb, n) = if tb { (b[1], b[0]) } else { (b[0], b[1]) };
            if ka != kb {
                return Err(v.error(format!("cannot multiply {a:?} and {b:?}")));
            }
            let y = vec![m, n];
            if v.has(2) && broadcast(&y, v.shape(2)?).as_ref() != Some(&y) {
                return Err(v.error(format!("cannot add {:?} to {y:?}", v.shape(2)?)));
            }
            one(y)
        }
        "Einsum" => {
            let shapes = (0..v.input_count())
                .map(|i| v.shape(i))
                .collect::<Result<Vec<_>>>()?;
            let equation = Einsum::parse(v.str("equation", ""), &shapes).map_err(|what| v.error(what))?;
            one(equation.output_shape())
        }
        "Conv" => one(conv(v)?),
        "ConvTranspose" => one(conv_transpose(v)?),
        "Attention" => attention(v, outputs).map(Some),
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceL1" | "ReduceL2" | "ReduceProd"
        | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceSumSquare" => {
            let (axes, keep) = v.reduction()?;
            one(reduced(v.shape(0)?, &axes, keep))
        }
        "ArgMax" | "ArgMin" => {
            let axis = v.axis_attr(0, 0)?;
            let shape = reduced(v.shape(0)?, &[axis], v.int("keepdims", 1) != 0);
            Ok(Some(vec![TensorType::new(DType::I64, shape)]))
        }
        _ => Ok(None),
    }
}

/// `shape` without (or with 1 for) the dimensions `axes`.
fn reduced(shape: &[usize], axes: &[usize], keep: bool) -> Vec<usize> {
    let dims = shape.iter().enumerate();
    if keep {
        dims.map(|(i, d)| if axes.contains(&i) { 1 } else { *d })
            .collect()
    } else {
        dims.filter(|(i, _)| !axes.contains(i)).map(|(_, d)| *d).collect()
    }
}

fn matmul(v: &View) -> Result<Vec<usize>> {
    let (a, b) = (v.shape(0)?, v.shape(1)?);
    let bad = || v.error(format!("cannot multiply {a:?} and {b:?}"));
    if a.is_empty() || b.is_empty() {
        return Err(bad());
    }
    let (a2, b2) = (
        if a.len() == 1 { vec![1, a[0]] } else { a.to_vec() },
        if b.len() == 1 { vec![b[0], 1] } else { b.to_vec() },
    );
    let (ra, rb) = (a2.len(), b2.len());
    if a2[ra - 1] != b2[rb - 2] {
        return Err(bad());
    }
    let mut shape = broadcast(&a2[..ra - 2], &b2[..rb - 2]).ok_or_else(bad)?;
    if a.len() > 1 {
        shape.push(a2[ra - 2]);
    }
    if b.len() > 1 {
        shape.push(b2[rb - 1]);
    }
    Ok(shape)
}

fn conv(v: &View) -> Result<Vec<usize>> {
    let (x, w) = (v.shape(0)?, v.shape(1)?);
    if x.len() < 3 || x.len() != w.len() {
        return Err(v.error(format!("cannot convolve {x:?} with {w:?}")));
    }
    let group = v.int("group", 1).max(1) as usize;
    if x[1] != w[1].saturating_mul(group) || w[0] % group != 0 {
        return Err(v.error(format!("cannot convolve {x:?} with {w:?} in {group} groups")));
    }
    let win = v.window(Some(&w[2..]))?;
    let mut shape = vec![x[0], w[0]];
    for i in 0..x.len() - 2 {
        let room = x[i + 2] + win.pads_begin[i] + win.pads_end[i];
        if room < win.span(i) {
            return Err(v.error(format!("has a kernel {w:?} larger than its padded input {x:?}")));
        }
        shape.push((room - win.span(i)) / win.strides[i] + 1);
    }
    Ok(shape)
}

fn conv_transpose(v: &View) -> Result<Vec<usize>> {
    let (x, w) = (v.shape(0)?, v.shape(1)?);
    if x.len() < 3 || x.len() != w.len() || x[1] != w[0] {
        return Err(v.error(format!("cannot convolve {x:?} with {w:?}")));
    }
    let group = v.int("group", 1).max(1) as usize;
    let mut shape = vec![x[0], w[1].saturating_mul(group)];
    let win = v.conv_transpose_window()?;
    for i in 0..x.len() - 2 {
        let out = win.full[i] - win.pads_begin[i] - win.pads_end[i];
        shape.push(usize::try_from(out).map_err(|_| v.error("has more padding than output"))?);
    }
    Ok(shape)
}

/// `Attention` (opset 23): queries, keys and values with 3 or 4 dimensions.
fn attention(v: &View, outputs: usize) -> Result<Vec<TensorType>> {
    let heads = v.attention_heads()?;
    let (q, k, val) = (v.shape(0)?, v.shape(1)?, v.shape(2)?);
    let dtype = v.dtype(0)?;
    let past = if v.has(4) {
        v.expect_rank(4, 4)?;
        v.shape(4)?[2]
    } else {
        0
    };
    let (queries, keys) = match q.len() {
        3 => (q[1], k[1] + past),
        _ => (q[2], k[2] + past),
    };
    if v.has(3) {
        // A mask may leave out keys at the end, or be the same for all queries, heads or samples.
        let (mask, scores) = (v.shape(3)?, [q[0], heads.q, queries, keys]);
        let fits = (1..=4).contains(&mask.len()) && mask[mask.len() - 1] <= keys;
        let rest = &mask[..mask.len().saturating_sub(1)];
        if !fits || broadcast(rest, &scores[..3]).as_deref() != Some(&scores[..3]) {
            return Err(v.error(format!("has a mask {mask:?} for scores {scores:?}")));
        }
    }
    let value_size = if val.len() == 3 { val[2] / heads.kv } else { val[3] };
    let key_size = if k.len() == 3 { k[2] / heads.kv } else { k[3] };
    let y = match q.len() {
        3 => vec![q[0], queries, heads.q.saturating_mul(value_size)],
        _ => vec![q[0], heads.q, queries, value_size],
    };
    let present = |size| TensorType::new(dtype, vec![q[0], heads.kv, keys, size]);
    let all = vec![
        TensorType::new(dtype, y),
        present(key_size),
        present(value_size),
        TensorType::new(dtype, vec![q[0], heads.q, queries, keys]),
    ];
    Ok(all.into_iter().take(outputs.max(1)).collect())
}
