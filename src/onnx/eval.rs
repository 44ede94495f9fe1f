//! Evaluating small nodes while a graph is made static: shape arithmetic, masks, position ids, frequency tables.
//!
//! Not an interpreter for models: it exists so that no `Shape` → … → `Reshape` chain is left, and it knows the operators
//! that exporters put into such chains. Anything else simply stays in the graph.

use super::attr::Attr;
use super::data::Constant;
use super::infer::{self, transpose_perm};
use super::view::{View, broadcast};
use crate::Result;
use crate::tensor::DType;

/// Largest result that is folded (a 2048² mask); larger ones stay nodes.
const MAX_ELEMENTS: usize = 1 << 22;

/// A small tensor whose numbers are known.
#[derive(Debug, Clone, PartialEq)]
pub struct Literal {
    dtype: DType,
    shape: Vec<usize>,
    numbers: Numbers,
}

#[derive(Debug, Clone, PartialEq)]
enum Numbers {
    Ints(Vec<i64>),
    Floats(Vec<f64>),
}

impl Literal {
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    fn ints(dtype: DType, shape: &[usize], values: Vec<i64>) -> Self {
        Self {
            dtype,
            shape: shape.to_vec(),
            numbers: Numbers::Ints(values),
        }
    }

    fn from_constant(c: &Constant) -> Option<Self> {
        let numbers = match c.dtype.is_float() {
            true => Numbers::Floats(c.to_floats()?),
            false => Numbers::Ints(c.to_integers()?),
        };
        Some(Self {
            dtype: c.dtype,
            shape: c.shape.clone(),
            numbers,
        })
    }

    /// As a constant of the graph; floats are rounded to their type here.
    pub fn into_constant(self) -> Constant {
        match self.numbers {
            Numbers::Ints(v) => Constant::integers(self.dtype, &self.shape, &v),
            Numbers::Floats(v) => Constant::floats(self.dtype, &self.shape, &v),
        }
    }

    fn as_floats(&self) -> Vec<f64> {
        match &self.numbers {
            Numbers::Ints(v) => v.iter().map(|x| *x as f64).collect(),
            Numbers::Floats(v) => v.clone(),
        }
    }

    /// The literal whose element `i` is this one's element `pick(i)`.
    fn gathered(&self, shape: &[usize], pick: impl Fn(usize) -> usize) -> Self {
        let n: usize = shape.iter().product();
        let numbers = match &self.numbers {
            Numbers::Ints(v) => Numbers::Ints((0..n).map(|i| v[pick(i)]).collect()),
            Numbers::Floats(v) => Numbers::Floats((0..n).map(|i| v[pick(i)]).collect()),
        };
        Self {
            dtype: self.dtype,
            shape: shape.to_vec(),
            numbers,
        }
    }

    fn broadcast_to(&self, shape: &[usize]) -> Self {
        let strides = strides(&self.shape);
        let lead = shape.len() - self.shape.len();
        self.gathered(shape, |i| {
            let at = position(i, shape);
            (0..self.shape.len())
                .map(|d| {
                    if self.shape[d] == 1 {
                        0
                    } else {
                        at[d + lead] * strides[d]
                    }
                })
                .sum()
        })
    }
}

fn strides(shape: &[usize]) -> Vec<usize> {
    let mut s = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        s[i - 1] = s[i] * shape[i];
    }
    s
}

/// Coordinates of element `i` of a row-major tensor.
fn position(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for d in (0..shape.len()).rev() {
        at[d] = i % shape[d];
        i /= shape[d];
    }
    at
}

/// The outputs of a node whose inputs are known, or `None` if it has to stay.
pub fn evaluate(v: &View) -> Result<Option<Vec<Literal>>> {
    if !v.node.domain.is_empty() {
        return Ok(None);
    }
    match v.node.op.as_str() {
        "Shape" => return shape_of(v),
        "Size" => {
            return Ok(Some(vec![Literal::ints(
                DType::I64,
                &[],
                vec![v.ty(0)?.len() as i64],
            )]));
        }
        _ => {}
    }
    let mut inputs = Vec::with_capacity(v.node.inputs.len());
    for value in &v.node.inputs {
        inputs.push(match value {
            None => None,
            Some(value) => {
                // Parameters of more than one number are weights: their nodes stay, whatever they compute.
                let weight = v.graph.parameters.contains(value) && v.graph.ty(*value).len() > 1;
                match v
                    .graph
                    .number(*value)
                    .filter(|_| !weight)
                    .and_then(Literal::from_constant)
                {
                    Some(l) => Some(l),
                    None => return Ok(None),
                }
            }
        });
    }
    if v.node.op == "Split" {
        return split(v, &inputs);
    }
    let Ok(mut types) = infer::infer(v.graph, v.node, 1) else {
        return Ok(None);
    };
    let ty = types.swap_remove(0);
    if ty.len() > MAX_ELEMENTS {
        return Ok(None);
    }
    Ok(one(v, &inputs, ty.dtype, &ty.shape)?.map(|l| vec![l]))
}

fn shape_of(v: &View) -> Result<Option<Vec<Literal>>> {
    let ty = infer::infer(v.graph, v.node, 1)?.swap_remove(0);
    let shape = v.shape(0)?;
    let rank = shape.len() as i64;
    let start = v.int("start", 0);
    let start = if start < 0 {
        (start + rank).max(0)
    } else {
        start.min(rank)
    } as usize;
    let dims: Vec<i64> = shape[start..start + ty.shape[0]]
        .iter()
        .map(|d| *d as i64)
        .collect();
    Ok(Some(vec![Literal::ints(DType::I64, &ty.shape, dims)]))
}

fn split(v: &View, inputs: &[Option<Literal>]) -> Result<Option<Vec<Literal>>> {
    let Some(x) = inputs[0].as_ref() else {
        return Ok(None);
    };
    let axis = v.axis_attr(0, 0)?;
    let outputs = match v.ints(1)? {
        Some(parts) => parts.len(),
        None => v.int("num_outputs", v.node.outputs.len() as i64).max(1) as usize,
    };
    let strides = strides(&x.shape);
    let mut start = 0;
    let mut pieces = Vec::new();
    for part in v.split_parts(outputs)? {
        let mut shape = x.shape.clone();
        shape[axis] = part;
        pieces.push(x.gathered(&shape, |i| {
            let mut at = position(i, &shape);
            at[axis] += start;
            at.iter().zip(&strides).map(|(a, s)| a * s).sum()
        }));
        start += part;
    }
    Ok(Some(pieces))
}

/// Evaluates a node with one output of the given type.
fn one(v: &View, inputs: &[Option<Literal>], dtype: DType, shape: &[usize]) -> Result<Option<Literal>> {
    let n: usize = shape.iter().product();
    if v.node.op == "ConstantOfShape" {
        let fill = match v.node.attrs.get("value") {
            Some(Attr::Tensor(c)) => Literal::from_constant(c),
            _ => Some(Literal {
                dtype,
                shape: vec![1],
                numbers: Numbers::Floats(vec![0.0]),
            }),
        };
        return Ok(fill.map(|f| f.gathered(shape, |_| 0)));
    }
    let Some(x) = inputs.first().and_then(Option::as_ref) else {
        return Ok(None);
    };
    Ok(match v.node.op.as_str() {
        "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" => Some(x.gathered(shape, |i| i)),
        "Expand" => Some(x.broadcast_to(shape)),
        "Cast" | "CastLike" => Some(cast(x, dtype)),
        "Transpose" => {
            let (perm, from) = (transpose_perm(v)?, strides(&x.shape));
            Some(x.gathered(shape, |i| {
                position(i, shape)
                    .iter()
                    .zip(&perm)
                    .map(|(at, p)| at * from[*p])
                    .sum()
            }))
        }
        "Slice" => {
            let (cuts, from) = (v.slice_axes()?, strides(&x.shape));
            Some(x.gathered(shape, |i| {
                let mut at: Vec<i64> = position(i, shape).iter().map(|a| *a as i64).collect();
                for c in &cuts {
                    at[c.axis] = c.start + at[c.axis] * c.step;
                }
                at.iter().zip(&from).map(|(a, s)| *a as usize * s).sum()
            }))
        }
        "Gather" => gather(v, x, inputs, shape)?,
        "Concat" => concat(v, inputs, dtype, shape)?,
        "Range" => {
            let l = |i: usize| inputs.get(i).and_then(Option::as_ref).map(|l| l.as_floats()[0]);
            let (Some(start), Some(delta)) = (l(0), l(2)) else {
                return Ok(None);
            };
            Some(from_floats(
                dtype,
                shape,
                (0..n).map(|i| start + i as f64 * delta).collect(),
            ))
        }
        "Tile" => {
            let from = strides(&x.shape);
            Some(x.gathered(shape, |i| {
                position(i, shape)
                    .iter()
                    .enumerate()
                    .map(|(d, a)| (a % x.shape[d]) * from[d])
                    .sum()
            }))
        }
        "Trilu" => {
            let k = match v.has(1) {
                true => v.ints(1)?.map_or(0, |k| k[0]),
                false => 0,
            };
            let upper = v.int("upper", 1) != 0;
            Some(masked(x, |at| {
                let d = at[at.len() - 1] as i64 - at[at.len() - 2] as i64;
                if upper { d >= k } else { d <= k }
            }))
        }
        "ReduceProd" | "ReduceSum" | "ReduceMax" | "ReduceMin" => reduce(v, x, dtype, shape)?,
        "Where" => {
            let (Some(a), Some(b)) = (inputs[1].as_ref(), inputs[2].as_ref()) else {
                return Ok(None);
            };
            let (c, a, b) = (
                x.broadcast_to(shape),
                a.broadcast_to(shape),
                b.broadcast_to(shape),
            );
            Some(pick(&c, &a, &b, dtype, shape))
        }
        op => match inputs.get(1).and_then(Option::as_ref) {
            None => unary(op, x, dtype, shape),
            Some(y) if inputs.len() == 2 => binary(v, x, y, dtype),
            Some(_) => None,
        },
    })
}

fn from_floats(dtype: DType, shape: &[usize], values: Vec<f64>) -> Literal {
    let numbers = match dtype.is_float() {
        true => Numbers::Floats(values.into_iter().map(|v| round_to(dtype, v)).collect()),
        false => Numbers::Ints(values.into_iter().map(|v| v as i64).collect()),
    };
    Literal {
        dtype,
        shape: shape.to_vec(),
        numbers,
    }
}

/// What a runtime would have computed in this type.
fn round_to(dtype: DType, v: f64) -> f64 {
    match dtype {
        DType::F32 => f64::from(v as f32),
        DType::F16 => half::f16::from_f64(v).to_f64(),
        DType::BF16 => half::bf16::from_f64(v).to_f64(),
        _ => v,
    }
}

fn cast(x: &Literal, to: DType) -> Literal {
    let numbers = match (&x.numbers, to.is_float(), to) {
        (Numbers::Ints(v), true, _) => Numbers::Floats(v.iter().map(|v| round_to(to, *v as f64)).collect()),
        (Numbers::Floats(v), true, _) => Numbers::Floats(v.iter().map(|v| round_to(to, *v)).collect()),
        (Numbers::Ints(v), false, DType::Bool) => {
            Numbers::Ints(v.iter().map(|v| i64::from(*v != 0)).collect())
        }
        (Numbers::Floats(v), false, DType::Bool) => {
            Numbers::Ints(v.iter().map(|v| i64::from(*v != 0.0)).collect())
        }
        (Numbers::Ints(v), false, _) => Numbers::Ints(v.clone()),
        (Numbers::Floats(v), false, _) => Numbers::Ints(v.iter().map(|v| *v as i64).collect()),
    };
    Literal {
        dtype: to,
        shape: x.shape.clone(),
        numbers,
    }
}

fn gather(v: &View, x: &Literal, inputs: &[Option<Literal>], shape: &[usize]) -> Result<Option<Literal>> {
    let axis = v.axis_attr(0, 0)?;
    let Some(Literal {
        numbers: Numbers::Ints(index),
        shape: index_shape,
        ..
    }) = &inputs[1]
    else {
        return Ok(None);
    };
    let (from, n) = (strides(&x.shape), x.shape[axis] as i64);
    let wrapped: Vec<i64> = index.iter().map(|i| if *i < 0 { i + n } else { *i }).collect();
    if wrapped.iter().any(|i| *i < 0 || *i >= n) {
        return Err(v.error("picks an index outside its data"));
    }
    let index_strides = strides(index_shape);
    Ok(Some(x.gathered(shape, |i| {
        let at = position(i, shape);
        let middle = &at[axis..axis + index_shape.len()];
        let which: usize = middle.iter().zip(&index_strides).map(|(a, s)| a * s).sum();
        let before: usize = at[..axis].iter().zip(&from).map(|(a, s)| a * s).sum();
        let after: usize = at[axis + index_shape.len()..]
            .iter()
            .zip(&from[axis + 1..])
            .map(|(a, s)| a * s)
            .sum();
        before + wrapped[which] as usize * from[axis] + after
    })))
}

fn concat(v: &View, inputs: &[Option<Literal>], dtype: DType, shape: &[usize]) -> Result<Option<Literal>> {
    let axis = v.axis_attr(0, 0)?;
    let mut numbers = match dtype.is_float() {
        true => Numbers::Floats(vec![0.0; shape.iter().product()]),
        false => Numbers::Ints(vec![0; shape.iter().product()]),
    };
    let to = strides(shape);
    let mut start = 0;
    for x in inputs.iter().flatten() {
        for i in 0..x.shape.iter().product() {
            let mut at = position(i, &x.shape);
            at[axis] += start;
            let j: usize = at.iter().zip(&to).map(|(a, s)| a * s).sum();
            match (&mut numbers, &x.numbers) {
                (Numbers::Ints(out), Numbers::Ints(v)) => out[j] = v[i],
                (Numbers::Floats(out), Numbers::Floats(v)) => out[j] = v[i],
                _ => return Ok(None),
            }
        }
        start += x.shape[axis];
    }
    Ok(Some(Literal {
        dtype,
        shape: shape.to_vec(),
        numbers,
    }))
}

fn masked(x: &Literal, keep: impl Fn(&[usize]) -> bool) -> Literal {
    let mut out = x.clone();
    let drop: Vec<usize> = (0..x.shape.iter().product())
        .filter(|i| !keep(&position(*i, &x.shape)))
        .collect();
    match &mut out.numbers {
        Numbers::Ints(v) => drop.iter().for_each(|i| v[*i] = 0),
        Numbers::Floats(v) => drop.iter().for_each(|i| v[*i] = 0.0),
    }
    out
}

fn pick(c: &Literal, a: &Literal, b: &Literal, dtype: DType, shape: &[usize]) -> Literal {
    let Numbers::Ints(truth) = &c.numbers else {
        return a.clone();
    };
    let numbers = match (&a.numbers, &b.numbers) {
        (Numbers::Ints(x), Numbers::Ints(y)) => Numbers::Ints(
            truth
                .iter()
                .enumerate()
                .map(|(i, t)| if *t != 0 { x[i] } else { y[i] })
                .collect(),
        ),
        _ => {
            let (x, y) = (a.as_floats(), b.as_floats());
            Numbers::Floats(
                truth
                    .iter()
                    .enumerate()
                    .map(|(i, t)| if *t != 0 { x[i] } else { y[i] })
                    .collect(),
            )
        }
    };
    Literal {
        dtype,
        shape: shape.to_vec(),
        numbers,
    }
}

fn reduce(v: &View, x: &Literal, dtype: DType, shape: &[usize]) -> Result<Option<Literal>> {
    let (axes, _) = v.reduction()?;
    let start = match v.node.op.as_str() {
        "ReduceProd" => 1.0,
        "ReduceSum" => 0.0,
        "ReduceMax" => f64::NEG_INFINITY,
        _ => f64::INFINITY,
    };
    let mut out = vec![start; shape.iter().product()];
    let kept: Vec<usize> = (0..x.shape.len()).filter(|d| !axes.contains(d)).collect();
    let kept_shape: Vec<usize> = kept.iter().map(|d| x.shape[*d]).collect();
    let to = strides(&kept_shape);
    for (i, value) in x.as_floats().into_iter().enumerate() {
        let at = position(i, &x.shape);
        let j: usize = kept.iter().zip(&to).map(|(d, s)| at[*d] * s).sum();
        out[j] = match v.node.op.as_str() {
            "ReduceProd" => out[j] * value,
            "ReduceSum" => out[j] + value,
            "ReduceMax" => out[j].max(value),
            _ => out[j].min(value),
        };
    }
    Ok(Some(from_floats(dtype, shape, out)))
}

fn unary(op: &str, x: &Literal, dtype: DType, shape: &[usize]) -> Option<Literal> {
    if op == "Not" {
        let Numbers::Ints(v) = &x.numbers else { return None };
        return Some(Literal::ints(
            dtype,
            shape,
            v.iter().map(|v| i64::from(*v == 0)).collect(),
        ));
    }
    let f: fn(f64) -> f64 = match op {
        "Neg" => |v| -v,
        "Abs" => f64::abs,
        "Floor" => f64::floor,
        "Ceil" => f64::ceil,
        "Round" => f64::round_ties_even,
        "Sqrt" => f64::sqrt,
        "Reciprocal" => f64::recip,
        "Exp" => f64::exp,
        "Log" => f64::ln,
        "Sin" => f64::sin,
        "Cos" => f64::cos,
        "Sign" => |v| if v == 0.0 { 0.0 } else { v.signum() },
        "IsNaN" => |v| f64::from(v.is_nan()),
        "IsInf" => |v| f64::from(v.is_infinite()),
        _ => return None,
    };
    Some(from_floats(
        dtype,
        shape,
        x.as_floats().into_iter().map(f).collect(),
    ))
}

fn binary(v: &View, x: &Literal, y: &Literal, dtype: DType) -> Option<Literal> {
    let shape = broadcast(&x.shape, &y.shape)?;
    let (x, y) = (x.broadcast_to(&shape), y.broadcast_to(&shape));
    if let (Numbers::Ints(a), Numbers::Ints(b)) = (&x.numbers, &y.numbers) {
        let f = integer_function(v)?;
        let values = a
            .iter()
            .zip(b)
            .map(|(a, b)| f(*a, *b))
            .collect::<Option<Vec<_>>>()?;
        return Some(Literal::ints(dtype, &shape, values));
    }
    let f: fn(f64, f64) -> f64 = match v.node.op.as_str() {
        "Add" => |a, b| a + b,
        "Sub" => |a, b| a - b,
        "Mul" => |a, b| a * b,
        "Div" => |a, b| a / b,
        "Pow" => f64::powf,
        "Min" => f64::min,
        "Max" => f64::max,
        "Equal" => |a, b| f64::from(a == b),
        "Less" => |a, b| f64::from(a < b),
        "LessOrEqual" => |a, b| f64::from(a <= b),
        "Greater" => |a, b| f64::from(a > b),
        "GreaterOrEqual" => |a, b| f64::from(a >= b),
        _ => return None,
    };
    let values = x
        .as_floats()
        .into_iter()
        .zip(y.as_floats())
        .map(|(a, b)| f(a, b))
        .collect();
    Some(from_floats(dtype, &shape, values))
}

type IntegerFunction = fn(i64, i64) -> Option<i64>;

fn integer_function(v: &View) -> Option<IntegerFunction> {
    let fmod = v.int("fmod", 0) != 0;
    Some(match v.node.op.as_str() {
        "Add" => i64::checked_add,
        "Sub" => i64::checked_sub,
        "Mul" => i64::checked_mul,
        "Div" => i64::checked_div,
        "Mod" if fmod => i64::checked_rem,
        // The sign of the divisor, as ONNX asks for integers.
        "Mod" => |a, b| Some(a.checked_rem(b)?.checked_add(b)?.checked_rem(b)?),
        "Pow" => |a, b| a.checked_pow(u32::try_from(b).ok()?),
        "Min" => |a, b| Some(a.min(b)),
        "Max" => |a, b| Some(a.max(b)),
        "Equal" => |a, b| Some(i64::from(a == b)),
        "Less" => |a, b| Some(i64::from(a < b)),
        "LessOrEqual" => |a, b| Some(i64::from(a <= b)),
        "Greater" => |a, b| Some(i64::from(a > b)),
        "GreaterOrEqual" => |a, b| Some(i64::from(a >= b)),
        "And" => |a, b| Some(i64::from(a != 0 && b != 0)),
        "Or" => |a, b| Some(i64::from(a != 0 || b != 0)),
        "Xor" => |a, b| Some(i64::from((a != 0) != (b != 0))),
        _ => return None,
    })
}
