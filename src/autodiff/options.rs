//! Choices between forms of a gradient that are equal in value but not in time and memory.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the backward graph is to be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeriveOptions {
    /// Form of the input gradient of stride-1 convolutions with a constant weight.
    pub conv_input: ConvInputGradient,
    /// Form of the backward pass of `MultiHeadAttention`.
    pub attention: AttentionGradient,
    /// What the backward pass computes again.
    pub recompute: Recompute,
}

/// Form of the backward pass of `MultiHeadAttention`. Neither ever has all scores in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttentionGradient {
    /// Standard operators over chunks of the queries, for every execution provider.
    #[default]
    Chunks,
    /// One operator that only sessions on the CPU have, in single precision.
    Fused,
}

/// What the backward pass computes again instead of keeping it from the forward pass: memory for time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Recompute {
    /// Nothing: fastest.
    #[default]
    None,
    /// Normalisation, activations, attention: what is cheap to compute and large to keep. Attention goes through in chunks of
    /// queries, and results of convolutions and of products with weights are kept.
    NormAttention,
    /// Everything between a few places where little has to be remembered: at most one more forward pass.
    Block,
}

impl Recompute {
    /// All levels, from the fastest to the smallest.
    pub const ALL: [Self; 3] = [Self::None, Self::NormAttention, Self::Block];
}

impl std::str::FromStr for Recompute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let level = Self::ALL.into_iter().find(|level| level.to_string() == text);
        level.ok_or_else(|| {
            let names = Self::ALL.map(|level| level.to_string());
            format!("one of {}", names.join(", "))
        })
    }
}

impl std::fmt::Display for Recompute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::NormAttention => "norm-attention",
            Self::Block => "block",
        })
    }
}

/// Form of the input gradient of a stride-1 convolution whose weight is a constant. Other convolutions always use the
/// transposed form.
///
/// CPU time of one such gradient, 3×3, batch 2, ONNX Runtime 1.31.1 on an AMD EPYC with AVX-512, two threads:
///
/// | channels, positions | transposed | flipped |
/// |---|---|---|
/// | 320, 64×64 | 170 ms | 133 ms |
/// | 640, 16×16 | 43 ms | 34 ms |
/// | 1280, 8×8 | 45 ms | 38 ms |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConvInputGradient {
    /// `ConvTranspose` with the weight as it is: no memory beyond the forward pass's.
    #[default]
    Transpose,
    /// `Conv` with the flipped, transposed weight: about a fifth faster, and a second copy of every such weight.
    Flipped,
}
