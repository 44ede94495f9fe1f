//! Trained weights as files that diffusers, PEFT and what builds on them load: LoRA adapters
//! (`pytorch_lora_weights.safetensors`) and whole models (`diffusion_pytorch_model.safetensors`), and where new
//! adapters start; adapters of other programs and for other programs.
//!
//! In memory a trained adapter is a [`ParamSet`](crate::params::ParamSet) of tensors `MODULE.lora_A.weight` of shape
//! (r, in) or (r, in, kh, kw) and `MODULE.lora_B.weight` of shape (out, r) or (out, r, 1, 1). A file of any form is a
//! [`Lora`]:
//!
//! ```text
//! content.rs: safetensors ─► keys.rs, names.rs ─► Lora ─► diffusers.rs, kohya.rs, onnx_adapter/
//! onnx_adapter/ ────────────────────────────────────┘└──► combine.rs, resize.rs: other Loras
//! ```

mod base;
pub mod combine;
pub mod content;
pub mod diffusers;
mod factors;
mod file;
pub mod form;
mod full;
mod init;
pub mod inspect;
mod keys;
pub mod kohya;
mod kohya_hashes;
mod lora;
pub mod names;
pub mod onnx_adapter;
pub mod resize;
mod scales;
mod whole;

pub use base::BaseModel;
pub use factors::{Lora, ModuleFactors};
pub use file::{NamedTensor, Precision, ReadTensor, TensorEntry, TensorFile, write as write_tensors};
pub use full::save_full;
pub use init::{init_lora, load_lora};
pub use keys::{ModuleName, Spelling};
pub use lora::{LoraScale, trained};
pub use whole::check_safetensors;

#[cfg(test)]
mod tests;
