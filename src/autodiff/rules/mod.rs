//! Gradient rules, one file per operator family. Shape rules of the same operators are in `onnx::infer`.
//!
//! A rule gets the node, the gradients of its outputs and which inputs matter, and adds nodes that compute the inputs'
//! gradients. Rules use standard operators of the graph's own opset only.

mod activation;
mod arrange;
mod attention;
mod conv;
mod einsum;
mod elementwise;
mod function;
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
use crate::onnx::{Graph, Node};

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

/// Gradients of the inputs of the context's node.
pub fn apply(context: &mut Context) -> Result<Gradients> {
    let known = if context.node.domain.is_empty() {
        rule(&context.node.op)
    } else {
        None
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
