//! Evaluating small nodes while a graph is made static: shape arithmetic, masks, position ids, frequency tables.
//!
//! Not an interpreter for models: it exists so that no `Shape` → … → `Reshape` chain is left, and it knows the operators
//! that exporters put into such chains. Anything else simply stays in the graph.

use super::attr::Attr;
use super::graph::ValueId;
use super::infer::{self, transpose_perm};
use super::literal::{Literal, Numbers, position, strides};
use super::view::{View, broadcast};
use crate::Result;
use crate::tensor::DType;

/// Largest result that is folded (a 2048² mask); larger ones stay nodes.
const MAX_ELEMENTS: usize = 1 << 22;

/// The `outputs` outputs of a node whose inputs are known, or `None` if it has to stay.
pub fn evaluate(v: &View, outputs: usize) -> Result<Option<Vec<Literal>>> {
    if !v.node.domain.is_empty() {
        return Ok(None);
    }
    match v.node.op.as_str() {
        "Shape" => return shape_of(v),
        "Size" => {
            let count = v.ty(0)?.len() as i64;
            return Ok(Some(vec![Literal::ints(DType::I64, &[], vec![count])]));
        }
        _ => {}
    }
    let mut inputs = Vec::with_capacity(v.node.inputs.len());
    for value in &v.node.inputs {
        let known = match value {
            None => None,
            Some(value) => match known_numbers(v, *value) {
                Some(literal) => Some(literal),
                None => return Ok(None),
            },
        };
        inputs.push(known);
    }
    if v.node.op == "Split" {
        return split(v, &inputs, outputs);
    }
    // What has no shape rule, or breaks it, stays; the error comes when its node is added.
    let Ok(mut types) = infer::infer(v.graph, v.node, 1) else {
        return Ok(None);
    };
    let ty = types.swap_remove(0);
    if ty.len() > MAX_ELEMENTS || ty.dtype == DType::String {
        return Ok(None);
    }
    Ok(one(v, &inputs, ty.dtype, &ty.shape)?.map(|l| vec![l]))
}

/// The numbers of `value`, unless it is a parameter of more than one number: those are weights, and their nodes stay,
/// whatever they compute.
fn known_numbers(v: &View, value: ValueId) -> Option<Literal> {
    let weight = v.graph.parameters.contains(&value) && v.graph.ty(value).len() > 1;
    let constant = v.graph.number(value).filter(|_| !weight)?;
    Literal::from_constant(constant)
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
    };
    let dims = shape[start as usize..].iter().take(ty.shape[0]);
    let dims = dims.map(|d| *d as i64).collect();
    Ok(Some(vec![Literal::ints(DType::I64, &ty.shape, dims)]))
}

fn split(v: &View, inputs: &[Option<Literal>], outputs: usize) -> Result<Option<Vec<Literal>>> {
    let Some(x) = inputs.first().and_then(Option::as_ref) else {
        return Ok(None);
    };
    let axis = v.axis_attr(0, 0)?;
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

/// Evaluates a node with one output of the given type, which its shape rule found to be sound.
fn one(v: &View, inputs: &[Option<Literal>], dtype: DType, shape: &[usize]) -> Result<Option<Literal>> {
    let given = |i: usize| inputs.get(i).and_then(Option::as_ref);
    let Some(x) = given(0) else {
        return Ok(None);
    };
    Ok(match v.node.op.as_str() {
        "ConstantOfShape" => filled(v, dtype, shape),
        "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" => Some(x.gathered(shape, |i| i)),
        "Expand" => Some(x.broadcast_to(shape)),
        "Cast" | "CastLike" => Some(x.cast(dtype)),
        "Transpose" => {
            let (perm, from) = (transpose_perm(v)?, strides(&x.shape));
            let place = |i| {
                position(i, shape)
                    .iter()
                    .zip(&perm)
                    .map(|(at, p)| at * from[*p])
                    .sum()
            };
            Some(x.gathered(shape, place))
        }
        "Slice" => Some(slice(v, x, shape)?),
        "Gather" => gather(v, x, inputs, shape)?,
        "Concat" => concat(v, inputs, dtype, shape)?,
        "Range" => {
            let first = |i: usize| given(i)?.as_floats().first().copied();
            let (Some(start), Some(delta)) = (first(0), first(2)) else {
                return Ok(None);
            };
            let count: usize = shape.iter().product();
            let values = (0..count).map(|i| start + i as f64 * delta).collect();
            Some(Literal::floats(dtype, shape, values))
        }
        "Tile" => {
            let from = strides(&x.shape);
            let place = |i| {
                let at = position(i, shape).into_iter().enumerate();
                at.map(|(d, a)| (a % x.shape[d]) * from[d]).sum()
            };
            Some(x.gathered(shape, place))
        }
        "Trilu" => Some(triangle(v, x)?),
        "ReduceProd" | "ReduceSum" | "ReduceMax" | "ReduceMin" => reduce(v, x, dtype, shape)?,
        "Where" => match (given(1), given(2)) {
            (Some(a), Some(b)) => {
                let all = [x, a, b].map(|l| l.broadcast_to(shape));
                Some(pick(&all[0], &all[1], &all[2], dtype, shape))
            }
            _ => None,
        },
        op => match given(1) {
            None => unary(op, x, dtype, shape),
            Some(y) if inputs.len() == 2 => binary(v, x, y, dtype),
            Some(_) => None,
        },
    })
}

/// `ConstantOfShape`: zeros, or the one number of its attribute.
fn filled(v: &View, dtype: DType, shape: &[usize]) -> Option<Literal> {
    let fill = match v.node.attrs.get("value") {
        Some(Attr::Tensor(c)) => Literal::from_constant(c).filter(|_| c.len() == 1)?,
        _ => Literal::floats(dtype, &[1], vec![0.0]),
    };
    Some(fill.gathered(shape, |_| 0))
}

fn slice(v: &View, x: &Literal, shape: &[usize]) -> Result<Literal> {
    let (cuts, from) = (v.slice_axes()?, strides(&x.shape));
    Ok(x.gathered(shape, |i| {
        let mut at: Vec<i64> = position(i, shape).iter().map(|a| *a as i64).collect();
        for c in &cuts {
            at[c.axis] = c.start + at[c.axis] * c.step;
        }
        at.iter().zip(&from).map(|(a, s)| *a as usize * s).sum()
    }))
}

fn triangle(v: &View, x: &Literal) -> Result<Literal> {
    let k = v.first_int(1, 0)?;
    let upper = v.int("upper", 1) != 0;
    Ok(masked(x, |at| {
        let above = match at {
            [.., row, column] => *column as i64 - *row as i64,
            _ => 0,
        };
        if upper { above >= k } else { above <= k }
    }))
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
    Ok(Some(Literal::floats(dtype, shape, out)))
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
    Some(Literal::floats(
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
    Some(Literal::floats(dtype, &shape, values))
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
        "Mod" => |a, b| a.checked_rem(b)?.checked_add(b)?.checked_rem(b),
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
