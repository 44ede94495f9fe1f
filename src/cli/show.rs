//! `ortdpo show`: a model as text.

use std::path::PathBuf;

use clap::Args;
use ortdpo::Result;

use super::dims::DimArgs;
use super::output;

/// Print a model as text, with every shape worked out
///
/// The model is shown as it is differentiated and trained: dimensions fixed, integer sub-graphs evaluated, functions
/// and branches inlined.
#[derive(Args)]
pub struct Show {
    /// An .onnx file of opset 13 to 23
    model: PathBuf,
    #[command(flatten)]
    dims: DimArgs,
}

impl Show {
    pub fn run(self) -> Result<()> {
        let graph = self.dims.load(&self.model, false)?;
        output::line(graph.to_string().trim_end())
    }
}
