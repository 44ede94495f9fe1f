//! Where the trainable tensors start: θ0.

use crate::Result;
use crate::config::adapter::AdapterConfig;
use crate::onnx::Graph;
use crate::traingraph::Trainables;

/// What `config` trains of the static denoiser `graph`.
pub fn trainables(config: &AdapterConfig, graph: &Graph) -> Result<Trainables> {
    match config {
        AdapterConfig::Lora(lora) => Trainables::lora(graph, &lora.targets, lora.rank, lora.alpha()),
        AdapterConfig::Full(full) => {
            let all = vec!["*".to_owned()];
            Trainables::full(graph, full.targets.as_ref().unwrap_or(&all))
        }
    }
}
