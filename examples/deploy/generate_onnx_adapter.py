"""An image with an adapter, by ONNX Runtime, NumPy and a tokenizer: no PyTorch, no diffusers.

    ortdpo adapter export-base models/tiny-sd tiny-adaptable --adapter runs/demo
    ortdpo adapter convert runs/demo demo.onnx_adapter --to onnx
    python examples/deploy/generate_onnx_adapter.py tiny-adaptable demo.onnx_adapter "a small apple" apple.png

For Stable Diffusion pipelines with one text encoder that predict noise, exported with 64-bit tokens and timesteps.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image
from transformers import CLIPTokenizer

base, adapter, prompt, output = sys.argv[1:]
onnxruntime.set_default_logger_severity(3)  # of every input with a default ONNX Runtime warns that it is one
networks = ("text_encoder", "unet", "vae_decoder")
text_encoder, unet, decoder = (onnxruntime.InferenceSession(f"{base}/{part}/model.onnx") for part in networks)
side = json.load(open(f"{base}/unet/config.json"))["sample_size"]
scale = json.load(open(f"{base}/vae_decoder/config.json"))["scaling_factor"]
weights, with_adapter = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
weights.Load(adapter)
with_adapter.add_active_adapter(weights)
tokenize = CLIPTokenizer.from_pretrained(f"{base}/tokenizer")
ids = tokenize(["", prompt], padding="max_length", truncation=True, return_tensors="np").input_ids
text = text_encoder.run(None, {"input_ids": ids})[0]
kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)  # Stable Diffusion's noise schedule
latents = np.random.default_rng(7).standard_normal((1, 4, side, side))
for t in range(951, 0, -50):  # DDIM in 20 steps, with guidance 3
    given = {"sample": np.float32(latents.repeat(2, 0)), "timestep": np.full(2, t), "encoder_hidden_states": text}
    without, with_prompt = np.split(unet.run(None, given, with_adapter)[0], 2)
    noise, now, then = without + 3 * (with_prompt - without), kept[t], kept[max(t - 50, 0)]
    latents = (then / now) ** 0.5 * (latents - (1 - now) ** 0.5 * noise) + (1 - then) ** 0.5 * noise
pixels = decoder.run(None, {"latent_sample": np.float32(latents / scale)})[0][0].transpose(1, 2, 0)
Image.fromarray(np.uint8(255 * np.clip(pixels / 2 + 0.5, 0, 1))).save(output)
