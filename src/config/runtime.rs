//! The `runtime:` section: what computes. It does not say what is computed, so a run may be resumed under another.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::require;
use crate::Result;
use crate::runtime::ExecutionProvider;

/// What computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfig {
    /// ONNX Runtime's execution provider. One that is asked for and does not work is an error.
    pub ep: ExecutionProvider,
    /// CPU threads; `null` for one per core.
    pub threads: Option<usize>,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            ep: ExecutionProvider::Cpu,
            threads: None,
        }
    }
}

impl RuntimeConfig {
    /// Checks every value; errors name the key.
    pub fn check(&self) -> Result<()> {
        require(
            self.threads != Some(0),
            "runtime.threads",
            "is 0",
            "Give at least 1, or null for one per core.",
        )
    }
}
