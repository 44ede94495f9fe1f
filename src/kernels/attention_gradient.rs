//! The backward pass of attention without its matrix of all queries by all keys.
//!
//! For `O = softmax(s·Q·Kᵀ)·V` and a block of the queries at a time (Dao et al. 2022, FlashAttention, appendix B.2):
//! `P = softmax(s·Q·Kᵀ)`, `dV += Pᵀ·dO`, `dS = P ∘ (dO·Vᵀ − Σ dO∘O)`, `dQ = s·dS·K`, `dK += s·dSᵀ·Q`.
//! `P` and `dS` of a block stay in the processor's cache. Every head of every sample is a job of its own.
//!
//! Matrices are kept transposed: what faer calls a column, a query's scores for instance, is a row of the tensor.

use std::sync::Mutex;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use pulp::{Arch, Simd, WithSimd};

/// Numbers that a block of scores has at most, for any number of keys up to a sixteenth of it: 2 MiB.
const BLOCK: usize = 1 << 19;
/// Queries of a block.
const ROWS: std::ops::RangeInclusive<usize> = 16..=128;

/// Sizes: queries and their gradient are (N, S, H·D), keys (N, T, H·D), values (N, T, H·Dv), the output (N, S, H·Dv).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// N.
    pub batch: usize,
    /// H.
    pub heads: usize,
    /// S.
    pub queries: usize,
    /// T.
    pub keys: usize,
    /// D.
    pub width: usize,
    /// Dv.
    pub value_width: usize,
}

/// What a backward pass is given, row by row.
#[derive(Debug, Clone, Copy)]
pub struct Operands<'a> {
    /// Q.
    pub q: &'a [f32],
    /// K.
    pub k: &'a [f32],
    /// V.
    pub v: &'a [f32],
    /// O.
    pub o: &'a [f32],
    /// Gradient of O.
    pub d_o: &'a [f32],
}

/// Where its results go, row by row.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Gradient of Q.
    pub dq: &'a mut [f32],
    /// Gradient of K.
    pub dk: &'a mut [f32],
    /// Gradient of V.
    pub dv: &'a mut [f32],
}

/// One head of one sample; rows of its matrices are queries or keys.
struct Head<'a> {
    q: MatRef<'a, f32>,
    k: MatRef<'a, f32>,
    v: MatRef<'a, f32>,
    o: MatRef<'a, f32>,
    d_o: MatRef<'a, f32>,
    dq: MatMut<'a, f32>,
    dk: MatMut<'a, f32>,
    dv: MatMut<'a, f32>,
}

/// Writes the gradients of `softmax(scale·Q·Kᵀ)·V`. `run(n, job)` calls `job` once with every number below `n`, on as many threads
/// as it likes.
///
/// # Panics
/// A slice has another length than `shape` says.
pub fn attention_gradients(
    shape: AttentionShape,
    scale: f32,
    operands: Operands<'_>,
    gradients: Gradients<'_>,
    run: impl FnOnce(usize, &(dyn Fn(usize) + Send + Sync)),
) {
    let heads = heads(shape, operands, gradients);
    let jobs: Vec<Mutex<Option<Head>>> = heads.into_iter().map(|head| Mutex::new(Some(head))).collect();
    run(jobs.len(), &|index| {
        let job = jobs[index].lock().map(|mut job| job.take());
        if let Ok(Some(head)) = job {
            head.compute(scale);
        }
    });
}

/// The heads, each with its own columns of every tensor.
fn heads<'a>(shape: AttentionShape, operands: Operands<'a>, gradients: Gradients<'a>) -> Vec<Head<'a>> {
    let AttentionShape { batch, heads, .. } = shape;
    let (queries, keys) = (batch * shape.queries, batch * shape.keys);
    let [wide, value_wide] = [shape.width, shape.value_width].map(|width| heads * width);
    let q = MatRef::from_row_major_slice(operands.q, queries, wide);
    let k = MatRef::from_row_major_slice(operands.k, keys, wide);
    let v = MatRef::from_row_major_slice(operands.v, keys, value_wide);
    let o = MatRef::from_row_major_slice(operands.o, queries, value_wide);
    let d_o = MatRef::from_row_major_slice(operands.d_o, queries, value_wide);
    let mut dq = parts(gradients.dq, shape.queries, shape, shape.width);
    let mut dk = parts(gradients.dk, shape.keys, shape, shape.width);
    let mut dv = parts(gradients.dv, shape.keys, shape, shape.value_width);
    let mut found = Vec::with_capacity(batch * heads);
    for n in 0..batch {
        for h in 0..heads {
            let of =
                |m: MatRef<'a, f32>, rows: usize, width: usize| m.submatrix(n * rows, h * width, rows, width);
            let next = "there is a part for every head";
            found.push(Head {
                q: of(q, shape.queries, shape.width),
                k: of(k, shape.keys, shape.width),
                v: of(v, shape.keys, shape.value_width),
                o: of(o, shape.queries, shape.value_width),
                d_o: of(d_o, shape.queries, shape.value_width),
                dq: dq.next().expect(next),
                dk: dk.next().expect(next),
                dv: dv.next().expect(next),
            });
        }
    }
    found
}

/// A tensor's parts by sample and head.
fn parts(
    values: &mut [f32],
    rows: usize,
    shape: AttentionShape,
    width: usize,
) -> impl Iterator<Item = MatMut<'_, f32>> {
    let wide = shape.heads * width;
    assert_eq!(
        values.len(),
        shape.batch * rows * wide,
        "gradients are shaped as operands"
    );
    values.chunks_exact_mut(rows * wide).flat_map(move |sample| {
        let mut rest = Some(MatMut::from_row_major_slice_mut(sample, rows, wide));
        (0..shape.heads).map(move |_| {
            let whole = rest.take().expect("a head's columns are left");
            let (head, others) = whole.split_at_col_mut(width);
            rest = Some(others);
            head
        })
    })
}

impl Head<'_> {
    fn compute(self, scale: f32) {
        let (queries, keys) = (self.q.nrows(), self.k.nrows());
        // Rows of a head are far apart in the tensors; side by side, products are twice as fast.
        let [q, k, v, o, d_o] = [self.q, self.k, self.v, self.o, self.d_o].map(|m| m.transpose().to_owned());
        let mut dq = Mat::<f32>::zeros(q.nrows(), queries);
        let mut dk = Mat::<f32>::zeros(k.nrows(), keys);
        let mut dv = Mat::<f32>::zeros(v.nrows(), keys);
        let rows = (BLOCK / keys.max(1))
            .clamp(*ROWS.start(), *ROWS.end())
            .min(queries.max(1));
        let mut shares = Mat::<f32>::zeros(keys, rows);
        let mut d_scores = Mat::<f32>::zeros(keys, rows);
        for first in (0..queries).step_by(rows) {
            let count = rows.min(queries - first);
            let [q, o, d_o] = [&q, &o, &d_o].map(|m| m.as_ref().subcols(first, count));
            let along: Vec<f32> = (0..count)
                .map(|i| dot(o.col(i).iter(), d_o.col(i).iter()))
                .collect();

            let p = shares.as_mut().subcols_mut(0, count);
            matmul(p, Accum::Replace, k.transpose(), q, scale, Par::Seq);
            (0..count).for_each(|i| Arch::new().dispatch(Softmax(shares.col_as_slice_mut(i))));
            let p = shares.as_ref().subcols(0, count);
            matmul(dv.as_mut(), Accum::Add, d_o, p.transpose(), 1.0, Par::Seq);

            let ds = d_scores.as_mut().subcols_mut(0, count);
            matmul(ds, Accum::Replace, v.transpose(), d_o, 1.0, Par::Seq);
            for (i, along) in along.into_iter().enumerate() {
                Arch::new().dispatch(OfScores {
                    gradient: d_scores.col_as_slice_mut(i),
                    shares: shares.col_as_slice(i),
                    along,
                });
            }
            let ds = d_scores.as_ref().subcols(0, count);
            let dq = dq.as_mut().subcols_mut(first, count);
            matmul(dq, Accum::Replace, k.as_ref(), ds, scale, Par::Seq);
            matmul(dk.as_mut(), Accum::Add, q, ds.transpose(), scale, Par::Seq);
        }
        for (mut to, from) in [(self.dq, dq), (self.dk, dk), (self.dv, dv)] {
            to.copy_from(from.transpose());
        }
    }
}

fn dot<'a>(a: impl Iterator<Item = &'a f32>, b: impl Iterator<Item = &'a f32>) -> f32 {
    a.zip(b).map(|(a, b)| a * b).sum()
}

/// One query's scores become its shares of the keys.
struct Softmax<'a>(&'a mut [f32]);

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (blocks, rest) = S::as_mut_simd_f32s(self.0);
        let largest = |m, x: &S::f32s| simd.max_f32s(m, *x);
        let largest = blocks.iter().fold(simd.splat_f32s(f32::NEG_INFINITY), largest);
        let largest = rest.iter().fold(simd.reduce_max_f32s(largest), |m, x| m.max(*x));
        let mut sum = simd.splat_f32s(0.0);
        let shift = simd.splat_f32s(largest);
        for x in blocks.iter_mut() {
            *x = exp(simd, simd.sub_f32s(*x, shift));
            sum = simd.add_f32s(sum, *x);
        }
        let mut sum = simd.reduce_sum_f32s(sum);
        for x in rest.iter_mut() {
            *x = (*x - largest).exp();
            sum += *x;
        }
        let factor = 1.0 / sum;
        let factors = simd.splat_f32s(factor);
        blocks.iter_mut().for_each(|x| *x = simd.mul_f32s(*x, factors));
        rest.iter_mut().for_each(|x| *x *= factor);
    }
}

/// The gradient of one query's shares becomes that of its scores: `P ∘ (dP − Σ dO∘O)`.
struct OfScores<'a> {
    gradient: &'a mut [f32],
    shares: &'a [f32],
    along: f32,
}

impl WithSimd for OfScores<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (blocks, rest) = S::as_mut_simd_f32s(self.gradient);
        let (shares, other_shares) = S::as_simd_f32s(self.shares);
        let along = simd.splat_f32s(self.along);
        for (d, p) in blocks.iter_mut().zip(shares) {
            *d = simd.mul_f32s(simd.sub_f32s(*d, along), *p);
        }
        for (d, p) in rest.iter_mut().zip(other_shares) {
            *d = (*d - self.along) * p;
        }
    }
}

/// `eˣ` for x up to 0, within two units in the last place; below -87 as at -87, which next to the share of the largest score is
/// nothing. `x = n·ln 2 + r`, and a polynomial for `eʳ` (Cephes' `expf`).
#[inline(always)]
fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding it leaves an integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with few digits, so that n times it is exact.
    const LN_2: [f32; 2] = [355.0 / 512.0, -2.121_944_4e-4];
    const COEFFICIENTS: [f32; 5] = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let splat = |v| simd.splat_f32s(v);
    let x = simd.max_f32s(x, splat(-87.0));
    let rounded = simd.mul_add_f32s(x, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(rounded, splat(ROUND));
    let r = simd.mul_add_f32s(n, splat(-LN_2[0]), x);
    let r = simd.mul_add_f32s(n, splat(-LN_2[1]), r);
    let term = |sum, c| simd.mul_add_f32s(sum, r, splat(c));
    let sum = COEFFICIENTS.into_iter().fold(splat(1.987_569_1e-4), term);
    let one_less = simd.mul_add_f32s(sum, simd.mul_f32s(r, r), r);
    // 2ⁿ, by its exponent's bits.
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    let power = simd.transmute_f32s_u32s(simd.add_u32s(exponent, simd.splat_u32s(127 << 23)));
    simd.mul_f32s(simd.add_f32s(one_less, splat(1.0)), power)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function of the first operand's kind: rows of numbers that repeat nowhere.
    fn values(len: usize, seed: f64) -> Vec<f32> {
        (0..len).map(|i| (1.5 * (i as f64 * seed).sin()) as f32).collect()
    }

    /// Attention and its gradients for one head, straight from the formulas, in double precision.
    struct Plain {
        o: Vec<f64>,
        gradients: [Vec<f64>; 3],
    }

    fn plain(s: AttentionShape, scale: f64, [q, k, v, d_o]: [&[f64]; 4]) -> Plain {
        let AttentionShape {
            queries,
            keys,
            width,
            value_width,
            ..
        } = s;
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let mut o = vec![0.0; d_o.len()];
        for i in 0..queries {
            let qi = &q[i * width..][..width];
            let score = |j: usize| scale * (0..width).map(|c| qi[c] * k[j * width + c]).sum::<f64>();
            let e: Vec<f64> = (0..keys).map(|j| score(j).exp()).collect();
            let sum: f64 = e.iter().sum();
            let p: Vec<f64> = e.iter().map(|e| e / sum).collect();
            let doi = &d_o[i * value_width..][..value_width];
            let dp: Vec<f64> = (0..keys)
                .map(|j| (0..value_width).map(|c| doi[c] * v[j * value_width + c]).sum())
                .collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, d)| p * d).sum();
            for j in 0..keys {
                let ds = scale * p[j] * (dp[j] - mean);
                for c in 0..width {
                    dq[i * width + c] += ds * k[j * width + c];
                    dk[j * width + c] += ds * qi[c];
                }
                for c in 0..value_width {
                    dv[j * value_width + c] += p[j] * doi[c];
                    o[i * value_width + c] += p[j] * v[j * value_width + c];
                }
            }
        }
        Plain {
            o,
            gradients: [dq, dk, dv],
        }
    }

    /// Columns of one head of one sample.
    fn head(x: &[f32], n: usize, h: usize, rows: usize, heads: usize, width: usize) -> Vec<f64> {
        let row = |r: usize| &x[((n * rows + r) * heads + h) * width..][..width];
        (0..rows).flat_map(row).map(|x| f64::from(*x)).collect()
    }

    #[test]
    fn gradients_are_those_of_the_formulas() {
        // More than one block of queries, a last one that is not full, and numbers of keys that fill no register.
        for (queries, keys) in [(300, 77), (5, 3), (1, 1), (130, 40)] {
            let shape = AttentionShape {
                batch: 2,
                heads: 3,
                queries,
                keys,
                width: 5,
                value_width: 7,
            };
            let (inner, wide) = (shape.heads * shape.width, shape.heads * shape.value_width);
            let [q, k] = [(queries, 0.7), (keys, 1.3)].map(|(rows, seed)| values(2 * rows * inner, seed));
            let [v, d_o] = [(keys, 2.1), (queries, 0.37)].map(|(rows, seed)| values(2 * rows * wide, seed));
            let mut o = vec![0.0; d_o.len()];
            let mut wanted = Vec::new();
            for n in 0..2 {
                for h in 0..3 {
                    let of = |x: &[f32], rows, width| head(x, n, h, rows, 3, width);
                    let given = [
                        of(&q, queries, 5),
                        of(&k, keys, 5),
                        of(&v, keys, 7),
                        of(&d_o, queries, 7),
                    ];
                    let found = plain(shape, 0.4, given.each_ref().map(|x| &x[..]));
                    for (i, x) in found.o.iter().enumerate() {
                        o[((n * queries + i / 7) * 3 + h) * 7 + i % 7] = *x as f32;
                    }
                    wanted.push((n, h, found.gradients));
                }
            }
            let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| vec![f32::NAN; x.len()]);
            let operands = Operands {
                q: &q,
                k: &k,
                v: &v,
                o: &o,
                d_o: &d_o,
            };
            let gradients = Gradients {
                dq: &mut dq,
                dk: &mut dk,
                dv: &mut dv,
            };
            attention_gradients(shape, 0.4, operands, gradients, |jobs, job| {
                use rayon::prelude::*;
                (0..jobs).into_par_iter().for_each(job);
            });
            for (n, h, gradients) in wanted {
                let found = [(&dq, queries, 5), (&dk, keys, 5), (&dv, keys, 7)];
                for ((x, rows, width), wanted) in found.into_iter().zip(gradients) {
                    for (x, wanted) in head(x, n, h, rows, 3, width).iter().zip(wanted) {
                        assert!((x - wanted).abs() < 2e-5 * (1.0 + wanted.abs()), "{x} {wanted}");
                    }
                }
            }
        }
    }

    #[test]
    fn exponentials_are_right_to_two_units_in_the_last_place() {
        struct Exp<'a>(&'a mut [f32]);
        impl WithSimd for Exp<'_> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                let (blocks, rest) = S::as_mut_simd_f32s(self.0);
                assert!(rest.is_empty());
                blocks.iter_mut().for_each(|x| *x = exp(simd, *x));
            }
        }
        let given: Vec<f32> = (0..1 << 16).map(|i| -86.0 * i as f32 / 65536.0).collect();
        let mut found = given.clone();
        Arch::new().dispatch(Exp(&mut found));
        for (x, found) in given.iter().zip(found) {
            let wanted = f64::from(*x).exp();
            assert!(
                (f64::from(found) / wanted - 1.0).abs() < 2.4e-7,
                "exp({x}): {found} {wanted}"
            );
        }
    }
}
