//! `MultiHeadAttention` of ONNX Runtime's own domain, in the layout that `traingraph::attention` writes: `O = softmax(s·Q·Kᵀ)·V`
//! with queries and output (N, S, H·D), keys (N, T, H·D) and values (N, T, H·Dv).
//!
//! The operator keeps no probabilities and never has all scores in memory; nor does this backward pass. For a chunk of the
//! queries at a time (Dao et al. 2022, FlashAttention, appendix B.2):
//! `P = softmax(s·Q·Kᵀ)`, `dV += Pᵀ·dO`, `dS = P ∘ (dO·Vᵀ − Σ dO∘O)`, `dQ = s·dS·K`, `dK += s·dSᵀ·Q`.
//!
//! On the CPU one operator does the same ([`crate::kernels`]), several times as fast; the two are held to each other here.

use super::attention::heads_apart;
use super::{Context, Gradients};
use crate::Result;
use crate::autodiff::AttentionGradient;
use crate::kernels::{ATTENTION_GRADIENT, ORTDPO};
use crate::onnx::{Attrs, Graph, LARGE_MATRIX, Node, Token, ValueId};
use crate::tensor::DType;

/// The rule.
pub(super) fn multi_head_attention(c: &mut Context) -> Result<Gradients> {
    if (3..c.node.inputs.len()).any(|i| c.view().has(i)) || c.view().int("unidirectional", 0) != 0 {
        return Err(c.unsupported("a MultiHeadAttention with biases, masks or keys from before"));
    }
    let heads = c.view().int("num_heads", 1).max(1) as usize;
    let [q, k, v, o, d_o] = [c.x(0)?, c.x(1)?, c.x(2)?, c.y0()?, c.dy0()?];
    // As ONNX Runtime takes it where it is left out or 0.
    let width = c.shape(0)?[2] / heads;
    let scale = match c.view().float("scale", 0.0) {
        0.0 => 1.0 / (width as f64).sqrt(),
        scale => f64::from(scale),
    };
    let g = &mut *c.graph;
    if c.options.attention == AttentionGradient::Fused && g.dtype(q) == DType::F32 {
        return one_operator(g, [q, k, v, o, d_o], heads, scale);
    }
    let operands = Operands {
        q: heads_apart(g, q, heads)?,
        k: heads_apart(g, k, heads)?,
        v: heads_apart(g, v, heads)?,
        o: heads_apart(g, o, heads)?,
        d_o: heads_apart(g, d_o, heads)?,
        scale,
    };
    let found = operands.gradients(g, LARGE_MATRIX)?;
    found
        .into_iter()
        .zip([q, k, v])
        .map(|(gradient, operand)| {
            let shape = g.shape(operand).to_vec();
            let rows = g.transpose(gradient, &[0, 2, 1, 3])?;
            g.reshape(rows, &shape).map(Some)
        })
        .collect()
}

/// The operator that sessions on the CPU have for it.
fn one_operator(g: &mut Graph, operands: [ValueId; 5], heads: usize, scale: f64) -> Result<Gradients> {
    g.other_opsets.insert(ORTDPO.to_owned(), 1);
    let node = Node {
        op: ATTENTION_GRADIENT.to_owned(),
        domain: ORTDPO.to_owned(),
        name: String::new(),
        inputs: operands.map(Some).to_vec(),
        outputs: Vec::new(),
        attrs: Attrs::new()
            .int("num_heads", heads as i64)
            .float("scale", scale as f32),
        metadata: Vec::new(),
    };
    g.add_node(node, &[Some(""); 3])
}

/// All with heads apart.
struct Operands {
    q: ValueId,
    k: ValueId,
    v: ValueId,
    o: ValueId,
    d_o: ValueId,
    scale: f64,
}

impl Operands {
    /// `dQ`, `dK` and `dV`, with scores of at most `limit` bytes at a time.
    fn gradients(&self, g: &mut Graph, limit: usize) -> Result<[ValueId; 3]> {
        let [batch, heads, rows, _] = g.shape(self.q)[..] else {
            unreachable!("heads are apart")
        };
        let bytes = batch * heads * rows * g.shape(self.k)[2] * DType::F32.size();
        let chunks = bytes.div_ceil(limit).clamp(1, rows);
        let [q, o, d_o] = [self.q, self.o, self.d_o].map(|x| g.in_parts(x, 2, chunks));
        let (q, o, d_o) = (q?, o?, d_o?);

        let mut found: Vec<ValueId> = Vec::with_capacity(chunks);
        let mut sums: Option<[ValueId; 2]> = None;
        let mut token: Option<Token> = None;
        for i in 0..chunks {
            let chunk = [q[i], o[i], d_o[i]].map(|x| match token {
                // One chunk after the other, or all their scores could be there at once.
                Some(token) => g.after(x, token),
                None => Ok(x),
            });
            let [q, o, d_o] = chunk;
            let [dq, dk, dv] = self.chunk(g, q?, o?, d_o?)?;
            let summed = match sums {
                None => [dk, dv],
                Some([k, v]) => [g.add(k, dk)?, g.add(v, dv)?],
            };
            sums = Some(summed);
            found.push(dq);
            if i + 1 < chunks {
                token = Some(g.token(&[dq, summed[0], summed[1]])?);
            }
        }
        let [dk, dv] = sums.expect("there is at least one chunk");
        Ok([g.concat(&found, 2)?, dk, dv])
    }

    /// What a chunk of the queries gives: its own gradient, and its part of those of keys and values.
    fn chunk(&self, g: &mut Graph, q: ValueId, o: ValueId, d_o: ValueId) -> Result<[ValueId; 3]> {
        let dtype = g.dtype(q);
        let scaled = g.scale(q, self.scale)?;
        let kt = g.transpose_last(self.k)?;
        let scores = g.matmul(scaled, kt)?;
        // Sums over keys and exponentials need single precision; the products around them do not.
        let scores = g.cast(scores, DType::F32)?;
        let p = g.op("Softmax", &[scores], Attrs::new().int("axis", -1))?;
        let vt = g.transpose_last(self.v)?;
        let dp = g.matmul(d_o, vt)?;
        let dp = g.cast(dp, DType::F32)?;
        let [wide, wide_d] = [o, d_o].map(|x| g.cast(x, DType::F32));
        let product = g.mul(wide_d?, wide?)?;
        let along = g.sum_keep(product, &[3])?;
        let rest = g.sub(dp, along)?;
        let ds = g.mul(rest, p)?;

        let (p, ds) = (g.cast(p, dtype)?, g.cast(ds, dtype)?);
        let pt = g.transpose_last(p)?;
        let dv = g.matmul(pt, d_o)?;
        let dst = g.transpose_last(ds)?;
        let dk = g.matmul(dst, scaled)?;
        let dq = g.matmul(ds, self.k)?;
        Ok([g.scale(dq, self.scale)?, dk, dv])
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::autodiff::{DeriveOptions, gradients_with};
    use crate::onnx::{MICROSOFT, TensorType, validate};
    use crate::pipeline::network::{map_weights, session_over};
    use crate::runtime::{SessionOptions, TensorView};

    const INPUTS: [(&str, [usize; 4]); 5] = [
        ("q", [2, 3, 7, 4]),
        ("k", [2, 3, 5, 4]),
        ("v", [2, 3, 5, 6]),
        ("o", [2, 3, 7, 6]),
        ("d_o", [2, 3, 7, 6]),
    ];

    /// `dq`, `dk` and `dv` that `g` computes from sines, each input's of a frequency of its own.
    fn computed<const N: usize>(
        g: &Graph,
        inputs: &[(&str, [usize; N])],
        frequency: impl Fn(&str) -> f32,
    ) -> Vec<Vec<f32>> {
        validate(g).unwrap();
        let values = inputs.iter().map(|(name, shape)| {
            let (frequency, len) = (frequency(name), shape.iter().product::<usize>());
            (0..len)
                .map(|i| (i as f32 * frequency).sin())
                .collect::<Vec<f32>>()
        });
        let values: Vec<_> = values.collect();
        let weights = map_weights(g).unwrap();
        let mut session = session_over(g, Path::new("."), &weights, &SessionOptions::default()).unwrap();
        let given: Vec<_> = inputs
            .iter()
            .zip(&values)
            .map(|((name, shape), values)| (*name, TensorView::f32(shape, values)))
            .collect();
        let mut outputs = session.run(&given).unwrap();
        let made = ["dq", "dk", "dv"].map(|name| {
            let tensor = outputs.take(name).unwrap().into_f32(name).unwrap();
            tensor.into_raw_vec_and_offset().0
        });
        made.into()
    }

    /// `dQ`, `dK`, `dV` with `limit`, on numbers that are the same every time.
    fn run(limit: usize) -> (Graph, Vec<Vec<f32>>) {
        let mut g = Graph::new("backward", 17);
        let [q, k, v, o, d_o] =
            INPUTS.map(|(name, shape)| g.add_input(name, TensorType::new(DType::F32, shape)));
        let operands = Operands {
            q,
            k,
            v,
            o,
            d_o,
            scale: 0.5,
        };
        let found = operands.gradients(&mut g, limit).unwrap();
        for (value, name) in found.into_iter().zip(["dq", "dk", "dv"]) {
            let value = g.as_output(value, name).unwrap();
            g.outputs.push(value);
        }
        let found = computed(&g, &INPUTS, |name| {
            name.len() as f32 + f32::from(name.as_bytes()[0]) / 50.0
        });
        (g, found)
    }

    #[test]
    fn chunks_give_what_the_whole_gives_with_a_part_of_its_scores() {
        let (whole, wanted) = run(usize::MAX);
        // Scores of a query take 120 bytes.
        let (chunks, found) = run(300);
        let rows = |g: &Graph| -> Vec<usize> {
            let softmaxes = g.nodes.iter().filter(|n| n.op == "Softmax");
            softmaxes.map(|n| g.shape(n.output(0).unwrap())[2]).collect()
        };
        assert_eq!((rows(&whole), rows(&chunks)), (vec![7], vec![2, 2, 3]));
        for (found, wanted) in found.iter().zip(&wanted) {
            assert_eq!(found.len(), wanted.len());
            for (f, w) in found.iter().zip(wanted) {
                assert!((f - w).abs() < 1e-5, "{f} {w}");
            }
        }
    }

    /// `dQ`, `dK`, `dV` of the operator itself, 3 heads, with gradients of that form.
    fn of_operator(attention: AttentionGradient, scale: Option<f32>) -> (Graph, Vec<Vec<f32>>) {
        let mut g = Graph::new("attention", 17);
        g.other_opsets.insert(MICROSOFT.to_owned(), 1);
        let inputs = [
            ("q", [2, 150, 12]),
            ("k", [2, 19, 12]),
            ("v", [2, 19, 6]),
            ("dy", [2, 150, 6]),
        ];
        let [q, k, v, dy] = inputs.map(|(name, shape)| g.add_input(name, TensorType::new(DType::F32, shape)));
        let attrs = Attrs::new().int("num_heads", 3);
        let node = Node {
            op: "MultiHeadAttention".to_owned(),
            domain: MICROSOFT.to_owned(),
            name: String::new(),
            inputs: vec![Some(q), Some(k), Some(v)],
            outputs: Vec::new(),
            attrs: scale.map_or(attrs.clone(), |scale| attrs.float("scale", scale)),
            metadata: Vec::new(),
        };
        let y = g.add_node(node, &[Some("y")]).unwrap()[0].unwrap();
        let options = DeriveOptions {
            attention,
            ..DeriveOptions::default()
        };
        let found = gradients_with(&mut g, &[(y, dy)], &[q, k, v], options).unwrap();
        for (value, name) in found.into_iter().zip(["dq", "dk", "dv"]) {
            let value = g.as_output(value.unwrap(), name).unwrap();
            g.outputs.push(value);
        }
        let found = computed(&g, &inputs, |name| 0.3 + f32::from(name.as_bytes()[0]) / 50.0);
        (g, found)
    }

    #[test]
    fn one_operator_gives_what_standard_ones_give() {
        // ONNX Runtime's default is one over the root of a head's width, which is 4 here.
        for scale in [Some(0.8), Some(0.5), None] {
            let (chunks, wanted) = of_operator(AttentionGradient::Chunks, scale);
            let (fused, found) = of_operator(AttentionGradient::Fused, scale);
            let has = |g: &Graph, op: &str| g.nodes.iter().any(|n| n.op == op);
            assert!(has(&fused, ATTENTION_GRADIENT) && !has(&fused, "Softmax"));
            assert!(!has(&chunks, ATTENTION_GRADIENT) && has(&chunks, "Softmax"));
            for (found, wanted) in found.iter().flatten().zip(wanted.iter().flatten()) {
                assert!((found - wanted).abs() < 1e-5, "{found} {wanted}");
            }
        }
        let [half, default] = [Some(0.5), None].map(|s| of_operator(AttentionGradient::Chunks, s).1);
        assert_eq!(half, default);
    }

    #[test]
    fn what_the_rule_does_not_know_is_refused() {
        let derive = |extra: bool, unidirectional: i64| {
            let mut g = Graph::new("attention", 17);
            let ty = |shape: &[usize]| TensorType::new(DType::F32, shape.to_vec());
            let x = g.add_input("x", ty(&[1, 4, 6]));
            let bias = g.add_input("bias", ty(&[18]));
            let node = Node {
                op: "MultiHeadAttention".to_owned(),
                domain: MICROSOFT.to_owned(),
                name: String::new(),
                inputs: [Some(x), Some(x), Some(x)]
                    .into_iter()
                    .chain(extra.then_some(Some(bias)))
                    .collect(),
                outputs: Vec::new(),
                attrs: Attrs::new()
                    .int("num_heads", 3)
                    .int("unidirectional", unidirectional),
                metadata: Vec::new(),
            };
            let y = g.add_node(node, &[Some("y")]).unwrap()[0].unwrap();
            gradients_with(&mut g, &[(y, x)], &[x], DeriveOptions::default()).map(drop)
        };
        derive(false, 0).unwrap();
        for refused in [derive(true, 0), derive(false, 1)] {
            assert!(
                refused
                    .unwrap_err()
                    .to_string()
                    .contains("MultiHeadAttention with biases")
            );
        }
    }
}
