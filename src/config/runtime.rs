//! The `runtime:` section: what computes. It does not say what is computed, so a run may be resumed under another.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bytes::ByteSize;
use super::require;
use crate::Result;
use crate::autodiff::Recompute;
use crate::runtime::{ExecutionProvider, has_bfloat16};

/// What computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfig {
    /// ONNX Runtime's execution provider. One that is asked for and does not work is an error.
    pub ep: ExecutionProvider,
    /// Whether CUDA may leave operators of a training step to the CPU. Without, a step that is not wholly on the device is refused.
    pub cpu_fallback: bool,
    /// CPU threads; `null` for one per core.
    pub threads: Option<usize>,
    /// Whether training sessions keep second copies of the weights in the layouts that their kernels like best.
    pub weight_copies: WeightCopies,
    /// What backward passes compute again instead of keeping it: memory for time.
    pub recompute: Recompute,
    /// What the denoiser is computed in, where its weights are stored in half precision.
    pub mixed_precision: MixedPrecision,
    /// Where AdamW and the moving averages are computed.
    pub optimizer: OptimizerPlace,
    /// Whether the VAE computes in single precision, also where it was exported in half precision, in which SDXL's own
    /// overflows.
    pub vae_fp32: bool,
    /// How much of the host's memory the process may take, such as `12GiB`: `recompute` goes as far as that needs, and no run
    /// begins that would take more, with some 5 % to spare; nor does the CPU encode pictures in more. A device's memory is not
    /// meant. `ortdpo plan` shows what it would take.
    pub memory_budget: Option<ByteSize>,
}

/// Second copies of the weights: time against memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightCopies {
    /// Copies of small weights (up to 512 MB), none of large ones, where they would hardly save time.
    #[default]
    Auto,
    /// Copies whatever their size: fastest, several times the weights' memory.
    All,
    /// No copies: the model file's pages are the weights.
    None,
}

/// What the denoiser is computed in. Losses, what is trained, its gradients and the optimizer are in single precision
/// either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MixedPrecision {
    /// Single precision, also with weights stored in half precision.
    #[default]
    No,
    /// Half precision, as the weights are stored, with a scaled loss: fast on GPUs, slow on CPUs, which compute in single
    /// precision anyway.
    Fp16,
    /// In bfloat16, whichever half precision the weights are stored in, without a scaled loss. On CUDA; on the CPU every
    /// operator computes in single precision and rounds, which shows what bfloat16 does to a run, slowly.
    Bf16,
}

impl MixedPrecision {
    /// The name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
        }
    }

    /// Whether gradients are of so small a range that the loss has to be scaled.
    pub fn scales_loss(self) -> bool {
        self == Self::Fp16
    }
}

/// Where the optimizer works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerPlace {
    /// On the device if that is a GPU whose memory is reached (cuda, tensorrt) and whole weights are trained, where nothing
    /// stands against it; else on the host.
    #[default]
    Auto,
    /// On the host: every step weights go to the device and gradients come back, which for LoRA is little.
    Host,
    /// On the device: weights, moments, gradients, reference and average stay there. Adafactor works on the host all the same,
    /// once per optimizer step. Not with the kl anchor, a reference in a file, or images of several sizes.
    Device,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            ep: ExecutionProvider::Cpu,
            cpu_fallback: false,
            threads: None,
            weight_copies: WeightCopies::Auto,
            recompute: Recompute::None,
            mixed_precision: MixedPrecision::No,
            optimizer: OptimizerPlace::Auto,
            vae_fp32: false,
            memory_budget: None,
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
        )?;
        require(
            self.mixed_precision != MixedPrecision::Bf16 || has_bfloat16(self.ep),
            "runtime.mixed_precision",
            format!("is bf16, in which {} computes nothing here", self.ep.name()),
            "Use `fp16` or `no`, or runtime.ep: cuda.",
        )
    }
}
