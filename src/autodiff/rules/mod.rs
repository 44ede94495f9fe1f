//! Gradient rules, one file per operator family. Shape rules of the same operators are in `onnx::infer`.
//!
//! A rule gets the node, the gradients of its outputs and which inputs matter, and adds nodes that compute the inputs'
//! gradients. Rules use standard operators of the graph's own opset only.
//!
//! The one operator that is not ONNX's own is in `fused_attention`.

mod activation;
mod arrange;
mod attention;
mod conv;
mod einsum;
mod elementwise;
mod function;
mod fused_attention;
mod gather;
mod helpers;
mod matmul;
mod norm;
mod pad;
mod pool;
mod power;
mod reduce;
mod resize;
mod softmax;

use super::{Context, Gradients};
use crate::Result;
use crate::onnx::{Graph, MICROSOFT, Node};
use crate::tensor::DType;

type Rule = fn(&mut Context) -> Result<Gradients>;

/// The rule of an operator of the standard domain, if there is one.
fn rule(op: &str) -> Option<Rule> {
    let families = [
        elementwise::rule,
        function::rule,
        power::rule,
        activation::rule,
        reduce::rule,
        arrange::rule,
        pad::rule,
        gather::rule,
        attention::rule,
        conv::rule,
        einsum::rule,
        matmul::rule,
        norm::rule,
        pool::rule,
        resize::rule,
        softmax::rule,
    ];
    families.iter().find_map(|family| family(op))
}

/// Gradients of the inputs of the context's node. What half precision has too few digits or too small a range for is
/// computed in single precision.
pub fn apply(context: &mut Context) -> Result<Gradients> {
    let half = context.dy0().ok().map(|dy| context.graph.dtype(dy));
    match half.filter(|dtype| dtype.is_half() && needs_single(&context.node.op)) {
        Some(_) => in_single(context),
        None => as_is(context),
    }
}

/// Operators whose gradients sum many numbers, square them or divide by small ones.
fn needs_single(op: &str) -> bool {
    let sums = op.starts_with("Reduce") || op.ends_with("Normalization");
    sums || matches!(
        op,
        "Softmax" | "LogSoftmax" | "Pow" | "Sqrt" | "Div" | "Reciprocal" | "Exp" | "Log" | "Erf" | "Gelu"
    )
}

fn in_single(context: &mut Context) -> Result<Gradients> {
    let graph = &mut *context.graph;
    let types: Vec<_> = context
        .node
        .inputs
        .iter()
        .map(|v| v.map(|v| graph.dtype(v)))
        .collect();
    let values = context.node.inputs.iter_mut().chain(&mut context.node.outputs);
    for v in values.chain(&mut context.dy).flatten() {
        if graph.dtype(*v).is_half() {
            *v = graph.cast(*v, DType::F32)?;
        }
    }
    let mut found = as_is(context)?;
    for (gradient, dtype) in found.iter_mut().zip(types) {
        if let (Some(v), Some(dtype)) = (gradient, dtype) {
            *v = context.graph.cast(*v, dtype)?;
        }
    }
    Ok(found)
}

fn as_is(context: &mut Context) -> Result<Gradients> {
    let known = match context.node.domain.as_str() {
        "" => rule(&context.node.op),
        MICROSOFT if context.node.op == "MultiHeadAttention" => {
            Some(fused_attention::multi_head_attention as Rule)
        }
        _ => None,
    };
    match known {
        Some(rule) => rule(context),
        None => Err(context.unsupported(&format!("operator {}", context.node.op))),
    }
}

/// Whether the standard operator `op` has a gradient rule.
pub fn is_differentiable(op: &str) -> bool {
    rule(op).is_some()
}

/// Positions of the inputs that carry data a gradient can flow to. Operands that only steer an operator (scales of a
/// `Resize`, pad values, bounds of a `Clip`, a constant exponent, dropout ratios, indices, conditions) are not among them,
/// and integer inputs never are.
pub fn differentiable_operands(graph: &Graph, node: &Node) -> Vec<usize> {
    let all = 0..node.inputs.len();
    let data: Vec<usize> = match node.op.as_str() {
        "Resize" | "Upsample" | "Clip" | "Pad" | "Dropout" | "Reshape" | "Expand" | "Tile" | "Slice"
        | "Split" | "Gather" | "GatherElements" | "GatherND" | "Squeeze" | "Unsqueeze" | "CumSum"
        | "Trilu" | "TopK" | "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceL1"
        | "ReduceL2" | "ReduceProd" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceSumSquare" => vec![0],
        "Pow" if node.input(1).is_some_and(|v| graph.constants.contains_key(&v)) => vec![0],
        "Where" => vec![1, 2],
        "Shape" | "Size" | "ConstantOfShape" | "Range" | "ArgMax" | "ArgMin" | "Equal" | "Less"
        | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "IsNaN" | "IsInf" | "Sign" | "Floor" | "Ceil"
        | "Round" | "EyeLike" | "OneHot" | "Not" | "And" | "Or" | "Xor" => vec![],
        _ => all.collect(),
    };
    let is_float = |k: &usize| node.input(*k).is_some_and(|v| graph.dtype(v).is_float());
    data.into_iter().filter(is_float).collect()
}
