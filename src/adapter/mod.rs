//! Trained weights as files that diffusers, PEFT and what builds on them load: LoRA adapters
//! (`pytorch_lora_weights.safetensors`) and whole models (`diffusion_pytorch_model.safetensors`), and where new
//! adapters start.
//!
//! In memory an adapter is a [`ParamSet`](crate::params::ParamSet) of tensors `MODULE.lora_A.weight` of shape
//! (r, in) or (r, in, kh, kw) and `MODULE.lora_B.weight` of shape (out, r) or (out, r, 1, 1).

pub mod content;
mod file;
mod full;
mod init;
mod lora;

pub use file::{NamedTensor, Precision, ReadTensor};
pub use full::save_full;
pub use init::init_lora;
pub use lora::{LoraScale, load_lora, save_lora};

#[cfg(test)]
mod tests;
