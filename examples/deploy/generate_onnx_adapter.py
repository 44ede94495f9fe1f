"""The same image without and with an adapter, by ONNX Runtime, NumPy and a tokenizer: no PyTorch, no diffusers.

    ortdpo adapter export-base models/tiny-sd tiny-adaptable --adapter runs/demo
    ortdpo adapter convert runs/demo demo.onnx_adapter --to onnx
    python examples/deploy/generate_onnx_adapter.py tiny-adaptable demo.onnx_adapter "a small apple on a blue background"

For Stable Diffusion pipelines with one text encoder that predict noise. Needs onnxruntime, transformers, Pillow.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image
from transformers import CLIPTokenizer

folder, adapter, prompt = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
config = {part: json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae_decoder")}
scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
quiet = ort.SessionOptions()
quiet.log_severity_level = 3  # of every input with a default ONNX Runtime warns that it is one
unet, text_encoder, decoder = (
    ort.InferenceSession(folder / part / "model.onnx", quiet) for part in ("unet", "text_encoder", "vae_decoder")
)

tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
tokens = tokenizer(["", prompt], padding="max_length", truncation=True, return_tensors="np").input_ids
ids = next(i for i in text_encoder.get_inputs() if i.name == "input_ids")
captions = text_encoder.run(None, {"input_ids": tokens.astype("int32" if "int32" in ids.type else "int64")})[0]

betas = np.linspace(scheduler["beta_start"] ** 0.5, scheduler["beta_end"] ** 0.5, 1000) ** 2
alphas = np.cumprod(1 - betas)
timestep = next(i for i in unet.get_inputs() if i.name == "timestep")


def generate(options: ort.RunOptions, steps: int = 20, guidance: float = 3.0) -> Image.Image:
    side = config["unet"]["sample_size"]
    latents = np.random.default_rng(7).standard_normal((1, 4, side, side)).astype(np.float32)
    for t in range(1 + 1000 - 1000 // steps, 0, -(1000 // steps)):  # DDIM
        inputs = {"sample": np.concatenate([latents] * 2), "encoder_hidden_states": captions}
        inputs["timestep"] = np.full([2] if timestep.shape else [], t, "int64" if "int64" in timestep.type else "float32")
        unguided, guided = np.split(unet.run(None, inputs, options)[0], 2)
        noise = unguided + guidance * (guided - unguided)
        now, then = alphas[t], alphas[max(t - 1000 // steps, 0)]
        latents = (then / now) ** 0.5 * (latents - (1 - now) ** 0.5 * noise) + (1 - then) ** 0.5 * noise
        latents = latents.astype(np.float32)
    pixels = decoder.run(None, {"latent_sample": latents / config["vae_decoder"]["scaling_factor"]})[0]
    return Image.fromarray(np.uint8(np.clip(pixels[0].transpose(1, 2, 0) / 2 + 0.5, 0, 1) * 255))


with_adapter = ort.RunOptions()
weights = ort.LoraAdapter()
weights.Load(adapter)
with_adapter.add_active_adapter(weights)
generate(ort.RunOptions()).save("without.png")
generate(with_adapter).save("with.png")
print("without.png, with.png")
