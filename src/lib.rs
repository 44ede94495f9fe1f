//! Preference optimisation for text-to-image diffusion models on stock ONNX Runtime.
