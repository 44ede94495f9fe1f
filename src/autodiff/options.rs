//! Choices between forms of a gradient that are equal in value but not in time and memory.

/// How the backward graph is to be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeriveOptions {
    /// Form of the input gradient of stride-1 convolutions with a constant weight.
    pub conv_input: ConvInputGradient,
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
