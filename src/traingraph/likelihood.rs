//! The `denoising` likelihood: `logp = −e`, with `e` the mean squared error of the prediction over C, H and W.

use crate::Result;
use crate::onnx::{Graph, ValueId};

/// `e = mean over C,H,W of (prediction − target)²` per sample: `[B,C,H,W]`, `[B,C,H,W]` → `[B]`.
pub fn errors(graph: &mut Graph, prediction: ValueId, target: ValueId) -> Result<ValueId> {
    let difference = graph.sub(prediction, target)?;
    let square = graph.mul(difference, difference)?;
    let axes: Vec<usize> = (1..graph.rank(square)).collect();
    graph.reduce("ReduceMean", square, &axes, false)
}
