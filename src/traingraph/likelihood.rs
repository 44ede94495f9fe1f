//! The `denoising` likelihood: `logp = −e`, with `e` the mean squared error of the prediction over C, H and W.

use crate::Result;
use crate::onnx::{Graph, ValueId};

/// `e = mean over C,H,W of (prediction − target)²` per sample: `[B,C,H,W]`, `[B,C,H,W]` → `[B]`.
pub fn errors(graph: &mut Graph, prediction: ValueId, target: ValueId) -> Result<ValueId> {
    let difference = graph.sub(prediction, target)?;
    mean_product(graph, difference, difference)
}

/// `mean over C,H,W of a·b` per sample: `[B,C,H,W]`, `[B,C,H,W]` → `[B]`.
pub fn mean_product(graph: &mut Graph, a: ValueId, b: ValueId) -> Result<ValueId> {
    let product = graph.mul(a, b)?;
    let axes: Vec<usize> = (1..graph.rank(product)).collect();
    graph.reduce("ReduceMean", product, &axes, false)
}
