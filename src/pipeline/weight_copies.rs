//! Second copies of the weights: what they buy, and when they are worth their memory.
//!
//! ONNX Runtime's CPU kernels like weights packed, blocked by channels (NCHWc), transposed or flipped, and keep a copy
//! of each in that form, in every session. Measured on two cores with ONNX Runtime 1.31.1, LoRA Diffusion-DPO step with
//! policy and reference in a session each:
//!
//! | model | copies | step | load | peak memory |
//! |---|---|---|---|---|
//! | SD1.5's UNet (3.4 GB), one pair of 32×32 latents | all | 5.8 s | 42 s | 13.3 GB |
//! | | none | 6.8 s | 2.0 s | 5.3 GB, 3.4 GB of it pages of the model's file |
//! | tiny-sd's UNet (27 MB), 16 pairs of 16×16 latents | all | 0.48 s | 0.7 s | 0.54 GB |
//! | | none | 0.92 s | 0.7 s | 0.48 GB |
//!
//! Narrow convolutions are what the blocked layout speeds up; wide ones, as in large models, hardly gain.

use crate::onnx::{Graph, weight_bytes};
use crate::runtime::SessionOptions;

pub use crate::config::runtime::WeightCopies;

/// Weights up to this size are copied under [`WeightCopies::Auto`], in bytes.
const SMALL: usize = 512 << 20;

/// ONNX Runtime's passes that write weights anew.
const COPYING_PASSES: [&str; 2] = ["NchwcTransformer", "ConstantFolding"];

/// Whether sessions over `denoiser` keep second copies, and their options, starting from `session`.
pub fn apply(copies: WeightCopies, denoiser: &Graph, mut session: SessionOptions) -> (bool, SessionOptions) {
    let wanted = match copies {
        WeightCopies::All => true,
        WeightCopies::None => false,
        WeightCopies::Auto => weight_bytes(denoiser) <= SMALL,
    };
    if !wanted {
        session.prepack = false;
        let passes = COPYING_PASSES.map(str::to_owned);
        session.disabled_optimizers.extend(passes);
    }
    (wanted, session)
}
