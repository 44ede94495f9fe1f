//! `Attention` (opset 23): `O = softmax(cap(scale·Q·Kᵀ) + mask)·V`, several heads, with grouped queries, causal and given
//! masks, soft capping, and keys and values from before.
//!
//! The forward operator keeps no probabilities, so they are computed again. With `S` what goes into the softmax and `P`
//! what comes out (Dao et al. 2022, FlashAttention, appendix B.2):
//! `dV = Pᵀ·dO`, `dP = dO·Vᵀ`, `dS = P ∘ (dP − Σ dO∘O)`, `dQ = scale·dS′·K`, `dK = scale·dS′ᵀ·Q`,
//! where `dS′ = dS ∘ (1 − tanh²)` with soft capping and `dS` without. Two matrices of queries × keys live at once.

use super::{Context, Gradients, Rule};
use crate::Result;
use crate::onnx::{Graph, ValueId};
use crate::tensor::DType;

pub(super) fn rule(op: &str) -> Option<Rule> {
    (op == "Attention").then_some(attention as Rule)
}

/// Operands with heads apart: queries (N, Hkv, G·S, D), where the G query heads that share a key head lie one after the
/// other; keys (N, Hkv, T, D) and values (N, Hkv, T, Dv) including those from before.
struct Operands {
    q: ValueId,
    k: ValueId,
    v: ValueId,
    scale: f64,
    soft_cap: f64,
    /// Keys from before.
    past: usize,
    /// (N, Hq, S, T).
    scores: [usize; 4],
}

fn attention(c: &mut Context) -> Result<Gradients> {
    if c.dy.get(3).copied().flatten().is_some() {
        return Err(c.unsupported("an Attention whose scores are used"));
    }
    let operands = Operands::of(c)?;
    let mut out = vec![None; c.node.inputs.len()];
    let (mut dk, mut dv) = (c.dy.get(1).copied().flatten(), c.dy.get(2).copied().flatten());
    if let Some(dy) = c.dy[0] {
        let bias = bias(c, &operands)?;
        let found = operands.gradients(c, dy, bias.as_ref())?;
        if c.wants(0) {
            out[0] = Some(rearranged(c, 0, found.dq)?);
        }
        if c.wants(3) {
            let shape = c.shape(3)?;
            out[3] = Some(c.graph.sum_to(found.d_bias, &shape)?);
        }
        dk = Some(sum(c.graph, dk, found.dk)?);
        dv = Some(sum(c.graph, dv, found.dv)?);
    }
    for (gradient, new, old) in [(dk, 1, 4), (dv, 2, 5)] {
        let Some(gradient) = gradient else { continue };
        if c.wants(new) {
            let part = c.graph.slice(gradient, 2, operands.past, operands.scores[3])?;
            out[new] = Some(rearranged(c, new, part)?);
        }
        if c.wants(old) {
            out[old] = Some(c.graph.slice(gradient, 2, 0, operands.past)?);
        }
    }
    Ok(out)
}

fn sum(g: &mut Graph, a: Option<ValueId>, b: ValueId) -> Result<ValueId> {
    a.map_or(Ok(b), |a| g.add(a, b))
}

/// (N, S, H·D) → (N, H, S, D); four dimensions are as they should be.
pub(super) fn heads_apart(g: &mut Graph, x: ValueId, heads: usize) -> Result<ValueId> {
    let shape = g.shape(x).to_vec();
    if shape.len() == 4 {
        return Ok(x);
    }
    let split = g.reshape(x, &[shape[0], shape[1], heads, shape[2] / heads])?;
    g.transpose(split, &[0, 2, 1, 3])
}

/// A gradient with heads apart in the shape of input `i`.
fn rearranged(c: &mut Context, i: usize, gradient: ValueId) -> Result<ValueId> {
    let shape = c.shape(i)?;
    if shape.len() == 4 {
        return c.graph.reshape(gradient, &shape);
    }
    let size = *c
        .graph
        .shape(gradient)
        .last()
        .expect("gradients with heads apart have four dimensions");
    let apart = c
        .graph
        .reshape(gradient, &[shape[0], shape[2] / size, shape[1], size])?;
    let joined = c.graph.transpose(apart, &[0, 2, 1, 3])?;
    c.graph.reshape(joined, &shape)
}

/// What is added to the scores, broadcasting to them.
struct Bias {
    value: ValueId,
    /// Which queries may attend to some key, where the mask decides that at run time. The others have the output 0.
    alive: Option<ValueId>,
}

fn bias(c: &mut Context, o: &Operands) -> Result<Option<Bias>> {
    let causal = c.view().int("is_causal", 0) != 0;
    let mask = c.node.input(3);
    let dtype = c.graph.dtype(o.q);
    let [_, _, queries, keys] = o.scores;
    if let Some(mask) = mask {
        let fits = crate::onnx::view::broadcast(c.graph.shape(mask), &o.scores);
        if fits.as_deref() != Some(&o.scores) {
            return Err(c.unsupported("an Attention with a mask for a part of the keys"));
        }
    }
    let g = &mut *c.graph;
    let causal = causal.then(|| {
        let allowed = |at: usize| at % keys <= at / keys + o.past;
        let values: Vec<f64> = (0..queries * keys)
            .map(|at| if allowed(at) { 0.0 } else { f64::NEG_INFINITY })
            .collect();
        g.float_tensor(dtype, &[queries, keys], &values)
    });
    let Some(mask) = mask else {
        return Ok(causal.map(|value| Bias { value, alive: None }));
    };
    let mask = if g.dtype(mask) == DType::Bool {
        let (zero, never) = (g.scalar(dtype, 0.0), g.scalar(dtype, f64::NEG_INFINITY));
        g.select(mask, zero, never)?
    } else {
        mask
    };
    let bias = sum(g, causal, mask)?;
    // Rows of −∞ alone would make the softmax undefined: they get a finite bias, and are taken out by `alive`.
    let last = g.rank(bias) - 1;
    let best = g.reduce("ReduceMax", bias, &[last], true)?;
    let alive = g.with_number("Greater", best, lowest(dtype))?;
    let value = g.with_number("Max", bias, lowest(dtype))?;
    Ok(Some(Bias {
        value,
        alive: Some(alive),
    }))
}

/// Most negative finite number.
fn lowest(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f64::from(half::f16::MIN),
        DType::BF16 => f64::from(half::bf16::MIN),
        DType::F64 => f64::MIN,
        _ => f64::from(f32::MIN),
    }
}

/// Gradients of the operands, shaped like them; `d_bias` (N, Hq, S, T).
struct Found {
    dq: ValueId,
    dk: ValueId,
    dv: ValueId,
    d_bias: ValueId,
}

impl Operands {
    fn of(c: &mut Context) -> Result<Self> {
        let view = c.view();
        let heads = view.attention_heads()?;
        let soft_cap = f64::from(view.float("softcap", 0.0));
        let scale = match view.float("scale", 0.0) {
            0.0 => None,
            given => Some(f64::from(given)),
        };
        let (q, mut k, mut v) = (c.x(0)?, c.x(1)?, c.x(2)?);
        let (past_k, past_v) = (c.node.input(4), c.node.input(5));
        let g = &mut *c.graph;
        let q = heads_apart(g, q, heads.q)?;
        k = heads_apart(g, k, heads.kv)?;
        v = heads_apart(g, v, heads.kv)?;
        let past = past_k.map_or(0, |p| g.shape(p)[2]);
        if let (Some(past_k), Some(past_v)) = (past_k, past_v) {
            k = g.concat(&[past_k, k], 2)?;
            v = g.concat(&[past_v, v], 2)?;
        }
        let (sq, keys) = (g.shape(q).to_vec(), g.shape(k)[2]);
        let size = sq[3];
        let q = g.reshape(q, &[sq[0], heads.kv, heads.q / heads.kv * sq[2], size])?;
        Ok(Self {
            q,
            k,
            v,
            scale: scale.unwrap_or(1.0 / (size as f64).sqrt()),
            soft_cap,
            past,
            scores: [sq[0], heads.q, sq[2], keys],
        })
    }

    /// The shape of `with`'s scores for query heads one after the other.
    fn grouped(&self, g: &mut Graph, value: ValueId) -> Result<ValueId> {
        let kv = g.shape(self.k)[1];
        let [batch, heads, queries, _] = self.scores;
        let last = *g
            .shape(value)
            .last()
            .expect("values with heads apart have four dimensions");
        g.reshape(value, &[batch, kv, heads / kv * queries, last])
    }

    fn gradients(&self, c: &mut Context, dy: ValueId, bias: Option<&Bias>) -> Result<Found> {
        let y = c.y0()?;
        let g = &mut *c.graph;
        let scaled = g.scale(self.q, self.scale)?;
        let kt = g.transpose_last(self.k)?;
        let scores = g.matmul(scaled, kt)?;
        let (capped, tanh) = self.capped(g, scores)?;
        let biased = match bias {
            Some(bias) => {
                let apart = g.reshape(capped, &self.scores)?;
                let biased = g.add(apart, bias.value)?;
                self.grouped(g, biased)?
            }
            None => capped,
        };
        let p = g.op("Softmax", &[biased], crate::onnx::Attrs::new().int("axis", -1))?;

        let heads = self.scores[1];
        let mut d_o = heads_apart(g, dy, heads)?;
        if let Some(alive) = bias.and_then(|b| b.alive) {
            d_o = g.keep_where(alive, d_o)?;
        }
        let d_o = self.grouped(g, d_o)?;
        let o = heads_apart(g, y, heads)?;
        let o = self.grouped(g, o)?;
        let pt = g.transpose_last(p)?;
        let dv = g.matmul(pt, d_o)?;
        let vt = g.transpose_last(self.v)?;
        let dp = g.matmul(d_o, vt)?;
        let product = g.mul(d_o, o)?;
        let along = g.sum_keep(product, &[3])?;
        let rest = g.sub(dp, along)?;
        let ds = g.mul(rest, p)?;
        let d_bias = g.reshape(ds, &self.scores)?;
        let ds = match tanh {
            Some(t) => {
                let square = g.square(t)?;
                let slope = g.one_minus(square)?;
                g.mul(ds, slope)?
            }
            None => ds,
        };
        let dq = g.matmul(ds, self.k)?;
        let dq = g.scale(dq, self.scale)?;
        let dst = g.transpose_last(ds)?;
        Ok(Found {
            dq,
            dk: g.matmul(dst, scaled)?,
            dv,
            d_bias,
        })
    }

    /// `cap·tanh(scores/cap)`, and the tangent.
    fn capped(&self, g: &mut Graph, scores: ValueId) -> Result<(ValueId, Option<ValueId>)> {
        if self.soft_cap <= 0.0 {
            return Ok((scores, None));
        }
        let scaled = g.scale(scores, 1.0 / self.soft_cap)?;
        let tanh = g.unary("Tanh", scaled)?;
        Ok((g.scale(tanh, self.soft_cap)?, Some(tanh)))
    }
}
